"""What the estimates so far mean for the plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from vllm_nfp.config import ProbeConfig
from vllm_nfp.estimate import CellEstimate
from vllm_nfp.give_way import in_pieces
from vllm_nfp.schedule.plan import CellKey, Feedback
from vllm_nfp.types import Shape

FAR_OVER = 3.0
"""A point is far over every line if its ratio exceeds 1 by this many times the largest epsilon."""
ESTIMATES_AT_A_TIME = 64
"""Estimates that are worked through before a pause: some 0.2 ms."""


def feedback_of(estimates: Iterable[CellEstimate], config: ProbeConfig) -> Feedback:
    """Which points to sample again, and beyond which count nothing is urgent.

    All points up to that count get as many pairs as are kept, wherever they lie. A point's
    number of pairs must not depend on its own times: were it sampled while its interval
    crosses a line, and no longer when it does not, then the wrong intervals would stay.
    """
    points: dict[CellKey, dict[int, int]] = defaultdict(dict)
    far: dict[CellKey, list[int]] = defaultdict(list)
    limit = 1.0 + FAR_OVER * max(config.epsilons)
    modules: dict[CellKey, int] = defaultdict(int)
    for estimate in in_pieces(estimates, ESTIMATES_AT_A_TIME):
        key = (estimate.cell.batch_size, estimate.cell.context)
        modules[key] += 1
        beyond = [point.positions for point in estimate.curve if point.ratio_lower > limit]
        if beyond:
            far[key].append(min(beyond))
        points[key] |= {point.positions: point.samples for point in estimate.curve[1:]}
    # Beyond a count nothing is urgent only if every module of the cell is far over there.
    far_over = {key: max(ns) for key, ns in far.items() if len(ns) == modules[key]}
    uncertain = {
        Shape(*key, positions)
        for key, samples in points.items()
        for positions, pairs in samples.items()
        if pairs < config.max_samples and positions <= far_over.get(key, positions)
    }
    return Feedback(frozenset(uncertain), far_over)
