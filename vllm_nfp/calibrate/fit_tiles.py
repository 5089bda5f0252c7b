"""Fits the constants of tiled products, whose times step with the plan that is the fastest."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from vllm_nfp.principle.terms import FloatArray
from vllm_nfp.principle.tiled import TILED_BOUNDS, TiledConstants

STARTS = tuple(itertools.product((1e-6, 4e-6), (2.0, 5.0)))
"""Seconds of a split and L2's rate from where the search begins: which plans win depends on them.
"""
STEP = 0.03
"""Of a logarithm in a derivative: less falls between two steps of the times, and sees none."""
TOLERANCE = 0.06
"""Error from which the loss is linear."""
PRIOR = 0.02
"""Weight of a constant's change, in logarithms over the deviations below, for each curve."""
DEVIATIONS = {"bandwidth": 0.1, "flops": 0.3, "l2_bandwidth": 0.7, "kernel_seconds": 0.5,
              "fill": 1.0, "split_seconds": 1.0, "split_traffic": 1.0}  # fmt: skip
CENTRE = {"bandwidth": 0.86, "flops": 0.85, "l2_bandwidth": 3.0, "kernel_seconds": 3e-6,
          "fill": 1.0, "split_seconds": 1e-6, "split_traffic": 1.0}  # fmt: skip
"""What a constant is expected to be before any data: of no device."""
MOST_EVALUATIONS = 40


def fit_tiles(errors: Callable[[TiledConstants], FloatArray], curves: int) -> TiledConstants:
    """The constants with the least errors, of the best of several starts.

    Args:
        errors: of constants, in logarithms of seconds, weighted.
        curves: how many curves they are of.

    Raises:
        ImportError: without scipy.
    """
    from scipy.optimize import least_squares

    names = tuple(CENTRE)
    deviations = np.array([DEVIATIONS[name] for name in names])
    centre = np.array(list(CENTRE.values()))
    ends = np.array([TILED_BOUNDS[name] for name in names])
    least, most = np.maximum(ends[:, 0], 1e-9 * centre), ends[:, 1]

    def constants_of(logs: FloatArray) -> TiledConstants:
        found = np.clip(centre * np.exp(logs - 1.0), least, most)
        return TiledConstants(**dict(zip(names, found.tolist(), strict=True)))

    def all_errors(logs: FloatArray) -> FloatArray:
        prior = PRIOR * np.sqrt(curves) * (logs - 1.0) / deviations
        return np.concatenate([errors(constants_of(logs)), prior])

    found = []
    for split_seconds, l2_bandwidth in STARTS:
        start = centre.copy()
        start[names.index("split_seconds")] = split_seconds
        start[names.index("l2_bandwidth")] = l2_bandwidth
        # Logarithms are moved by 1: scipy's steps are shares of them, and none of 0.
        found.append(
            least_squares(
                all_errors,
                1.0 + np.log(start / centre),
                bounds=(1.0 + np.log(least / centre) - 1e-6, 1.0 + np.log(most / centre) + 1e-6),
                loss="soft_l1",
                f_scale=TOLERANCE,
                diff_step=STEP,
                max_nfev=MOST_EVALUATIONS,
            )
        )
    best = min(found, key=lambda one: float(one.cost))
    return constants_of(np.asarray(best.x))
