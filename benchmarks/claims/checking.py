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
        figures: None where the record is not at hand.
        faults: a sentence for each place that quotes something else.
    """

    claim: Claim
    figures: Figures | None
    faults: tuple[str, ...]
    age: Age


def check(root: Path, claim: Claim, public: Path | None = None) -> Checked:
    """Compute a claim's figures again and look for them where they are quoted.

    Args:
        public: the record of claims whose record is not in the checkout.
    """
    how_old = age(root, claim.commit or claim.added, claim.rests_on)
    record = public if claim.record is None else root / claim.record
    if record is None:
        return Checked(claim, None, (), how_old)
    figures = claim.figures(record)
    faults = [
        f"{claim.name}: {quote.path} does not say: {expected}"
        for quote in claim.quotes
        for expected in [plain(quote.text.format(**figures))]
        if expected not in plain((root / quote.path).read_text(encoding="utf-8"))
    ]
    return Checked(claim, figures, tuple(faults), how_old)


def plain(text: str) -> str:
    """Text without line ends, and without the marks of a list or of bold letters."""
    return re.sub(r"\s+", " ", text.replace("**", ""))
