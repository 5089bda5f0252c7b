"""The exact posterior of the parts' errors, given the observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.surface.kernel import Functionals, Hyperparameters, covariance, stacked
from vllm_nfp.surface.observations import Observations
from vllm_nfp.surface.prior import PART_OF, FloatArray, IntArray, Part, Prior
from vllm_nfp.surface.scale import UNKNOWN, log_evidence
from vllm_nfp.types import Module, Shape

OUTLIER = 3.5
"""Standard deviations from what all other observations say, from which on one is not trusted."""
CERTAIN = 3
"""Pairs of a shape that no other shape can cast doubt on."""
STEP_OFFSET = 0.5
"""Standard deviation of the log factor between real steps and probed ones: host, sampling."""


NONE = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and covariance of any row of the parts' errors.

    Attributes:
        rows: of the observations.
        root: Cholesky factor of their covariance, noise included.
        solved: root^-1 (observed - expected).
        measured: what pairs were run of, by :func:`measured_key`.
        doubted: shapes whose few pairs contradict all else: an outlier, or news. Another pair
            tells.
    """

    hyper: Hyperparameters
    rows: Functionals
    root: FloatArray
    solved: FloatArray
    measured: frozenset[tuple[object, ...]]
    doubted: tuple[Shape, ...] = ()

    def mean_and_factor(self, asked: Functionals) -> tuple[FloatArray, FloatArray]:
        """Means of the asked rows, and the factor V of what the data took from their covariance.

        The posterior covariance is covariance(asked, asked) - V' V.
        """
        if not len(self.rows):
            return np.zeros(len(asked)), np.zeros((0, len(asked)))
        cross = covariance(self.rows, asked, self.hyper)
        factor = np.linalg.solve(self.root, cross)
        return factor.T @ self.solved, factor


def rows_at(
    prior: Prior, modules: Sequence[Module], shapes: Sequence[Shape], over_one: bool
) -> tuple[Functionals, FloatArray]:
    """Rows of log t of a module at a shape, or of log t(N) / t(1), and what the prior says.

    Args:
        modules: one for each shape.
        over_one: ratios.
    """
    at = np.zeros((len(shapes), 2, 3), dtype=np.int64)
    tokens = np.ones((len(shapes), 2), dtype=np.int64)
    padded = np.ones((len(shapes), 2), dtype=np.int64)
    weights = np.zeros((len(shapes), 2, len(Part)))
    expected = np.zeros(len(shapes))
    for i, (module, shape) in enumerate(zip(modules, shapes, strict=True)):
        cell = prior(shape.batch_size, shape.context)
        log_seconds, part = cell.log_seconds(module), cell.weights(module)
        for j, n in enumerate((shape.positions, 1)):
            at[i, j] = shape.batch_size, n, shape.context
            tokens[i, j], padded[i, j] = cell.tokens[n - 1], cell.padded[n - 1]
        weights[i, 0] = part[:, shape.positions - 1]
        expected[i] = log_seconds[shape.positions - 1]
        if over_one:
            weights[i, 1] = -part[:, 0]
            expected[i] -= log_seconds[0]
    return Functionals(at, tokens, padded, weights), expected


def condition(prior: Prior, hyper: Hyperparameters, seen: Observations) -> Posterior:
    """The posterior; the prior itself without an observation."""
    ratios, expected_ratios = rows_at(
        prior, [r.module for r in seen.ratios], [r.shape for r in seen.ratios], over_one=True
    )
    shares, expected_shares = share_rows(prior, seen)
    steps, expected_steps = rows_at(
        prior, [Module.MODEL] * len(seen.steps), [s.shape for s in seen.steps], over_one=False
    )
    rows = stacked([ratios, shares, steps])
    if not len(rows):
        return Posterior(
            _fitted_to(hyper, seen, rows, NONE, NONE), rows, np.zeros((0, 0)), NONE,
            frozenset(),
        )  # fmt: skip
    observed = np.array(
        [r.log_ratio for r in seen.ratios]
        + [s.log_share for s in seen.shares]
        + [s.log_seconds for s in seen.steps]
    )
    residual = observed - np.concatenate([expected_ratios, expected_shares, expected_steps])
    noise = np.array(
        [r.variance for r in seen.ratios]
        + [s.variance for s in seen.shares]
        + [s.variance for s in seen.steps]
    )
    hyper = _fitted_to(hyper, seen, ratios, residual[: len(ratios)], noise[: len(ratios)])
    full = covariance(rows, rows, hyper)
    first = len(seen.ratios)
    for module in {s.module for s in seen.shares}:
        mine = first + np.flatnonzero([s.module is module for s in seen.shares])
        full[np.ix_(mine, mine)] += hyper.module_bias**2
    if seen.steps:
        full[-len(seen.steps) :, -len(seen.steps) :] += STEP_OFFSET**2
    measured = frozenset(
        measured_key(r.module, ratios.shapes[i, 0], ratios.tokens[i], ratios.padded[i])
        for i, r in enumerate(seen.ratios)
    )
    trusted = _trusted(full, noise, residual)
    root = np.linalg.cholesky(full + np.diag(trusted))
    doubted = dict.fromkeys(
        r.shape
        for r, before, after in zip(seen.ratios, noise, trusted, strict=False)
        if after > before and r.samples < CERTAIN
    )
    return Posterior(
        hyper, rows, root, np.linalg.solve(root, residual), measured, tuple(doubted)
    )


def measured_key(
    module: Module, shape: IntArray, tokens: IntArray, padded: IntArray
) -> tuple[object, ...]:
    """What shapes have in common of which a pair of one is a pair of the other."""
    if module is Module.MOE_FFN:
        return (module, *tokens.tolist())
    if module in (Module.DENSE_FFN, Module.COMMUNICATION):
        return (module, *padded.tolist())
    return (module, *shape.tolist())


def _fitted_to(
    hyper: Hyperparameters,
    seen: Observations,
    ratios: Functionals,
    residual: FloatArray,
    noise: FloatArray,
) -> Hyperparameters:
    """The sizes of this model's errors, by part, from the ratios of its modules alone."""
    for module, part in PART_OF.items():
        mine = np.flatnonzero([r.module is module for r in seen.ratios])
        if len(mine) == 0:
            hyper = hyper.scaled(part, UNKNOWN)
            continue
        rows = ratios[mine]
        kernel = covariance(rows, rows, hyper)
        trusted = _trusted(UNKNOWN**2 * kernel, noise[mine], residual[mine])
        factor, _ = log_evidence(kernel, np.diag(trusted), residual[mine])
        hyper = hyper.scaled(part, factor)
    return hyper.scaled(Part.OTHER, UNKNOWN)


def _trusted(full: FloatArray, noise: FloatArray, residual: FloatArray) -> FloatArray:
    """Variances of the noise, larger where a value contradicts what all others say of it."""
    inverse = np.linalg.inv(full + np.diag(noise))
    spread = np.diag(inverse)
    left_out = inverse @ residual / spread
    size = np.abs(left_out) * np.sqrt(spread)
    return np.where(size > OUTLIER, noise + left_out**2, noise)


def share_rows(prior: Prior, seen: Observations) -> tuple[Functionals, FloatArray]:
    """Rows of log(module / step) at the same shape, and what the prior says."""
    shapes = [s.shape for s in seen.shares]
    module, expected = rows_at(prior, [s.module for s in seen.shares], shapes, over_one=False)
    step, expected_step = rows_at(prior, [Module.MODEL] * len(shapes), shapes, over_one=False)
    module.weights[:, 0] -= step.weights[:, 0]
    return module, expected - expected_step
