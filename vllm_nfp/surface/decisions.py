"""The decisions that matter, and how far each is from being certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.answers import WIDER, CellAnswer
from vllm_nfp.surface.parts import FloatArray, IntArray
from vllm_nfp.types import Module

MOST_DECISIONS = 64
"""The most urgent ones, which count when a pair is chosen."""
SMALLEST_DEVIATION = 1e-4


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


@dataclass(frozen=True, slots=True)
class OpenDecisions:
    """Comparisons of two times that may still go either way.

    Attributes:
        counts: the positions N, shape [n].
        rows: (module, cell, indices of N) of the curves that they compare, one after the other.
        combinations: each decision as a sum of those log t(N) / t(1), shape [decisions, rows].
        apart: mean distance from a tie, in log time, shape [decisions].
        value: weight of the traffic that each is for, shape [decisions].
        spread: variance of the comparison, shape [decisions].
    """

    counts: IntArray
    rows: tuple[tuple[Module, tuple[int, int], IntArray], ...]
    combinations: FloatArray
    apart: FloatArray
    value: FloatArray
    spread: FloatArray

    def urgency(self, spread: FloatArray) -> FloatArray:
        """How fast the mean loss of each falls with its variance, where that is ``spread``."""
        return urgency(self.value, self.apart, spread)


def urgency(value: FloatArray, apart: FloatArray, spread: FloatArray) -> FloatArray:
    """By how much mean loss falls for each part of the variance that goes."""
    deviation = np.sqrt(np.maximum(spread, SMALLEST_DEVIATION**2))
    return np.asarray(value * np.exp(-0.5 * (apart / deviation) ** 2) / deviation)


def most_urgent(
    known: Mapping[tuple[Module, int, int], CellAnswer],
    modules: Sequence[Module],
    concerns: Sequence[Concern],
    decisions: Decisions,
) -> OpenDecisions:
    """The decisions of the concerns on which measurements would tell most."""
    blocks = [
        (module, (c.batch_size, c.context), c.weight)
        for module in modules
        if module is Module.MODEL or decisions.epsilons
        for c in concerns
    ]
    found = [known[module, *cell] for module, cell, _ in blocks]
    mean = np.array([one.log_ratio for one in found])
    spread = np.array([one.covariance for one in found]) / WIDER**2
    weights = np.array([weight for *_, weight in blocks])
    give_way()
    steps = np.flatnonzero([module is Module.MODEL for module, *_ in blocks])
    parts = [_boundaries(mean, spread, weights, epsilon, len(decisions.epsilons))
             for epsilon in in_pieces(decisions.epsilons, 1)]  # fmt: skip
    drafting = np.array(decisions.drafting)
    parts += [
        _drafts(mean, spread, weights, steps, np.array(tokens), drafting, len(decisions.tokens))
        for tokens in in_pieces(decisions.tokens, 1)
    ]
    table = np.concatenate([np.zeros((0, 8)), *parts])
    # By what certainty would gain: urgency is for each part of the variance.
    size = urgency(table[:, 6], table[:, 5], table[:, 7]) * table[:, 7]
    table = table[np.argsort(-size, kind="stable")[:MOST_DECISIONS]]
    give_way()
    return _gathered(table, blocks, np.array(decisions.positions, dtype=np.int64))


def _boundaries(
    mean: FloatArray, spread: FloatArray, weights: FloatArray, epsilon: float, share: int
) -> FloatArray:
    """Rows: block, N, its coefficient, other N, its coefficient, distance, value, variance."""
    line = np.log1p(epsilon)
    over = mean > line
    over[:, 0] = False
    first = np.where(over.any(axis=1), over.argmax(axis=1), mean.shape[1])
    # Beyond the second N that is over the line nothing is decided.
    block, n = np.nonzero(np.arange(mean.shape[1]) < first[:, None] + 2)
    block, n = block[n > 0], n[n > 0]
    ones, nothing = np.ones(len(n)), np.zeros(len(n))
    return np.stack(
        [block, n, ones, n, nothing, mean[block, n] - line, weights[block] / share,
         spread[block, n, n]], axis=1
    )  # fmt: skip


def _drafts(
    mean: FloatArray, spread: FloatArray, weights: FloatArray, steps: IntArray,
    tokens: FloatArray, drafting: FloatArray, share: int,
) -> FloatArray:  # fmt: skip
    """The same: each draft length against the best one."""
    ratio = np.exp(mean[steps]) + drafting
    gains, felt = np.log(tokens / ratio), np.exp(mean[steps]) / ratio
    best = gains.argmax(axis=1)
    at, n = np.nonzero(np.arange(mean.shape[1]) != best[:, None])
    block, top = steps[at], best[at]
    mine, theirs = felt[at, n], felt[at, top]
    variance = (
        mine**2 * spread[block, n, n] + theirs**2 * spread[block, top, top]
        - 2.0 * mine * theirs * spread[block, n, top]
    )  # fmt: skip
    return np.stack(
        [block, n, -mine, top, theirs, gains[at, top] - gains[at, n], weights[block] / share,
         variance], axis=1
    )  # fmt: skip


def _gathered(
    table: FloatArray, blocks: Sequence[tuple[Module, tuple[int, int], float]], counts: IntArray
) -> OpenDecisions:
    ends = [(table[:, 0].astype(np.int64), table[:, i].astype(np.int64)) for i in (1, 3)]
    keys = [block * len(counts) + n for block, n in ends]
    distinct, place = np.unique(np.concatenate(keys), return_inverse=True)
    combined = np.zeros((len(table), len(distinct)))
    row = np.arange(len(table))
    combined[row, place[: len(table)]] = table[:, 2]
    combined[row, place[len(table) :]] += table[:, 4]
    rows = tuple(
        (*blocks[block][:2], distinct[distinct // len(counts) == block] % len(counts))
        for block in np.unique(distinct // len(counts)).tolist()
    )
    return OpenDecisions(counts, rows, combined, table[:, 5], table[:, 6], table[:, 7])
