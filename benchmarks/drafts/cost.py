"""What the drafts of benchmarks.drafts.lengths cost, as ``recommend`` takes it: measured there.

N-gram lookup costs the same at every length, and so little that it is assumed free. A head costs
its time for each drafted token. That time is what a server's own controller reports as
``vllm_nfp_draft_token_seconds``: the median over the batch sizes of all controllers of the run.
Where none has measured it yet, it is computed in the same way from the round of the fixed lengths.
"""

from __future__ import annotations

import functools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.serving.shapes import DRAFT_HEADS
from vllm_nfp.draft import StepCurve
from vllm_nfp.draft.demand import FREE, DraftCost
from vllm_nfp.draft.inputs import StepTimes, source_of
from vllm_nfp.draft.live import draft_token_seconds

METHODS = ("ngram_gpu", *DRAFT_HEADS)

Row = Mapping[str, Any]


def draft_cost(
    method: str, told: Iterable[Row], rounds: Iterable[Row], source: StepTimes
) -> DraftCost:
    """The cost of a method's drafts.

    Args:
        told: what the controllers report; ``draft_seconds`` is by batch size.
        rounds: measured rounds of all fixed lengths.
        source: the probe's curves, which separate verification from drafting in the rounds.

    Raises:
        ValueError: for a head whose cost neither of them contains.
    """
    if method not in DRAFT_HEADS:
        return FREE
    seconds = [value for row in told for value in row["draft_seconds"].values() if value > 0.0]
    seconds = seconds or _round_seconds(rounds, source_of(source).curves)
    if not seconds:
        raise ValueError(
            f"the cost of a token drafted by {method} was not measured: measure for longer"
        )
    return DraftCost(seconds_per_token=statistics.median(seconds))


def _round_seconds(rounds: Iterable[Row], curves: Sequence[StepCurve]) -> list[float]:
    """One for each context and batch size that has a curve."""
    cells: dict[tuple[int, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rounds:
        for length, seconds in row["medians"].items():
            cells[row["context"], row["batch_size"]][int(length)].append(seconds)
    found = []
    for (context, batch_size), lengths in cells.items():
        curve = _curve_at(curves, context, batch_size)
        medians = {length: statistics.median(times) for length, times in lengths.items()}
        if curve is not None:
            found.append(draft_token_seconds(medians, functools.partial(_ratio, curve)))
    return [seconds for seconds in found if seconds]


def _curve_at(curves: Sequence[StepCurve], context: int, batch_size: int) -> StepCurve | None:
    """The curve of this batch size at the context, or the nearest one that was probed."""
    near = [curve for curve in curves if curve.batch_size == batch_size]
    return min(near, key=lambda curve: abs(curve.context - context), default=None)


def _ratio(curve: StepCurve, positions: int) -> float | None:
    return curve.ratio_between(positions) if positions <= curve.largest else None
