"""Ratios between servers that took turns, with intervals over the rounds of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
BIN_US = 10
COARSE_BIN_US = 100
"""For times to first token, which are ten times as long as inter-token times."""
BINS = 30_000
"""Longer times count as this many bins."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of one variant over that of the baseline."""

    ratio: float
    lower: float
    """Lower end of the bootstrap 95 % interval over rounds."""
    upper: float

    @property
    def resolution(self) -> float:
        """The smallest change that this comparison could tell from none: half its interval."""
        return (self.upper - self.lower) / 2


Rounds: TypeAlias = Sequence[NDArray[np.uint32]]
"""Times in microseconds, one array for each round."""


def _resampled(rounds: int, seed: int = 0) -> NDArray[np.int64]:
    """How often each round is drawn, [draws, rounds]; the first line has each once."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(rounds, np.full(rounds, 1.0 / rounds), DRAWS)
    return np.vstack([np.ones((1, rounds), dtype=np.int64), drawn])


def _interval(ratios: NDArray[np.float64]) -> Ratio:
    low, high = np.nanpercentile(ratios[1:], [2.5, 97.5])
    return Ratio(float(ratios[0]), float(low), float(high))


def ratio_of_sums(baseline: Sequence[float], variant: Sequence[float]) -> Ratio:
    """Sum over rounds of the variant over that of the baseline, rounds drawn in pairs."""
    weights = _resampled(len(baseline))
    return _interval((weights @ np.array(variant)) / (weights @ np.array(baseline)))


def ratio_of_means(baseline: Rounds, variant: Rounds) -> Ratio:
    """Mean of all rounds' times together, variant over baseline, rounds drawn in pairs."""
    weights = _resampled(len(baseline))
    return _interval(_means(weights, variant) / _means(weights, baseline))


def delay_us(
    baseline: Rounds, variant: Rounds, delayed: Sequence[float], steps: Sequence[float]
) -> Ratio:
    """By how much a delayed step is longer, in microseconds, if all that differs are such steps.

    Args:
        delayed: steps of the variant that were delayed, by round.
        steps: its steps, by round.
    """
    weights = _resampled(len(baseline))
    longer = _means(weights, variant) - _means(weights, baseline)
    share = (weights @ np.array(delayed)) / (weights @ np.array(steps))
    return _interval(np.divide(longer, share, out=np.full_like(longer, np.nan), where=share > 0))


def _means(weights: NDArray[np.int64], rounds: Rounds) -> NDArray[np.float64]:
    sums = np.array([values.sum(dtype=np.float64) for values in rounds])
    found: NDArray[np.float64] = (weights @ sums) / (weights @ np.array([len(v) for v in rounds]))
    return found


def ratio_of_quantiles(
    baseline: Rounds, variant: Rounds, share: float, bin_us: int = BIN_US
) -> Ratio:
    """Quantile of all rounds' times together, variant over baseline, rounds drawn in pairs."""
    return _interval(_quantile_draws(baseline, variant, share, bin_us=bin_us))


def mean_ratio_of_quantiles(sides: Sequence[tuple[Rounds, Rounds]], share: float) -> Ratio:
    """Geometric mean of the ratio over several loads, each (baseline, variant), drawn apart."""
    draws = [np.log(_quantile_draws(*both, share, seed)) for seed, both in enumerate(sides)]
    return _interval(np.exp(np.mean(draws, axis=0)))


def _quantile_draws(
    baseline: Rounds, variant: Rounds, share: float, seed: int = 0, bin_us: int = BIN_US
) -> NDArray[np.float64]:
    weights = _resampled(len(baseline), seed)
    return _quantiles(variant, weights, share, bin_us) / _quantiles(
        baseline, weights, share, bin_us
    )


def _histograms(rounds: Rounds, bin_us: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The bins that hold any time, and how many times of each round each of them holds."""
    clipped = [np.minimum(values // bin_us, BINS) for values in rounds]
    counts = np.stack([np.bincount(values, minlength=BINS + 1) for values in clipped])
    bins = np.flatnonzero(counts.any(axis=0))
    # As floats a product of them is BLAS's work.
    return bins, counts[:, bins].astype(np.float64)


def _quantiles(
    rounds: Rounds, weights: NDArray[np.int64], share: float, bin_us: int
) -> NDArray[np.float64]:
    """The quantile of each draw, in bins, interpolated within its bin."""
    bins, counts = _histograms(rounds, bin_us)
    found = []
    for part in np.array_split(weights, max(1, len(weights) // 50)):
        cumulated = np.cumsum(part @ counts, axis=1)
        wanted = share * cumulated[:, -1:]
        index = np.minimum((cumulated < wanted).sum(axis=1), len(bins) - 1)
        rows = np.arange(len(part))
        before = np.where(index > 0, cumulated[rows, np.maximum(index - 1, 0)], 0)
        inside = np.maximum(cumulated[rows, index] - before, 1)
        found.append(bins[index] + (wanted[:, 0] - before) / inside)
    return np.concatenate(found)
