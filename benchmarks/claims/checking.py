"""Checks a claim: its figures against the places that quote them, and its code's age."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims.claim import Claim, Figures
from benchmarks.claims.staleness import Age, age


@dataclass(frozen=True, slots=True)
class Checked:
    """A claim with its figures, as computed now.

    Attributes:
        faults: a sentence for each place that quotes something else.
    """

    claim: Claim
    figures: Figures
    faults: tuple[str, ...]
    age: Age


def check(root: Path, claim: Claim) -> Checked:
    """Compute a claim's figures again and look for them where they are quoted."""
    figures = claim.figures(root / claim.record)
    faults = [
        f"{claim.name}: {quote.path} does not say: {expected}"
        for quote in claim.quotes
        for expected in [plain(quote.text.format(**figures))]
        if expected not in plain((root / quote.path).read_text(encoding="utf-8"))
    ]
    return Checked(claim, figures, tuple(faults), age(root, claim.commit, claim.rests_on))


def plain(text: str) -> str:
    """Text without line ends, and without the marks of a list or of bold letters."""
    return re.sub(r"\s+", " ", text.replace("**", ""))
