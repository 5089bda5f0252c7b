"""How far a pair's log ratio scatters, and what a shape's pairs come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vllm_nfp.surface.location import pseudo_median
from vllm_nfp.surface.parts import FloatArray
from vllm_nfp.types import Module

MANY = 6
"""Pairs of a shape from which on their pseudo-median withstands an outlier."""
USUAL_NOISE: Mapping[Module, float] = {
    Module.MODEL: 0.002,
    Module.DENSE_FFN: 0.005,
    Module.MOE_FFN: 0.03,
    Module.ATTENTION: 0.013,
    Module.COMMUNICATION: 0.04,
    Module.LINEAR_ATTENTION: 0.013,  # that of attention: not recorded yet
}
"""Standard deviation of a pair's log ratio until enough pairs tell, outliers left out. From the
pairs of benchmarks/results/2026-11-24-h100, -whole-models and 2026-11-25-h100x2-tensor-parallel."""
NOISE_WITH_EXPERTS = 0.02
"""Of the whole step where experts are routed: the two runs wake other ones. From the same pairs."""
USUAL_NOISE_WEIGHT = 6.0
"""Differences between pairs of one shape that the usual noise counts as."""
NOISE_WITHOUT_GRAPH = 0.15
"""Of a pair whose N positions run without a CUDA graph: the host's stops are in it."""
TORN = 3.0
"""Median distance of a shape's values from their center, in standard deviations of one, from which
on they do not agree: of two or more normal values that is one in 50 000 shapes. Half of them were
delayed, and the center may lie anywhere between."""
LEAST_DEVIATION = 0.001
"""However many pairs: the same shape, captured again, differs by so much."""
STEP_DEVIATION = 0.01
"""Of the median of some real steps."""
STEP_DEVIATION_WITH_EXPERTS = 0.05
"""The same where experts are routed: other tokens activate other ones. A choice, not a fit: real
steps of 1, 8 and 32 sequences took 0.96, 1.03 and 1.02 times as long as probes of one position
(benchmarks/results/2026-11-28-h200x2-at-defaults/moe, which was looked at)."""
BASELINE_DEVIATION, LEAST_BASELINE_DEVIATION = 0.03, 0.01
"""Of log t(1) in seconds: clocks move from run to run, and from minute to minute."""
FORGET_SECONDS = 1800.0
"""Age at which the variance of an observation has grown by DRIFT squared."""
DRIFT = 0.01


def scatter(gaps: Sequence[FloatArray], usual: float) -> float:
    """Standard deviation of one pair's log ratio, from the pairs of each shape.

    Args:
        gaps: of :func:`gaps_of`, for each shape.
        usual: what is assumed before many are known.
    """
    apart = np.concatenate([np.zeros(0), *gaps])
    if not len(apart):
        return usual
    # Of a normal difference of two the median size is 0.954 standard deviations of one.
    found = float(np.median(apart)) / 0.954
    weight = len(apart) / (len(apart) + USUAL_NOISE_WEIGHT)
    return float(np.exp(weight * np.log(max(found, 1e-4)) + (1 - weight) * np.log(usual)))


def gaps_of(values: FloatArray) -> FloatArray:
    """Differences between the first and second, third and fourth, ... value."""
    whole = values[: len(values) // 2 * 2]
    return np.asarray(np.abs(whole[1::2] - whole[::2]))


def center(sample: FloatArray) -> float:
    """The median of a few values, which one outlier moves little; the pseudo-median of many."""
    return pseudo_median(sample) if len(sample) >= MANY else float(np.median(sample))


def variance(
    deviation: FloatArray, samples: FloatArray, age: FloatArray, least: float = LEAST_DEVIATION
) -> FloatArray:
    """Of each shape's :func:`center`, so many seconds after its latest pair."""
    drift = DRIFT**2 * np.maximum(0.0, age) / FORGET_SECONDS
    of_median = np.where((samples < 3) | (samples >= MANY), 1.0, np.pi / 2.0)
    return np.asarray(of_median * deviation**2 / samples + least**2 + drift)
