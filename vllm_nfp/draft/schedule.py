"""The best draft length for each batch size and context, and one table for all contexts.

K drafts run N = K + 1 positions. Over a server without speculation they win
gain(K) = E(K) t(1) / (t(K + 1) + t_draft(K)); goodput is B E(K) / (t(K + 1) + t_draft(K)) tokens
per second (docs/theory.md, "Draft length").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_nfp.draft.curve import LARGEST_BATCH_SIZE, StepCurve, slower
from vllm_nfp.draft.demand import Demand

Basis = Literal["measured", "between", "unknown"]
"""Whether the batch sizes of a row were measured, lie between measured ones, or beyond them."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """The best draft length for a range of batch sizes at one context."""

    context: int
    batch_size_first: int
    batch_size_last: int
    basis: Basis
    draft_length: int
    """Best K at this context; 0 where drafts lose or nothing was measured."""
    expected_tokens: float
    """E(K), a sequence's tokens per step."""
    step_ratio: float
    """t(K + 1) / t(1), the drafts' own time left out."""
    draft_ratio: float
    """t_draft(K) / t(1)."""
    tokens_per_second: float | None
    """Goodput of the whole batch; None for batch sizes that were not measured."""
    tokens_per_second_without: float | None
    """The same without speculation."""
    gain: float
    """Goodput over that without speculation; between measured batch sizes: at least this. Below 1
    where a drafting model's own time loses more than any K wins."""
    free_draft_length: int | None
    """NFP - 1: drafts that stay within (1 + epsilon) of the step without; None: not known."""
    free_at_limit: bool
    """No measured count was over the line: more may be free."""
    at_limit: bool
    """K is the largest that could be judged: more drafts may be better still."""
    scheduled_draft_length: int
    """K of the table for all contexts."""
    scheduled_gain: float | None
    """What that K wins here; None: not known, since it rests on other contexts."""

    @property
    def length_text(self) -> str:
        """K as people read it: 7, 7+ at the limit, 0? where nothing was measured."""
        if self.basis == "unknown":
            return "0?"
        return f"{self.draft_length}{'+' if self.at_limit else ''}"


