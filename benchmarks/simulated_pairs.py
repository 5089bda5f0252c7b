"""Simulated pairs of times over random staircases, disturbed as those of real GPUs are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.types import Cell, Module, Pair

Floats = NDArray[np.float64]
GRID = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
CELL = Cell(Module.MODEL, 8, 1024)
EPSILON = 0.1
SAMPLES = (6, 7, 8, 12, 20, 32, 100)
"""Pairs at a point: min_samples, a few on the way, max_samples, and a longer ring."""
NOISE = 0.01
"""Relative spread of a time about its median, in most kinds of disturbance."""


@dataclass(frozen=True, slots=True)
class Times:
    """Factors by which times differ from their medians, all of shape [pairs].

    Attributes:
        many, one: of the member at N and at one position.
        drift: of both members of a pair, with a mean over time of 1.
    """

    many: Floats
    one: Floats
    drift: Floats


Disturbance = Callable[[np.random.Generator, int], Times]


def lognormal(rng: np.random.Generator, samples: int) -> Times:
    """Noise of many small causes."""
    many, one = np.exp(NOISE * rng.standard_normal((2, samples)))
    return Times(many, one, np.ones(samples))


def heavy_tails(rng: np.random.Generator, samples: int) -> Times:
    """Student's t with two degrees of freedom, whose variance is infinite."""
    many, one = np.exp(NOISE * rng.standard_t(2, (2, samples)))
    return Times(many, one, np.ones(samples))


def skewed(rng: np.random.Generator, samples: int) -> Times:
    """Delays only, never a head start: a time has a floor."""
    many, one = np.exp(2 * NOISE * (rng.exponential(1.0, (2, samples)) - math.log(2.0)))
    return Times(many, one, np.ones(samples))


def outliers(rng: np.random.Generator, samples: int) -> Times:
    """One time in twenty is two to six times too slow."""
    times = lognormal(rng, samples)
    slow = np.where(rng.random((2, samples)) < 0.05, rng.uniform(2.0, 6.0, (2, samples)), 1.0)
    return Times(times.many * slow[0], times.one * slow[1], times.drift)


def drift(rng: np.random.Generator, samples: int) -> Times:
    """A clock that falls by a tenth and swings besides while the pairs are taken."""
    times = lognormal(rng, samples)
    at = np.sort(rng.random(samples))
    swing = 0.03 * np.sin(2 * math.pi * (3 * at + rng.random()))
    return Times(times.many, times.one, np.exp(0.1 * (at - 0.5) + swing))


def everything(rng: np.random.Generator, samples: int) -> Times:
    """Skew, outliers and drift together."""
    delayed, slow, drifting = skewed(rng, samples), outliers(rng, samples), drift(rng, samples)
    return Times(delayed.many * slow.many, delayed.one * slow.one, drifting.drift)


def one_sided(rng: np.random.Generator, samples: int) -> Times:
    """Beyond what is assumed: N is delayed, and its pair's baseline is not."""
    times = lognormal(rng, samples)
    delays = np.exp(3 * NOISE * (rng.exponential(1.0, samples) - math.log(2.0)))
    return Times(delays, times.one, times.drift)


DISTURBANCES: Mapping[str, Disturbance] = {
    "lognormal": lognormal,
    "heavy tails": heavy_tails,
    "skewed": skewed,
    "outliers": outliers,
    "drift": drift,
    "skew, outliers, drift": everything,
}
"""What the intervals are made for; :func:`one_sided` is what they are not."""


def random_staircase(rng: np.random.Generator) -> Floats:
    """t(n) / t(1) on the grid: steps of random width and height, slopes, dips that are free again.

    Shape [len(GRID)].
    """
    step = rng.random(len(GRID)) < rng.uniform(0.1, 0.7)
    height = np.where(step, rng.uniform(0.02, 0.4, len(GRID)), 0.0)
    ratios = np.cumprod(1.0 + height) * (1.0 + rng.uniform(0.0, 0.01) * np.arange(len(GRID)))
    dips = np.where(rng.random(len(GRID)) < 0.15, rng.uniform(0.85, 1.0, len(GRID)), 1.0)
    found: Floats = np.maximum(ratios * dips, 0.9)
    return found


def staircase_at_the_line(rng: np.random.Generator, samples: int, epsilon: float) -> Floats:
    """The same, scaled so that one point is at the line, a little over or under it."""
    ratios = random_staircase(rng)
    error = NOISE * math.sqrt(2.0 / samples)
    at = rng.integers(len(GRID))
    moved = (1.0 + epsilon) * math.exp(error * rng.uniform(-0.05, 0.05)) / ratios[at]
    # What comes before stays clearly under the line, so that the point decides the boundary.
    before = np.arange(len(GRID)) < at
    placed: Floats = np.where(before, np.minimum(ratios * moved, 1.0 + epsilon / 2), ratios * moved)
    return placed


def boundary_of(ratios: Sequence[float] | Floats, epsilon: float) -> int:
    """NFP by its definition, on the grid."""
    last = 1
    for n, ratio in zip(GRID, ratios, strict=True):
        if ratio > 1.0 + epsilon:
            break
        last = n
    return last


def pairs_of(
    rng: np.random.Generator, ratios: Floats, samples: int, disturb: Disturbance
) -> list[Pair]:
    """Pairs at every point of the grid, 10 ms at one position."""
    pairs = []
    for n, ratio in zip(GRID, ratios, strict=True):
        times = disturb(rng, samples)
        many = 0.01 * ratio * times.drift * times.many
        one = 0.01 * times.drift * times.one
        pairs += [Pair(n, a, b) for a, b in zip(many.tolist(), one.tolist(), strict=True)]
    return pairs


def median_factor(disturb: Disturbance, rng: np.random.Generator) -> float:
    """The median of a time over its undisturbed one, which drift and outliers move."""
    times = [disturb(rng, 100) for _ in range(2000)]
    return float(np.median(np.concatenate([t.many * t.drift for t in times])))
