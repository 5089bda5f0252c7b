"""Which pair to run next: the one that tells most about the decisions at hand, for its cost.

A decision is a comparison of two times: is t(N) over (1 + epsilon) t(1), is this draft length
better than the one that would be chosen. Of each the surface knows by how much it may err. The mean
loss of a wrong decision is s (phi(z) - |z| Phi(-|z|)) for a comparison with mean z s and standard
deviation s. A pair takes a known part of the variance away, so the loss falls by about phi(z) / 2 s
times that part: :func:`rank` adds this up over the decisions, weighted by the traffic they are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.surface.kernel import covariance, stacked
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.surface.prior import FloatArray, Prior
from vllm_nfp.surface.rows import cell_rows, rows_at
from vllm_nfp.types import Module, Shape

SMALLEST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that could be run."""

    shape: Shape
    cost_seconds: float
    """Of the pair, and of captures that it still needs."""


@dataclass(frozen=True, slots=True)
class Concern:
    """A cell whose decisions matter."""

    batch_size: int
    context: int
    weight: float
    """Share of the time that traffic spends there."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is decided in each cell.

    Attributes:
        positions: N at which it is decided, ascending from 1.
        epsilons: tolerances of the boundaries.
        tokens: E(K) at each N, one row for each acceptance; empty: no draft lengths are chosen.
        drafting: t_draft(K) / t(1) at each N.
    """

    positions: tuple[int, ...]
    epsilons: tuple[float, ...]
    tokens: tuple[tuple[float, ...], ...] = ()
    drafting: tuple[float, ...] = ()


def rank(
    prior: Prior,
    posterior: Posterior,
    candidates: Sequence[Candidate],
    concerns: Sequence[Concern],
    decisions: Decisions,
    noise: Callable[[Shape], float],
    most: int = 8,
) -> tuple[Candidate, ...]:
    """The candidates worth most per second, best first, each given that those before it are run.

    Args:
        noise: standard deviation of a pair's log ratio.
    """
    counts = np.array(decisions.positions, dtype=np.int64)
    modules = prior(concerns[0].batch_size, concerns[0].context).modules
    rows, expected, weights = [], [], []
    for concern in concerns:
        for module in modules:
            if module is not Module.MODEL and not decisions.epsilons:
                continue
            row, mean = cell_rows(prior, module, (concern.batch_size, concern.context), counts)
            rows.append(row)
            expected.append(mean)
            weights.append((module, concern.weight))
    shapes = [candidate.shape for candidate in candidates]
    asked = stacked(rows)
    # A pair times the whole step and its modules.
    pairs = [rows_at(prior, [m] * len(shapes), shapes, over_one=True)[0] for m in modules]
    everything = stacked([asked, *pairs])
    means, cross = posterior.mean(everything)
    known = len(asked)
    scaled = everything.scaled(posterior.factors)
    joint = covariance(scaled, scaled, posterior.hyper)
    joint -= cross.T @ (posterior.inverse @ cross)
    blocks = [slice(i * len(counts), (i + 1) * len(counts)) for i in range(len(rows))]
    compared = [
        _comparisons(means[b] + e, joint[b, b], module, weight, decisions)
        for b, e, (module, weight) in zip(blocks, expected, weights, strict=True)
    ]
    towards = np.concatenate(
        [c @ joint[b, known:] for b, (c, _, _) in zip(blocks, compared, strict=True)]
    )
    apart = np.concatenate([z for _, z, _ in compared])
    value = np.concatenate([v for _, _, v in compared])
    spread = np.concatenate(
        [
            np.einsum("ij,jk,ik->i", c, joint[b, b], c)
            for b, (c, _, _) in zip(blocks, compared, strict=True)
        ]
    )
    own = joint[known:, known:]
    variances = np.array([noise(shape) ** 2 for shape in shapes])
    return _greedy(candidates, variances, len(modules), towards, apart, value, spread, own, most)


def _comparisons(
    mean: FloatArray, spread: FloatArray, module: Module, weight: float, decisions: Decisions
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows over the positions, how far each is from a tie in log time, and its weight."""
    size = len(mean)
    rows, apart, weights = [], [], []
    for epsilon in decisions.epsilons:
        line = math.log1p(epsilon)
        over = np.flatnonzero(mean > line)
        last = min(size, (over[0] if len(over) else size) + 2)  # beyond it nothing is decided
        for n in range(1, last):
            row = np.zeros(size)
            row[n] = 1.0
            rows.append(row)
            apart.append(mean[n] - line)
            weights.append(weight / len(decisions.epsilons))
    if module is Module.MODEL:
        for tokens in decisions.tokens:
            ratio = np.exp(mean) + np.array(decisions.drafting)
            gains = np.log(np.array(tokens) / ratio)
            share = np.exp(mean) / ratio
            best = int(gains.argmax())
            for n in range(size):
                if n == best:
                    continue
                row = np.zeros(size)
                row[n], row[best] = -share[n], share[best]
                rows.append(row)
                apart.append(gains[best] - gains[n])
                weights.append(weight / len(decisions.tokens))
    return np.array(rows).reshape(-1, size), np.array(apart), np.array(weights)


def _greedy(
    candidates: Sequence[Candidate],
    noise: FloatArray,
    modules: int,
    towards: FloatArray,
    apart: FloatArray,
    value: FloatArray,
    spread: FloatArray,
    own: FloatArray,
    most: int,
) -> tuple[Candidate, ...]:
    count = len(candidates)
    cost = np.array([c.cost_seconds for c in candidates])
    left = np.ones(count, dtype=bool)
    found: list[Candidate] = []
    while left.any() and len(found) < most:
        deviation = np.sqrt(np.maximum(spread, SMALLEST_DEVIATION**2))
        urgency = value * np.exp(-0.5 * (apart / deviation) ** 2) / deviation
        told = np.zeros(count)
        for m in range(modules):
            at = slice(m * count, (m + 1) * count)
            gained = towards[:, at] ** 2 / (np.diag(own)[at] + noise)
            # Modules and step of one run tell nearly the same: the most telling one counts.
            told = np.maximum(told, urgency @ gained)
        worth = np.where(left, told / cost, -1.0)
        chosen = int(worth.argmax())
        found.append(candidates[chosen])
        left[chosen] = False
        for m in range(modules):
            row = m * count + chosen
            variance = own[row, row] + noise[chosen]
            along, across = own[:, row].copy(), towards[:, row].copy()
            own = own - np.outer(along, along) / variance
            spread = spread - across**2 / variance
            towards = towards - np.outer(across, along) / variance
    return tuple(found)
