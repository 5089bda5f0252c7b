"""The best draft length for each batch size and context, and one table for all contexts.

K drafted tokens run N = K + 1 positions. Compared with a server without speculation they gain
gain(K) = E(K) t(1) / (t(K + 1) + t_draft(K)); goodput is B E(K) / (t(K + 1) + t_draft(K)) tokens
per second (docs/theory.md, "Draft length").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vllm_nfp.draft.batch_cells import batch_cell
from vllm_nfp.draft.between import CLOSE, between, slower
from vllm_nfp.draft.curve import LARGEST_BATCH_SIZE, StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.rows import RowBasis, Schedule, ScheduleRange, ScheduleRow, weakest_of
from vllm_nfp.draft.sharing import shared_lengths
from vllm_nfp.types import Basis


def make_schedule(
    curves: Iterable[StepCurve],
    demand: Demand,
    max_batch_size: int | None = None,
    whole: bool = False,
) -> Schedule:
    """Best draft lengths for batch sizes 1 to ``max_batch_size`` (default: the largest measured).

    The table for all contexts has a K for each range of batch sizes. At the context where it loses
    most against the best K, its loss is within the slack of the least possible; see
    :func:`good_lengths`. Neighbouring ranges share a K where that costs little, see
    :func:`vllm_nfp.draft.sharing.shared_lengths`. A context at which a range was not measured is
    ignored there: such a batch may not fit into memory. A range that no context has measured gets
    K = 0.

    Between batch sizes at most a factor of two apart there are up to four ranges; the curve of each
    is that of its largest batch, see :func:`vllm_nfp.draft.curve.between`. Between others there is
    one, with the slower curve of the two.

    Args:
        whole: every batch size that fits at a context has its curve there, so that a range which
            has one at another context alone gets no row.

    Raises:
        ValueError: without a curve, or with two for the same cell.
    """
    grid = _grid(curves)
    contexts = sorted({context for _, context in grid})
    ranges = _ranges(sorted({batch for batch, _ in grid}), max_batch_size)
    found = [[_curve_for(grid, context, *of) for context in contexts] for of in ranges]
    lengths = shared_lengths(
        [_scores([at.curve for at in across if at.curve], demand) for across in found],
        demand.slack,
    )
    columns = [
        [
            _row(context, *of, at, demand, length)
            for context, at in zip(contexts, across, strict=True)
        ]
        for of, across, length in zip(ranges, found, lengths, strict=True)
    ]
    entries = [
        ScheduleRange(*of, length, _weakest(rows))
        for of, rows, length in zip(ranges, columns, lengths, strict=True)
    ]
    rows = tuple(
        row
        for across in zip(*columns, strict=True)
        for row, entry in zip(across, entries, strict=True)
        if not whole or row.basis != "unknown" or entry.basis == "unknown"
    )
    return Schedule(_merged(entries), rows)


def row_at(curve: StepCurve, demand: Demand) -> ScheduleRow:
    """The best draft length at one batch size and context alone."""
    at, size = _At(curve, "reported"), curve.batch_size
    return _row(curve.context, size, size, at, demand, best_length(curve, demand))


def best_length(curve: StepCurve, demand: Demand) -> int:
    """The shortest K within the slack of the best goodput."""
    return min(good_lengths([curve], demand))


def good_lengths(curves: Sequence[StepCurve], demand: Demand) -> frozenset[int]:
    """Every K that is good enough for all of these curves; K = 0 alone without a curve.

    The score of a K is its gain over the best gain, at the curve where that is smallest. A K is
    good enough if its score is within the slack of the best score, and it loses to K = 0 nowhere.
    """
    scores = _scores(curves, demand)
    enough = (1.0 - demand.slack) * max(scores.values())
    return frozenset(k for k, score in scores.items() if score >= enough)


def _scores(curves: Sequence[StepCurve], demand: Demand) -> dict[int, float]:
    """The score of each K that loses to K = 0 nowhere."""
    if not curves:
        return {0: 1.0}
    best = [max(demand.gain(curve, k) for k in demand.lengths(curve)) for curve in curves]
    scores: dict[int, float] = {}
    for k in min((demand.lengths(curve) for curve in curves), key=len):
        gains = [demand.gain(curve, k) for curve in curves]
        if all(g >= demand.gain(at, 0) for g, at in zip(gains, curves, strict=True)):
            scores[k] = min(gain / top for gain, top in zip(gains, best, strict=True))
    return scores


def _grid(curves: Iterable[StepCurve]) -> dict[tuple[int, int], StepCurve]:
    grid: dict[tuple[int, int], StepCurve] = {}
    for curve in curves:
        cell = (curve.batch_size, curve.context)
        if cell in grid:
            raise ValueError(f"two curves for batch size {cell[0]} and context {cell[1]}")
        grid[cell] = curve
    if not grid:
        raise ValueError("there is no curve of the whole step to choose draft lengths from")
    return grid


def _ranges(batch_sizes: Sequence[int], max_batch_size: int | None) -> list[tuple[int, int]]:
    """Reported batch sizes one by one, and the gaps before, between and after them."""
    last = batch_sizes[-1] if max_batch_size is None else max_batch_size
    if not 1 <= last <= LARGEST_BATCH_SIZE:
        raise ValueError(f"max_batch_size must lie from 1 to {LARGEST_BATCH_SIZE}, not {last}")
    ranges: list[tuple[int, int]] = []
    before = 0
    for batch_size in batch_sizes:
        ranges += [*_gap(before, batch_size), (batch_size, batch_size)]
        before = batch_size
    ranges.append((before + 1, max(before + 1, last)))
    return [(first, min(end, last)) for first, end in ranges if first <= last]


def _gap(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Ranges of the batch sizes strictly between two reported ones."""
    first = low + 1
    while first < high:
        last = min(batch_cell(first), high - 1) if high <= CLOSE * low else high - 1
        yield first, last
        first = last + 1


