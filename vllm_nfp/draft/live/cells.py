"""What is known and chosen at one batch size and context, and the table of lengths it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_nfp.draft.batch_cells import batch_cell
from vllm_nfp.draft.live.decision import Reason
from vllm_nfp.draft.live.steps import CellKey, context_cell
from vllm_nfp.draft.live.trial import Trial

BLIND_SECONDS = 0.5
"""Seconds until drafts are tried again where there are none; doubled with each trial."""
ANEW_AFTER, ANEW_AT_MOST = 1024, 8192
"""Steps in a cell until it is compared anew, doubled each time. A trial in a slow spell of the host
may make a length look so much better, or worse, than it is that no other seems worth a trial; such
a verdict must not last."""


@dataclass(slots=True)
class Cell:
    """State of one batch size and context."""

    choice: int | None = None
    reason: Reason = Reason.STATIC
    gain: float | None = None
    relative: dict[int, float] = field(default_factory=dict)
    """Time of a step by draft length, over that of the first length in force here."""
    before: dict[int, float] = field(default_factory=dict)
    """The same as known before it was compared anew; no choice rests on it."""
    tried: dict[int, float] = field(default_factory=dict)
    """When each was last compared, in seconds of the caller's clock."""
    trial: Trial | None = None
    steps: int = 0
    """Since the cell was last compared anew."""
    undecided: int = 0
    """Steps since the last decision."""
    anew_after: int = ANEW_AFTER
    settled_at: float = -math.inf
    """When the choice was made, in seconds of the caller's clock."""
    blind_seconds: float = BLIND_SECONDS
    """Until drafts are tried again where there are none."""
    hopeful: bool = False
    """The last look found better acceptance, on too few drafts to count."""
    place: tuple[int, int] | None = None
    """Batch size and context of the last step."""
    next_look: int = 0
    """Step from which lengths that were not worth a trial are considered again."""

    def begin_anew(self, length: int) -> None:
        """Forget all comparisons; this length, which is in force, is the new unit of time."""
        known = {**self.before, **self.relative}
        unit = known.get(length)
        self.before = {} if unit is None else {k: t / unit for k, t in known.items()}
        self.relative, self.tried, self.steps = {length: 1.0}, {}, 0

    def refresh(self, current: int) -> None:
        """Compare anew where the length in force is not compared here, or after many steps."""
        if current not in self.relative:
            # What was compared with another length says nothing about this one.
            self.begin_anew(current)
        elif self.steps >= self.anew_after:
            self.begin_anew(current)
            self.anew_after = min(ANEW_AT_MOST, 2 * self.anew_after)


class LengthTable:
    """The draft length in force at every batch size and context.

    Args:
        static: the configured draft length by batch size; index 0 is not used.
        cells: the state of the cells, which others change.
    """

    def __init__(self, static: Sequence[int], cells: Mapping[CellKey, Cell]) -> None:
        self.static = list(static)
        self._cells = cells
        self._ranges = _ranges(len(static) - 1)

    def at_context(self, context: int) -> list[int]:
        """Draft length by batch size at this context, as vLLM looks it up; index 0 is unused."""
        at = context_cell(context)
        lengths = [0]
        for cell, first, last in self._ranges:
            chosen = self._chosen((cell, at))
            lengths.extend(
                self.static[first : last + 1] if chosen is None else [chosen] * (last + 1 - first)
            )
        return lengths

    def in_force(self, key: CellKey, batch_size: int) -> int:
        """The length that steps of this batch size in this cell run with."""
        chosen = self._chosen(key)
        return self.static[batch_size] if chosen is None else chosen

    def largest(self, key: CellKey) -> int:
        """The largest batch size of a cell, which represents it."""
        return min(key[0], len(self.static) - 1)

    def _chosen(self, key: CellKey) -> int | None:
        """The length that the cell has settled on or is trying."""
        cell = self._cells.get(key)
        if cell is None:
            return None
        if cell.trial is not None and cell.trial.its_turn:
            return cell.trial.length
        return cell.choice


def _ranges(largest: int) -> list[tuple[int, int, int]]:
    """(cell, first, last) of the batch sizes from 1 to ``largest``, cell by cell."""
    ranges = []
    first = 1
    while first <= largest:
        cell = batch_cell(first)
        ranges.append((cell, first, min(cell, largest)))
        first = cell + 1
    return ranges
