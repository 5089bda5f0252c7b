"""The best draft length for each batch size and context, and one table for all contexts.

K drafted tokens run N = K + 1 positions. Compared with a server without speculation they gain
gain(K) = E(K) t(1) / (t(K + 1) + t_draft(K)); goodput is B E(K) / (t(K + 1) + t_draft(K)) tokens
per second (docs/theory.md, "Draft length").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.established import established, established_scores
from vllm_nfp.draft.ranges import RangeCurve, across_contexts, deciding, grid_of, ranges_of
from vllm_nfp.draft.rows import Schedule, ScheduleRange, ScheduleRow, weakest_of
from vllm_nfp.draft.sharing import SHARING_LOSS, shared_lengths, shortest_good
from vllm_nfp.give_way import in_pieces
from vllm_nfp.types import Basis

A_RANGE = 1
"""Ranges between two pauses: some 0.5 ms each, in a server's own process."""
ROUNDING = 1e-9
"""What two ways to the same bound may differ by."""


def make_schedule(
    curves: Iterable[StepCurve],
    demand: Demand,
    max_batch_size: int | None = None,
    whole: bool = False,
) -> Schedule:
    """Best draft lengths for batch sizes 1 to ``max_batch_size`` (default: the largest measured).

    There is one K for each range of batch sizes, since vLLM's table knows no context. At the
    context where it loses most against the best K, its loss is within the slack of the least
    possible; see :func:`good_lengths`. Neighbouring ranges share a K where that costs little, see
    :func:`vllm_nfp.draft.sharing.shared_lengths`. After a range with K = 0 drafts need to be
    established, see :mod:`vllm_nfp.draft.established`. Every place that names a draft length names
    this one.

    Between batch sizes at most a factor of two apart there are up to four ranges; the curve of each
    is that of its largest batch, see :func:`vllm_nfp.draft.between.between`. Between others there
    is one, with the slower curve of the two. Batch sizes outside those that were measured are
    inferred from the nearest one.

    Args:
        whole: every batch size that fits at a context has its curve there, so that a range which
            has one at another context alone gets no row.

    Raises:
        ValueError: without a curve, or with two for the same cell.
    """
    grid = grid_of(curves)
    contexts = sorted({context for _, context in grid})
    ranges = ranges_of(grid, max_batch_size)
    found = [across_contexts(grid, contexts, *of, whole) for of in in_pieces(ranges, A_RANGE)]
    each = (deciding(across) for across in in_pieces(found, A_RANGE))
    scored = ((_scores(curves, demand), curves) for curves in each)
    lengths = shared_lengths([*established_scores(scored, demand)], demand.slack)
    columns = [
        [
            None
            # Inferred steps may be known for fewer positions than K takes.
            if at is None or length >= at.curve.largest
            else _row(context, *of, at, demand, length)
            for context, at in zip(contexts, across, strict=True)
        ]
        for of, across, length in in_pieces(zip(ranges, found, lengths, strict=True), A_RANGE)
    ]
    entries = [
        ScheduleRange(*of, length, weakest_of(row.basis for row in rows if row))
        for of, rows, length in zip(ranges, columns, lengths, strict=True)
    ]
    rows = tuple(row for across in zip(*columns, strict=True) for row in across if row)
    return Schedule(_merged(entries), rows)


def row_at(
    curve: StepCurve,
    demand: Demand,
    schedule: Schedule | None = None,
    settled: int | None = None,
) -> ScheduleRow:
    """The draft length at one batch size and context; see :func:`length_at`."""
    size = curve.batch_size
    length, basis = length_at(curve, demand, schedule, settled)
    row = _row(curve.context, size, size, RangeCurve(curve, "reported"), demand, length)
    return replace(row, basis=basis)


