"""Which pair to run next: the one that tells most about the decisions at hand, for its cost.

A decision is a comparison of two times: is t(N) over (1 + epsilon) t(1), is this draft length
better than the one that would be chosen. Of each the surface knows by how much it may err. The mean
loss of a wrong decision is s (phi(z) - |z| Phi(-|z|)) for a comparison with mean z s and standard
deviation s. A pair takes a known part of the variance away, so the loss falls by about phi(z) / 2 s
times that part: :func:`rank` adds this up over the decisions, weighted by the traffic they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.answers import CellAnswer
from vllm_nfp.surface.decisions import Concern, Decisions, OpenDecisions, most_urgent
from vllm_nfp.surface.functionals import covariance, placed, stacked
from vllm_nfp.surface.parts import FloatArray
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.surface.rows import cell_rows, rows_at
from vllm_nfp.types import Module, Shape

SHORTLIST = 24
"""Candidates that are looked at closely."""
CELLS_AT_A_TIME = 8
"""Cells whose rows are made before a pause: some 0.3 ms."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that could be run."""

    shape: Shape
    cost_seconds: float
    """Of the pair, and of captures that it still needs."""
    content: bool = True
    """The KV blocks that it will read have content, or it does not matter."""


def rank(
    posterior: Posterior,
    known: Mapping[tuple[Module, int, int], CellAnswer],
    candidates: Sequence[Candidate],
    concerns: Sequence[Concern],
    decisions: Decisions,
    noise: Callable[[Shape], float],
    most: int = 8,
) -> tuple[Candidate, ...]:
    """The candidates worth most per second, best first, each given that those before it are run.

    Only the most urgent decisions count, and only the candidates that tell most by their whole step
    are looked at closely; gives way.

    Args:
        known: answers of every module in the concerns' cells, at the decisions' positions.
        noise: standard deviation of a pair's log ratio.
    """
    modules = posterior.book.prior(concerns[0].batch_size, concerns[0].context).modules
    open_ = most_urgent(known, modules, concerns, decisions)
    if not len(open_.value):
        return tuple(sorted(candidates, key=lambda c: c.cost_seconds)[:most])
    view = _View(posterior, open_)
    variances = np.array([noise(c.shape) ** 2 for c in candidates])
    cost = np.array([c.cost_seconds for c in candidates])
    steps = view.of([Module.MODEL], candidates)
    give_way()
    worth = open_.urgency(open_.spread) @ (steps.towards**2 / (steps.variance + variances)) / cost
    short = np.argsort(-worth, kind="stable")[: max(SHORTLIST, most)]
    pairs = view.of(modules, [candidates[i] for i in short])
    give_way()
    chosen = _greedy(pairs, open_, cost[short], variances[short], most)
    return tuple(candidates[short[i]] for i in chosen)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What pairs would tell, one row for each module and shape, module by module.

    Attributes:
        towards: covariance of each decision with each, shape [decisions, rows].
        among: covariance among them, shape [rows, rows].
    """

    towards: FloatArray
    among: FloatArray

    @property
    def variance(self) -> FloatArray:
        return np.diag(self.among)


class _View:
    """Covariances of the open decisions with pairs, given what was measured."""

    def __init__(self, posterior: Posterior, open_: OpenDecisions) -> None:
        self._posterior = posterior
        book = posterior.book
        rows = [
            cell_rows(book.prior, module, cell, open_.counts[at])[0]
            for module, cell, at in in_pieces(open_.rows, CELLS_AT_A_TIME)
        ]
        give_way()
        asked = stacked(rows)
        self._asked = placed(asked)
        give_way()
        _, self._told = posterior.mean(asked)
        self._combined = open_.combinations

    def of(self, modules: Sequence[Module], candidates: Sequence[Candidate]) -> _Pairs:
        """Pairs of these shapes."""
        book = self._posterior.book
        names = [module for module in modules for _ in candidates]
        shapes = [c.shape for c in candidates] * len(modules)
        content = [c.content for c in candidates] * len(modules)
        rows, _ = rows_at(book.prior, names, shapes, over_one=True, content=content)
        give_way()
        _, told = self._posterior.mean(rows)
        give_way()
        pairs = placed(rows)
        towards = covariance(self._asked, pairs, book.hyper, book.factors)
        give_way()
        towards -= self._told.T @ told
        give_way()
        among = covariance(pairs, pairs, book.hyper, book.factors)
        give_way()
        among -= told.T @ told
        return _Pairs(self._combined @ towards, among)


def _greedy(
    pairs: _Pairs, open_: OpenDecisions, cost: FloatArray, noise: FloatArray, most: int
) -> list[int]:
    count = len(cost)
    of_module = [slice(at, at + count) for at in range(0, len(pairs.among), count)]
    towards, among, spread = pairs.towards, pairs.among, open_.spread
    left = np.ones(count, dtype=bool)
    found: list[int] = []
    while left.any() and len(found) < most:
        urgency = open_.urgency(spread)
        variance = np.diag(among) + np.tile(noise, len(of_module))
        gained = urgency @ (towards**2 / variance)
        # Modules and step of one run tell nearly the same: the most telling one counts.
        told = np.max([gained[at] for at in of_module], axis=0)
        chosen = int(np.where(left, told / cost, -1.0).argmax())
        found.append(chosen)
        left[chosen] = False
        for at in of_module:
            row = at.start + chosen
            size = among[row, row] + noise[chosen]
            along, across = among[:, row].copy(), towards[:, row].copy()
            among = among - np.outer(along, along) / size
            spread = spread - across**2 / size
            towards = towards - np.outer(across, along) / size
        give_way()
    return found
