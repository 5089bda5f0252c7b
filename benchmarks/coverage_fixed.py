"""How often the estimator's intervals hold the truth with the same number of pairs everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.simulated_pairs import (
    CELL,
    EPSILON,
    GRID,
    Disturbance,
    boundary_of,
    median_factor,
    pairs_of,
    random_staircase,
    staircase_at_the_line,
)
from vllm_nfp.estimate import estimate_cell


@dataclass(frozen=True, slots=True)
class Coverage:
    """Fractions of trials whose interval held the truth.

    Attributes:
        ratio, median: of t(N) / t(1) and of t(N), over all points of all trials.
        boundary: of NFP on random staircases.
        boundary_at_line: of NFP on staircases with a point at the line, the hard case.
        decided_at_line: fraction of those whose interval is one grid point.
        exact: fraction of random staircases whose estimate is the truth.
    """

    samples: int
    trials: int
    ratio: float
    median: float
    boundary: float
    boundary_at_line: float
    decided_at_line: float
    exact: float


def cover(disturb: Disturbance, samples: int, trials: int, seed: int = 0) -> Coverage:
    """Simulate one cell of the table."""
    rng = np.random.default_rng((seed, samples))
    middle = median_factor(disturb, np.random.default_rng(seed))
    ratios_held = medians_held = 0
    held = exact = held_at_line = decided = 0
    for _ in range(trials):
        truth = random_staircase(rng)
        found = estimate_cell(CELL, pairs_of(rng, truth, samples, disturb), (EPSILON,))
        assert found is not None
        for ratio, point in zip(truth, found.curve[1:], strict=True):
            ratios_held += point.ratio_lower <= ratio <= point.ratio_upper
            medians_held += point.seconds_lower <= 0.01 * ratio * middle <= point.seconds_upper
        line, nfp = found.boundaries[0], boundary_of(truth, EPSILON)
        held += line.lower <= nfp <= line.upper
        exact += line.positions == nfp
        truth = staircase_at_the_line(rng, samples, EPSILON)
        found = estimate_cell(CELL, pairs_of(rng, truth, samples, disturb), (EPSILON,))
        assert found is not None
        line, nfp = found.boundaries[0], boundary_of(truth, EPSILON)
        held_at_line += line.lower <= nfp <= line.upper
        decided += line.lower == line.upper
    points = trials * len(GRID)
    return Coverage(
        samples,
        trials,
        ratios_held / points,
        medians_held / points,
        held / trials,
        held_at_line / trials,
        decided / trials,
        exact / trials,
    )