@dataclass(frozen=True, slots=True)
class ScheduleRange:
    """One entry of a table by batch size."""

    batch_size_first: int
    batch_size_last: int
    draft_length: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Draft lengths by batch size."""

    ranges: tuple[ScheduleRange, ...]
    """Merged, from batch size 1 on; over all contexts."""
    rows: tuple[ScheduleRow, ...]
    """Each range of batch sizes at each context, before merging."""

    @property
    def longest(self) -> int:
        """Largest K in it."""
        return max(entry.draft_length for entry in self.ranges)

    @property
    def pays(self) -> bool:
        """Whether drafts beat a server without speculation anywhere."""
        return any(
            row.scheduled_draft_length and (row.scheduled_gain or 0.0) > 1.0 for row in self.rows
        )


def make_schedule(
    curves: Iterable[StepCurve], demand: Demand, max_batch_size: int | None = None
) -> Schedule:
    """Best draft lengths for batch sizes 1 to ``max_batch_size`` (default: the largest measured).

    The table for all contexts has, for each range of batch sizes, a K whose loss against the best
    K, at the context where that loss is largest, is within the slack of the least; see
    :func:`good_lengths`. Neighbouring ranges share a K wherever one is good enough for both: each
    distinct K has CUDA graphs of its own. A context at which a range was not measured has no say in
    it: a batch that large may not fit into memory there. What no context has measured gets K = 0.

    Raises:
        ValueError: without a curve, or with two for the same cell.
    """
    grid = _grid(curves)
    contexts = sorted({context for _, context in grid})
    ranges = _ranges(sorted({batch for batch, _ in grid}), max_batch_size)
    good: list[frozenset[int]] = []
    for first, last in ranges:
        found = (_curve_for(grid, context, first, last)[0] for context in contexts)
        good.append(good_lengths([curve for curve in found if curve is not None], demand))
    lengths = _shared(good)
    rows = [
        _row(context, first, last, *_curve_for(grid, context, first, last), demand, scheduled)
        for context in contexts
        for (first, last), scheduled in zip(ranges, lengths, strict=True)
    ]
    entries = [ScheduleRange(*of, length) for of, length in zip(ranges, lengths, strict=True)]
    return Schedule(_merged(entries), tuple(rows))


def best_length(curve: StepCurve, demand: Demand) -> int:
    """The shortest K within the slack of the best goodput."""
    return min(good_lengths([curve], demand))


def good_lengths(curves: Sequence[StepCurve], demand: Demand) -> frozenset[int]:
    """Every K that is good enough for all of these curves; K = 0 alone without a curve.

    A K's share at a curve is its gain over the best gain there. Good enough is a K whose smallest
    share is within the slack of the largest such, and that loses to K = 0 at no curve.
    """
    if not curves:
        return frozenset({0})
    best = [max(demand.gain(curve, k) for k in demand.lengths(curve)) for curve in curves]
    shares: dict[int, float] = {}
    for k in min((demand.lengths(curve) for curve in curves), key=len):
        gains = [demand.gain(curve, k) for curve in curves]
        if all(g >= demand.gain(at, 0) for g, at in zip(gains, curves, strict=True)):
            shares[k] = min(gain / top for gain, top in zip(gains, best, strict=True))
    enough = (1.0 - demand.slack) * max(shares.values())
    return frozenset(k for k, share in shares.items() if share >= enough)


def _shared(good: Sequence[frozenset[int]]) -> tuple[int, ...]:
    """A length for each set, the same for as many neighbours as have one in common."""
    lengths: list[int] = []
    common: frozenset[int] = frozenset()
    members = 0
    for lengths_here in (*good, frozenset[int]()):
        if members and not common & lengths_here:
            lengths += [min(common)] * members
            members = 0
        common = common & lengths_here if members else lengths_here
        members += 1
    return tuple(lengths)


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
    """Measured batch sizes one by one, and the gaps between, before and behind them."""
    last = batch_sizes[-1] if max_batch_size is None else max_batch_size
    if not 1 <= last <= LARGEST_BATCH_SIZE:
        raise ValueError(f"max_batch_size must lie from 1 to {LARGEST_BATCH_SIZE}, not {last}")
    ranges: list[tuple[int, int]] = []
    start = 1
    for batch_size in batch_sizes:
        if batch_size > start:
            ranges.append((start, batch_size - 1))
        ranges.append((batch_size, batch_size))
        start = batch_size + 1
    ranges.append((start, max(start, last)))
    return [(first, min(end, last)) for first, end in ranges if first <= last]


def _curve_for(
    grid: Mapping[tuple[int, int], StepCurve], context: int, first: int, last: int
) -> tuple[StepCurve | None, Basis]:
    """The curve that batch sizes first to last go by at this context."""
    batch_sizes = [batch for batch, at in grid if at == context]
    if first == last and first in batch_sizes:
        return grid[first, context], "measured"
    below = max((b for b in batch_sizes if b <= first), default=None)
    above = min((b for b in batch_sizes if b >= last), default=None)
    if below is None or above is None:
        return None, "unknown"
    return slower(grid[below, context], grid[above, context]), "between"


def _row(
    context: int,
    first: int,
    last: int,
    curve: StepCurve | None,
    basis: Basis,
    demand: Demand,
    scheduled: int,
) -> ScheduleRow:
    if curve is None:
        return ScheduleRow(
            context, first, last, basis, 0, 1.0, 1.0, 0.0, None, None, 1.0, None, False, False,
            scheduled, None if scheduled else 1.0,
        )  # fmt: skip
    best = best_length(curve, demand)
    free, free_at_limit = curve.free_positions(demand.epsilon)
    gain = demand.gain(curve, best)
    without = first / curve.seconds_at_one if basis == "measured" else None
    return ScheduleRow(
        context=context,
        batch_size_first=first,
        batch_size_last=last,
        basis=basis,
        draft_length=best,
        expected_tokens=demand.acceptance.expected_tokens(best),
        step_ratio=curve.ratio(best + 1),
        draft_ratio=demand.cost.ratio(best, curve.seconds_at_one),
        tokens_per_second=None if without is None else without * gain,
        tokens_per_second_without=without,
        gain=gain,
        free_draft_length=free - 1,
        free_at_limit=free_at_limit,
        at_limit=best == demand.longest(curve) and not demand.is_cap(best),
        scheduled_draft_length=scheduled,
        scheduled_gain=demand.gain(curve, scheduled),
    )


def _merged(ranges: Sequence[ScheduleRange]) -> tuple[ScheduleRange, ...]:
    merged: list[ScheduleRange] = []
    for entry in ranges:
        if merged and merged[-1].draft_length == entry.draft_length:
            start = merged.pop().batch_size_first
            entry = ScheduleRange(start, entry.batch_size_last, entry.draft_length)  # noqa: PLW2901
        merged.append(entry)
    return tuple(merged)