def length_at(
    curve: StepCurve,
    demand: Demand,
    schedule: Schedule | None = None,
    settled: int | None = None,
) -> tuple[int, Basis]:
    """The draft length at one batch size and context, and what it rests on.

    Args:
        schedule: its K counts where it is good enough here; otherwise the best K here.
        settled: what draft control has measured here with real steps; it goes before all else.
    """
    if settled is not None and settled in demand.lengths(curve):
        return settled, Basis.MEASURED
    served = None if schedule is None else schedule.length_of(curve.batch_size)
    scores = _scores_beside(served, curve, demand)
    good = served is not None and _suffices(served, scores, demand)
    length = served if served is not None and good else shortest_good(scores, demand.slack)
    return length, curve.basis(length + 1)


def _scores_beside(served: int | None, curve: StepCurve, demand: Demand) -> Mapping[int, float]:
    """The scores at one cell of a table: beside its K = 0, only what is established."""
    scores = _scores([curve], demand)
    return established(scores, [curve], demand) if served == 0 else scores


def _suffices(length: int, scores: Mapping[int, float], demand: Demand) -> bool:
    """Whether a length loses no more than slack and sharing allow."""
    enough = (1.0 - SHARING_LOSS) * (1.0 - demand.slack) * max(scores.values())
    return scores.get(length, 0.0) >= enough * (1.0 - ROUNDING)


def best_length(curve: StepCurve, demand: Demand) -> int:
    """The shortest K within the slack of the best goodput."""
    return shortest_good(_scores([curve], demand), demand.slack)


def good_lengths(curves: Sequence[StepCurve], demand: Demand) -> frozenset[int]:
    """Every K that is good enough for all of these curves.

    The score of a K is its gain over the best gain, at the curve where that is smallest. A K is
    good enough if its score is within the slack of the best score, and it loses to K = 0 nowhere.
    """
    scores = _scores(curves, demand)
    enough = (1.0 - demand.slack) * max(scores.values())
    return frozenset(k for k, score in scores.items() if score >= enough)


def _scores(curves: Sequence[StepCurve], demand: Demand) -> dict[int, float]:
    """The score of each K that loses to K = 0 nowhere."""
    gains = [{k: demand.gain(curve, k) for k in demand.lengths(curve)} for curve in curves]
    best = [max(of.values()) for of in gains]
    return {
        k: min(of[k] / top for of, top in zip(gains, best, strict=True))
        for k in min(gains, key=len)
        if all(of[k] >= of[0] for of in gains)
    }


def _row(
    context: int, first: int, last: int, at: RangeCurve, demand: Demand, length: int
) -> ScheduleRow:
    curve = at.curve
    scores = _scores_beside(length, curve, demand)
    enough = _suffices(length, scores, demand)
    alone = None if enough else shortest_good(scores, demand.slack)
    free, free_at_limit = curve.free_positions(demand.epsilon)
    gain = demand.gain(curve, length)
    lower, upper = demand.gain_interval(curve, length)
    without = (
        first / (curve.seconds_at_one + demand.host_seconds) if at.place == "reported" else None
    )
    over = demand.gain_over(curve, length, demand.running)
    return ScheduleRow(
        context=context,
        batch_size_first=first,
        batch_size_last=last,
        basis=at.basis(length),
        draft_length=length,
        expected_tokens=demand.acceptance.expected_tokens(length),
        step_ratio=max(1.0, curve.ratio(length + 1)),
        draft_ratio=demand.cost.ratio(length, curve),
        tokens_per_second=None if without is None else without * gain,
        tokens_per_second_without=without,
        gain=gain,
        free_draft_length=free - 1,
        free_at_limit=free_at_limit,
        at_limit=length == demand.longest(curve) and not demand.is_cap(length),
        scheduled_draft_length=length,
        scheduled_gain=gain,
        between=at.place != "reported",
        gain_lower=lower or None,
        gain_upper=upper if upper < math.inf else None,
        alone_draft_length=alone,
        alone_gain=None if alone is None else demand.gain(curve, alone),
        running_draft_length=demand.running,
        gain_over_running=None if over is None else over.value,
        gain_over_running_lower=None if over is None else over.lower,
        gain_over_running_upper=None if over is None else over.upper,
    )


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
