"""The exact posterior of the parts' errors, given the observations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.kernel import Functionals, Hyperparameters, covariance, stacked
from vllm_nfp.surface.observations import Observations, Ratio
from vllm_nfp.surface.prior import PART_OF, FloatArray, IntArray, Part, Prior
from vllm_nfp.surface.rows import Key, keys_of, rows_at
from vllm_nfp.surface.scale import UNKNOWN, log_evidence
from vllm_nfp.types import Module, Shape

OUTLIER = 3.5
"""An observation that is so many standard deviations from what all others say is doubted."""
MOST_DOUBTED = 8
"""Observations that are doubted in one posterior."""
CERTAIN = 3
"""A shape with so many pairs is never doubted."""
AGREE = 3.0
"""Two observations of the same tokens become one within so many standard deviations."""
MOST_FOR_SCALE = 48
"""Largest number of a module's observations from which the size of its errors is fitted."""
STEP_OFFSET = 5.0
"""Standard deviation of the log factor between real steps and the prior's unit. A generic prior is
not in seconds, and real steps include the host and sampling: only their ratios count."""
NONE = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and covariance of any row of the parts' errors.

    Attributes:
        factors: size of this model's errors relative to other models', by part, shape [parts].
        rows: the observations as functionals, scaled by the factors.
        inverse: inverse of the observations' covariance, noise included.
        solved: inverse @ (observed - expected).
        measured: keys of the shapes that pairs were run of.
        doubted: shapes whose one or two pairs contradict all others. Measure them again.
    """

    hyper: Hyperparameters
    factors: FloatArray
    rows: Functionals
    inverse: FloatArray
    solved: FloatArray
    measured: frozenset[Key]
    doubted: tuple[Shape, ...] = ()

    def mean(self, asked: Functionals) -> tuple[FloatArray, FloatArray]:
        """Means of the asked rows, and their covariance with the observations."""
        cross = covariance(self.rows, asked.scaled(self.factors), self.hyper)
        return cross.T @ self.solved, cross


def launch_time(posterior: Posterior) -> tuple[float, float]:
    """What measurements say of launches: log of their time over the prior's, and its deviation.

    :func:`vllm_nfp.surface.prior.with_launch` takes it. The maximum of work and launches is not
    linear, so a prior that is far off should be moved before the posterior is taken again.
    """
    weights = np.zeros((1, 2, len(Part)))
    weights[0, 0, Part.LAUNCH] = 1.0
    ones = np.ones((1, 2), dtype=np.int64)
    alone = Functionals(np.ones((1, 2, 3), dtype=np.int64), ones, ones, weights)
    mean, cross = posterior.mean(alone)
    variance = posterior.hyper.launch**2 - float((cross.T @ posterior.inverse @ cross)[0, 0])
    return float(mean[0]), max(variance, 0.0) ** 0.5


@dataclass(slots=True)
class _Seen:
    """Observations of one kind in the making."""

    key: Key
    ratio: Ratio
    residual: float
    variance: float
    samples: int
    row: int


def condition(
    prior: Prior, hyper: Hyperparameters, seen: Observations, min_samples: int = 1
) -> Posterior:
    """The posterior given the observations; without any it is the prior.

    Args:
        min_samples: pairs of a shape from which on it is called measured.
    """
    rows, expected = rows_at(
        prior, [r.module for r in seen.ratios], [r.shape for r in seen.ratios], over_one=True
    )
    give_way()
    keys = keys_of([r.module for r in seen.ratios], rows)
    merged = _merged(seen.ratios, keys, expected)
    ratios = rows[np.array([one.row for one in merged], dtype=np.int64)]
    residual = np.array([one.residual for one in merged])
    noise = np.array([one.variance for one in merged])
    modules = [one.ratio.module for one in merged]
    factors = _factors(hyper, modules, [one.samples for one in merged], ratios, residual, noise)
    give_way()
    steps, expected_steps = rows_at(
        prior, [Module.MODEL] * len(seen.steps), [s.shape for s in seen.steps], over_one=False
    )
    everything = stacked([ratios, steps]).scaled(factors)
    residual = np.concatenate(
        [
            residual,
            np.array([s.log_seconds for s in seen.steps]) - expected_steps,
        ]
    )
    noise = np.concatenate([noise, np.array([s.variance for s in seen.steps])])
    full = covariance(everything, everything, hyper)
    give_way()
    if seen.steps:
        full[-len(seen.steps) :, -len(seen.steps) :] += STEP_OFFSET**2
    uncertain = np.array([one.samples < CERTAIN for one in merged])
    inverse, doubtful = _inverse(full, noise, residual, np.flatnonzero(uncertain))
    doubted = dict.fromkeys(merged[i].ratio.shape for i in doubtful)
    measured = frozenset(one.key for one in merged if one.samples >= min_samples)
    return Posterior(
        hyper, factors, everything, inverse, inverse @ residual, measured, tuple(doubted)
    )


def _merged(ratios: tuple[Ratio, ...], keys: list[Key], expected: FloatArray) -> list[_Seen]:
    """One observation for each key, as far as its observations agree."""
    found: dict[Key, _Seen] = {}
    apart: list[_Seen] = []
    for i, (ratio, key) in enumerate(zip(ratios, keys, strict=True)):
        one = _Seen(key, ratio, ratio.log_ratio - float(expected[i]), ratio.variance,
                    ratio.samples, i)  # fmt: skip
        known = found.setdefault(key, one)
        if known is one:
            continue
        if abs(one.residual - known.residual) > AGREE * (one.variance + known.variance) ** 0.5:
            apart.append(one)
            continue
        weight = known.variance / (known.variance + one.variance)
        known.residual += weight * (one.residual - known.residual)
        known.variance *= 1.0 - weight
        known.samples += one.samples
    return [*found.values(), *apart]


def _factors(
    hyper: Hyperparameters,
    modules: list[Module],
    samples: list[int],
    ratios: Functionals,
    residual: FloatArray,
    noise: FloatArray,
) -> FloatArray:
    """The sizes of this model's errors, by part, from the ratios of its modules alone."""
    factors = np.ones(len(Part))
    factors[Part.OTHER] = UNKNOWN
    for module, part in PART_OF.items():
        factors[part] = UNKNOWN
        mine = np.flatnonzero([m is module for m in modules])
        if not len(mine):
            continue
        mine = mine[:: 1 + (len(mine) - 1) // MOST_FOR_SCALE]
        kernel = covariance(ratios[mine], ratios[mine], hyper)
        errors, variances = residual[mine], noise[mine]
        alone = np.flatnonzero([samples[i] < CERTAIN for i in mine])
        _, doubted = _inverse(UNKNOWN**2 * kernel, variances, errors, alone)
        kept = np.setdiff1d(np.arange(len(mine)), doubted)
        kernel, errors, variances = kernel[np.ix_(kept, kept)], errors[kept], variances[kept]
        factors[part], _ = log_evidence(kernel, np.diag(variances), errors)
        give_way()
    return factors


def _inverse(
    full: FloatArray, noise: FloatArray, residual: FloatArray, uncertain: IntArray
) -> tuple[FloatArray, IntArray]:
    """The inverse of the covariance, and the indices of doubted rows, whose noise is raised.

    A row is doubted if it contradicts the prediction from all others. The worst row goes first,
    because it makes its neighbours look wrong as well.

    Args:
        uncertain: indices of the rows that may be doubted.
    """
    inverse = np.asarray(np.linalg.inv(full + np.diag(noise)), np.float64)
    give_way()
    doubted: list[int] = []
    while len(uncertain) and len(doubted) < MOST_DOUBTED:
        spread = np.diag(inverse)
        left_out = inverse @ residual / spread
        size = (np.abs(left_out) * np.sqrt(spread))[uncertain]
        worst = int(uncertain[size.argmax()])
        if size.max() <= OUTLIER:
            break
        doubted.append(worst)
        doubt = left_out[worst] ** 2
        row = inverse[worst].copy()
        inverse = inverse - np.outer(row, row * (doubt / (1.0 + doubt * row[worst])))
        give_way()
    return inverse, np.array(doubted, dtype=np.int64)
