"""What a claim is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Figures: TypeAlias = Mapping[str, str]
"""Name of a figure -> as it is printed."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A place that quotes figures.

    Attributes:
        path: relative to the checkout.
        text: what stands there, with ``{name}`` for each figure; white space counts as one blank.
    """

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence with figures, and all that is needed to check it.

    Attributes:
        sentence, interval, count: of the row in docs/evidence.md, with ``{name}`` for each figure;
            ``count`` is what the figures rest on.
        figures: computes them from the record.
        record: file or directory, relative to the checkout.
        commands: what makes the record, one after the other; ``{out}`` is the directory for it.
        commit: of the run; None: none was recorded.
        rests_on: paths whose change makes the claim stale.
    """

    name: str
    sentence: str
    interval: str
    count: str
    figures: Callable[[Path], Figures]
    record: str
    commands: tuple[str, ...]
    commit: str | None
    date: str
    gpu: str
    rests_on: tuple[str, ...]
    quotes: tuple[Quote, ...]
