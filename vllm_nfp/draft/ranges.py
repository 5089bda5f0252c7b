"""The ranges of batch sizes that a table has, and the curve that each is chosen from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_nfp.draft.batch_cells import batch_cell
from vllm_nfp.draft.between import CLOSE, between, larger, slower, smaller
from vllm_nfp.draft.curve import LARGEST_BATCH_SIZE, StepCurve
from vllm_nfp.draft.rows import RowBasis
from vllm_nfp.types import Basis

Grid = Mapping[tuple[int, int], StepCurve]
"""Curves by batch size and context."""


@dataclass(frozen=True, slots=True)
class RangeCurve:
    """The curve for a range of batch sizes at one context."""

    curve: StepCurve
    place: Literal["reported", "close", "between", "beyond"]

    def basis(self, draft_length: int) -> RowBasis:
        """What the step with so many drafts rests on."""
        found = self.curve.basis(draft_length + 1)
        return "between" if self.place == "between" and found == Basis.MEASURED else found


def grid_of(curves: Iterable[StepCurve]) -> Grid:
    """The curves by cell.

    Raises:
        ValueError: if there are none, or two of one cell.
    """
    grid: dict[tuple[int, int], StepCurve] = {}
    for curve in curves:
        cell = (curve.batch_size, curve.context)
        if cell in grid:
            raise ValueError(f"two curves for batch size {cell[0]} and context {cell[1]}")
        grid[cell] = curve
    if not grid:
        raise ValueError("there is no curve of the whole step to choose draft lengths from")
    return grid


def ranges_of(grid: Grid, max_batch_size: int | None) -> list[tuple[int, int]]:
    """Reported batch sizes one by one, and the gaps before, between and after them.

    Args:
        max_batch_size: end of the last range; None: the largest reported batch size.

    Raises:
        ValueError: for an end below 1 or beyond any that a server runs.
    """
    batch_sizes = sorted({batch for batch, _ in grid})
    last = batch_sizes[-1] if max_batch_size is None else max_batch_size
    if not 1 <= last <= LARGEST_BATCH_SIZE:
        raise ValueError(f"max_batch_size must lie from 1 to {LARGEST_BATCH_SIZE}, not {last}")
    ranges: list[tuple[int, int]] = []
    before = 0
    for batch_size in batch_sizes:
        ranges += [*_gap(before, batch_size), (batch_size, batch_size)]
        before = batch_size
    while before < last:
        ranges.append((before + 1, 2 * before))
        before *= 2
    return [(first, min(end, last)) for first, end in ranges if first <= last]


def _gap(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Ranges of the batch sizes strictly between two reported ones."""
    first = low + 1
    while first < high:
        last = min(batch_cell(first), high - 1) if high <= CLOSE * low else high - 1
        yield first, last
        first = last + 1


def across_contexts(
    grid: Grid, contexts: Sequence[int], first: int, last: int, whole: bool
) -> list[RangeCurve | None]:
    """The curve of a range at each context.

    Args:
        whole: a batch size without a curve at a context does not fit there; None in its place,
            unless no context has one.
    """
    known = [_inside(grid, context, first, last) for context in contexts]
    if whole and any(known):
        return known
    largest = max(batch for batch, _ in grid)
    fits = {context for batch, context in grid if not whole or batch == largest}
    return [
        found or (_outside(grid, context, first, last) if context in fits else None)
        for context, found in zip(contexts, known, strict=True)
    ]


def deciding(across: Sequence[RangeCurve | None]) -> list[StepCurve]:
    """The curves that a range's K is chosen from: a context at which it was not measured has no
    say where others were, since such a batch may not fit there."""
    known = [at for at in across if at is not None]
    inside = [at.curve for at in known if at.place != "beyond"]
    return inside or [at.curve for at in known]


def _inside(grid: Grid, context: int, first: int, last: int) -> RangeCurve | None:
    """From curves of this very range, or around it."""
    batch_sizes = [batch for batch, at in grid if at == context]
    if first == last and first in batch_sizes:
        return RangeCurve(grid[first, context], "reported")
    below = max((b for b in batch_sizes if b <= first), default=None)
    above = min((b for b in batch_sizes if b >= last), default=None)
    if below is None or above is None:
        return None
    low, high = grid[below, context], grid[above, context]
    if above <= CLOSE * below:
        return RangeCurve(between(low, high, last), "close")
    return RangeCurve(slower(low, high), "between")


def _outside(grid: Grid, context: int, first: int, last: int) -> RangeCurve:
    """Inferred from the nearest batch size."""
    batch_sizes = [batch for batch, at in grid if at == context]
    if last < min(batch_sizes):
        return RangeCurve(smaller(grid[min(batch_sizes), context], last), "beyond")
    return RangeCurve(larger(grid[max(batch_sizes), context], last), "beyond")