@dataclass(frozen=True, slots=True)
class _At:
    """The curve for a range of batch sizes at one context."""

    curve: StepCurve | None
    place: Literal["reported", "close", "between", "unknown"]

    def basis(self, draft_length: int) -> RowBasis:
        if self.curve is None:
            return "unknown"
        found = self.curve.basis(draft_length + 1)
        return "between" if self.place == "between" and found == Basis.MEASURED else found


def _curve_for(
    grid: Mapping[tuple[int, int], StepCurve], context: int, first: int, last: int
) -> _At:
    batch_sizes = [batch for batch, at in grid if at == context]
    if first == last and first in batch_sizes:
        return _At(grid[first, context], "reported")
    below = max((b for b in batch_sizes if b <= first), default=None)
    above = min((b for b in batch_sizes if b >= last), default=None)
    if below is None or above is None:
        return _At(None, "unknown")
    low, high = grid[below, context], grid[above, context]
    if above <= CLOSE * below:
        return _At(between(low, high, last), "close")
    return _At(slower(low, high), "between")


def _row(
    context: int, first: int, last: int, at: _At, demand: Demand, scheduled: int
) -> ScheduleRow:
    curve = at.curve
    if curve is None:
        return ScheduleRow(
            context, first, last, "unknown", 0, 1.0, 1.0, 0.0, None, None, 1.0, None, False, False,
            scheduled, None if scheduled else 1.0,
        )  # fmt: skip
    best = best_length(curve, demand)
    free, free_at_limit = curve.free_positions(demand.epsilon)
    gain = demand.gain(curve, best)
    lower, upper = demand.gain_interval(curve, best)
    without = first / curve.seconds_at_one if at.place == "reported" else None
    return ScheduleRow(
        context=context,
        batch_size_first=first,
        batch_size_last=last,
        basis=at.basis(best),
        draft_length=best,
        expected_tokens=demand.acceptance.expected_tokens(best),
        step_ratio=curve.ratio(best + 1),
        draft_ratio=demand.cost.ratio(best, curve),
        tokens_per_second=None if without is None else without * gain,
        tokens_per_second_without=without,
        gain=gain,
        free_draft_length=free - 1,
        free_at_limit=free_at_limit,
        at_limit=best == demand.longest(curve) and not demand.is_cap(best),
        scheduled_draft_length=scheduled,
        scheduled_gain=demand.gain(curve, scheduled),
        between=at.place != "reported",
        gain_lower=lower or None,
        gain_upper=upper if upper < math.inf else None,
    )


def _weakest(rows: Iterable[ScheduleRow]) -> RowBasis:
    """Of one range at all contexts; a context without a curve has no say."""
    known = [row.basis for row in rows if row.basis != "unknown"]
    return weakest_of(known)


def _merged(ranges: Sequence[ScheduleRange]) -> tuple[ScheduleRange, ...]:
    merged: list[ScheduleRange] = []
    for entry in ranges:
        if merged and merged[-1].draft_length == entry.draft_length:
            before = merged.pop()
            basis = weakest_of((before.basis, entry.basis))
            entry = replace(  # noqa: PLW2901
                entry, batch_size_first=before.batch_size_first, basis=basis
            )
        merged.append(entry)
    return tuple(merged)
