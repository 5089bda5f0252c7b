"""Real decode steps as the controller sees them, and what they cost at each draft length."""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_nfp.draft.batch_cells import batch_cell

SMALLEST_CONTEXT_CELL = 512
FINE_CONTEXTS_FROM = 2048
"""Contexts are grouped by octaves below, by quarter octaves above, where attention matters."""
KEPT_STEPS = 16
"""Steps whose median is the time of a draft length."""
MOST_CELLS = 256
"""Cells that are kept; the least recently used one is forgotten first."""

CellKey = tuple[int, int]
"""(batch size, context): the upper ends of the cell."""


@dataclass(frozen=True, slots=True)
class StepObservation:
    """A pure decode step whose sequences all verified the same number of drafts."""

    batch_size: int
    context: int
    """Mean number of tokens in the KV cache of a sequence."""
    draft_length: int
    seconds: float | None
    """From the step before to this one, drafting and host included; None: the two were not back to
    back."""
    accepted: tuple[int, ...]
    """For each position in the draft, the sequences whose drafts were accepted up to it."""


def context_cell(context: int) -> int:
    """Upper end of the cell of a context length.

    >>> [context_cell(c) for c in (0, 513, 2048, 2049, 8200)]
    [512, 1024, 2048, 2560, 10240]
    """
    if context <= SMALLEST_CONTEXT_CELL:
        return SMALLEST_CONTEXT_CELL
    octave = 1 << (context - 1).bit_length()
    if octave <= FINE_CONTEXTS_FROM:
        return octave
    width = octave // 8
    return -(-context // width) * width


def cell_of(batch_size: int, context: int) -> CellKey:
    """The cell that a step belongs to."""
    return batch_cell(batch_size), context_cell(context)


def distance(one: CellKey, other: CellKey) -> float:
    """How far apart two cells are, in octaves of batch size and of context."""
    return abs(math.log2(one[0] / other[0])) + abs(math.log2(one[1] / other[1]))


class LengthTimes:
    """The last steps of one draft length in one cell."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT_STEPS)

    def add(self, seconds: float) -> None:
        """Take in a step."""
        self._seconds.append(seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def last(self, steps: int) -> tuple[float, ...]:
        """Seconds of the last ``steps`` steps, or of as many as there are."""
        return tuple(self._seconds)[-steps:]

    @property
    def median(self) -> float:
        """Robust to a step that a probe, garbage collection or a new request delayed."""
        return statistics.median(self._seconds)


class CellTimes:
    """Times by draft length in the last used cells, the most recently used last."""

    def __init__(self) -> None:
        self._cells: OrderedDict[CellKey, dict[int, LengthTimes]] = OrderedDict()

    def of(self, cell: CellKey) -> dict[int, LengthTimes]:
        """The times in a cell, which becomes the most recently used."""
        times = self._cells.get(cell)
        if times is None:
            times = self._cells[cell] = {}
            while len(self._cells) > MOST_CELLS:
                self._cells.popitem(last=False)
        else:
            self._cells.move_to_end(cell)
        return times

    def peek(self, cell: CellKey) -> Mapping[int, LengthTimes]:
        """The times in a cell, which does not count as a use of it."""
        return self._cells.get(cell, {})

    def add(self, cell: CellKey, draft_length: int, seconds: float) -> None:
        """Take in a step."""
        times = self.of(cell)
        if draft_length not in times:
            times[draft_length] = LengthTimes()
        times[draft_length].add(seconds)

    def cells(self) -> list[CellKey]:
        """All cells, the most recently used last."""
        return list(self._cells)
