"""How much of a profile was measured, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vllm_nfp.results.profile import Profile
from vllm_nfp.types import Basis, Boundary


def basis_counts(rows: Iterable[Boundary]) -> str:
    """What answers rest on, as "61 measured, 12 inferred"; empty if there are none."""
    found = Counter(row.basis for row in rows)
    return ", ".join(f"{found[basis]} {basis}" for basis in Basis if found[basis])


def unfinished(profile: Profile) -> str:
    """One sentence on pairs that are missing and answers that are not measured; empty if all is.

    A live server asks for no pairs in particular: nothing of it is missing.
    """
    asked = profile.probe.wanted_samples > 0
    missing = profile.run.missing_pairs if asked else 0
    whole = all(row.basis is Basis.MEASURED for row in profile.boundaries)
    counts = "" if whole else f"Answers: {basis_counts(profile.boundaries)}"
    if missing:
        ended = f"time ran out before every point had its samples: {missing} pairs are missing"
        return f"{counts}; {ended}." if counts else f"{ended[0].upper()}{ended[1:]}."
    return f"{counts}." if counts else ""
