"""What answers in a replay: the surface, the prior alone, and the grid of cells of before."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from benchmarks.replay_recorded import POSITIONS, Cell, Server
from vllm_nfp.config import DEFAULT_POSITIONS
from vllm_nfp.crossing import count_free
from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.rows import Schedule
from vllm_nfp.draft.schedule import make_schedule
from vllm_nfp.estimate import CellEstimate, PairStore, estimate_cell
from vllm_nfp.schedule.plan import Planner
from vllm_nfp.surface.answers import (
    CellAnswer,
    answers,
    block_of,
    questions,
)
from vllm_nfp.surface.chooser import Candidate, Concern, Decisions, rank
from vllm_nfp.surface.decide import boundary, draft_length
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.observations import Observations, Pool
from vllm_nfp.surface.posterior import Posterior, condition, launch_time
from vllm_nfp.surface.prior import Prior, with_launch
from vllm_nfp.types import Cell as EstimateCell
from vllm_nfp.types import CurvePoint, Module, Pair, Shape

EPSILONS = (0.05, 0.1, 0.2)
ACCEPTANCES = (0.5, 0.7, 0.9)
SLACK = 0.0
LAUNCH_KNOWN = 0.5
"""Part of the prior's deviation below which the prior's launch time is replaced."""
EVERYWHERE = 0.7
"""Weight of the reported cells together, against that of the cells with traffic."""
MOST_CONCERNS, MOST_CANDIDATES = 10, 80
"""Looked at in one choice; drawn anew each time."""


@dataclass(frozen=True)
class Measured:
    """A pair: seconds at N and at one position, by module, all layers."""

    shape: Shape
    many: Mapping[Module, float]
    one: Mapping[Module, float]
    in_graph: bool


class Method(Protocol):
    """One way to answer."""

    def next(self, ready: frozenset[Shape], traffic: Cell | None) -> Shape | None:
        """The pair to run next; None: none."""
        ...

    def add(self, pair: Measured, now: float) -> None:
        """A pair was run."""
        ...

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """The median of some real steps."""
        ...

    def answers(self, now: float) -> Answers:
        """All that it says now."""
        ...


class Answers(Protocol):
    """What a method says at one moment."""

    def ratio(self, module: Module, cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """t(N) / t(1) with its interval, at the server's positions; None: no answer."""
        ...

    def boundary(self, module: Module, cell: Cell, epsilon: float) -> tuple[int, int, int] | None:
        """NFP with its interval, on the default grid of positions."""
        ...

    def draft(self, cell: Cell, acceptance: float) -> int:
        """The draft length."""
        ...


def grid_of(server: Server, cell: Cell) -> tuple[int, ...]:
    """The default positions that are known in a cell."""
    return tuple(n for n in DEFAULT_POSITIONS if n in server.positions[cell])


class SurfaceMethod:
    """The surface with its chooser.

    Args:
        learns: False: the prior alone.
        chooses: False: pairs are drawn at random.
        prior: instead of the server's prediction.
    """

    def __init__(
        self,
        server: Server,
        hyper: Hyperparameters,
        learns: bool = True,
        chooses: bool = True,
        prior: Prior | None = None,
        seed: int = 0,
    ) -> None:
        self._server, self._hyper, self._learns = server, hyper, learns
        self._prior = prior or server.prior
        self._chooses = chooses
        self.pool = Pool()
        self._random = random.Random(seed)
        self._queue: list[Shape] = []
        self._traffic: dict[Cell, float] = {}
        self._posterior: Posterior | None = None
        self._now = 0.0

    def next(self, ready: frozenset[Shape], traffic: Cell | None) -> Shape | None:
        """See :class:`Method`."""
        if not self._learns:
            return None
        if traffic is not None:
            self._traffic = {cell: 0.98 * w for cell, w in self._traffic.items()}
            self._traffic[traffic] = self._traffic.get(traffic, 0.0) + 0.02
        if not self._queue:
            self._queue = self._choose(ready)
        return self._queue.pop(0)

    def _choose(self, ready: frozenset[Shape]) -> list[Shape]:
        server = self._server
        shapes = [Shape(*c, n) for c in server.cells for n in server.positions[c] if n > 1]
        if not self._chooses:
            return self._random.sample(shapes, min(4, len(shapes)))
        weights = {cell: EVERYWHERE / len(server.cells) for cell in server.cells}
        for cell, weight in self._traffic.items():
            weights[cell] = weights.get(cell, 0.0) + weight
        cells = list(weights)
        drawn = self._random.choices(cells, [weights[c] for c in cells], k=MOST_CONCERNS)
        concerns = [Concern(*c, drawn.count(c) / MOST_CONCERNS) for c in dict.fromkeys(drawn)]
        shapes = [shape for shape in shapes if (shape.batch_size, shape.context) in drawn]
        noise = {inside: self.pool.noise(Module.MODEL, inside) for inside in (True, False)}
        candidates = [
            Candidate(shape, pair_seconds(server, shape, ready), noise[self._in_graph(shape)])
            for shape in self._random.sample(shapes, min(MOST_CANDIDATES, len(shapes)))
        ]
        positions = POSITIONS
        decisions = Decisions(
            positions,
            EPSILONS,
            tuple(
                tuple(constant(a).expected_tokens(n - 1) for n in positions) for a in ACCEPTANCES
            ),
            (0.0,) * len(positions),
        )
        prior, posterior = self._conditioned(self.pool.compressed(self._now))
        if posterior.doubted:
            return list(posterior.doubted[:2])
        best = rank(prior, posterior, candidates, concerns, decisions, most=4)
        return [candidate.shape for candidate in best]

    def _in_graph(self, shape: Shape) -> bool:
        cell = self._prior(shape.batch_size, shape.context)
        return bool(cell.in_graph[shape.positions - 1])

    def add(self, pair: Measured, now: float) -> None:
        """See :class:`Method`."""
        self._now = now
        self.pool.add_pair(pair.shape, pair.many, pair.one, now, pair.in_graph)

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """See :class:`Method`."""
        if self._learns:
            self.pool.add_step(shape, seconds, now)

    def answers(self, now: float) -> SurfaceAnswers:
        """See :class:`Method`."""
        seen = self.pool.compressed(now) if self._learns else Observations()
        return SurfaceAnswers(self._server, *self._conditioned(seen))

    def _conditioned(self, seen: Observations) -> tuple[Prior, Posterior]:
        """The posterior, and the prior that it is of: with launches as they were measured."""
        posterior = condition(self._prior, self._hyper, seen)
        log_factor, deviation = launch_time(posterior)
        if deviation > LAUNCH_KNOWN * self._hyper.launch:
            return self._prior, posterior
        prior = with_launch(self._prior, log_factor, deviation)
        return prior, condition(prior, self._hyper, seen)


class SurfaceAnswers:
    """What the surface says."""

    def __init__(self, server: Server, prior: Prior, posterior: Posterior) -> None:
        self._server, self._prior, self._posterior = server, prior, posterior
        self._found: dict[tuple[int, ...], dict[tuple[Module, int, int], CellAnswer]] = {}

    def _at(self, module: Module, cell: Cell, fine: bool) -> CellAnswer:
        server = self._server
        positions = server.positions[cell] if fine else grid_of(server, cell)
        if positions not in self._found:
            cells = [
                c for c in server.cells
                if positions == (server.positions[c] if fine else grid_of(server, c))
            ]  # fmt: skip
            wanted = [(m, *c) for m in server.modules for c in cells]
            asked = questions(self._prior, self._posterior.hyper, wanted, positions)
            self._found[positions] = answers(self._posterior, asked)
        found = self._found[positions]
        block = block_of(module, *cell)
        if block not in found:
            asked = questions(self._prior, self._posterior.hyper, [(module, *cell)], positions)
            found.update(answers(self._posterior, asked))
        return found[block]

    def ratio(self, module: Module, cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :class:`Answers`."""
        found = self._at(module, cell, fine=True)
        return found.ratio, *found.interval

    def boundary(self, module: Module, cell: Cell, epsilon: float) -> tuple[int, int, int]:
        """See :class:`Answers`."""
        found = boundary(self._at(module, cell, fine=False), epsilon)
        return found.positions, found.lower, found.upper

    def draft(self, cell: Cell, acceptance: float) -> int:
        """See :class:`Answers`."""
        found = self._at(Module.MODEL, cell, fine=True)
        tokens = np.array(
            [constant(acceptance).expected_tokens(int(n) - 1) for n in found.positions]
        )
        return draft_length(found, tokens, np.zeros(len(tokens)), SLACK).draft_length


class GridMethod:
    """The grid of cells at the defaults: planner and estimate of today."""

    BATCH_SIZES, CONTEXTS = (1, 8, 32), (1024, 4096, 16384)

    def __init__(self, server: Server, seed: int = 0) -> None:
        self._server = server
        contexts = sorted({c for _, c in server.cells})
        self._cells = [
            cell for cell in server.cells
            if cell[0] in self.BATCH_SIZES and (cell[1] in self.CONTEXTS or len(contexts) < 3)
        ]  # fmt: skip
        grids = {cell: [n for n in grid_of(server, cell) if n > 1] for cell in self._cells}
        self._planner = Planner(grids, 6, seed)
        self._store = PairStore(32)
        self._bounds = (sorted({b for b, _ in self._cells}), sorted({c for _, c in self._cells}))

    def next(self, ready: frozenset[Shape], traffic: Cell | None) -> Shape | None:
        """See :class:`Method`."""
        live = None
        if traffic is not None:
            sizes, contexts = self._bounds
            at = bisect.bisect_left(sizes, traffic[0]), bisect.bisect_left(contexts, traffic[1])
            if at[0] < len(sizes) and at[1] < len(contexts):
                live = sizes[at[0]], contexts[at[1]]
        return self._planner.next(live, ready.__contains__)

    def add(self, pair: Measured, now: float) -> None:
        """See :class:`Method`."""
        shape = pair.shape
        self._planner.record(shape)
        for module, seconds in pair.many.items():
            cell = EstimateCell(module, shape.batch_size, shape.context)
            self._store.add(cell, Pair(shape.positions, seconds, pair.one[module]))

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """Today's grid learns nothing from real steps."""

    def answers(self, now: float) -> GridAnswers:
        """See :class:`Method`."""
        found = {
            cell: estimate_cell(cell, self._store.pairs(cell), EPSILONS)
            for cell in self._store.cells()
        }
        return GridAnswers(self._server, {c: e for c, e in found.items() if e is not None})


def _interval(point: CurvePoint) -> tuple[float, float, float]:
    """The ratio with its interval; too few pairs have no upper end."""
    upper = math.inf if point.ratio_upper is None else point.ratio_upper
    return point.ratio, point.ratio_lower, upper


class GridAnswers:
    """What the grid of cells says; nothing where a cell has no estimate."""

    def __init__(self, server: Server, estimates: Mapping[EstimateCell, CellEstimate]) -> None:
        self._server, self._estimates = server, estimates
        self._schedules: dict[float, Schedule] = {}

    def ratio(self, module: Module, cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """See :class:`Answers`."""
        estimate = self._estimates.get(EstimateCell(module, *cell))
        if estimate is None:
            return None
        points = {
            p.positions: (
                p.ratio,
                p.ratio_lower,
                np.inf if p.ratio_upper is None else p.ratio_upper,
            )
            for p in estimate.curve
        }
        rows = [points.get(n, (np.nan,) * 3) for n in self._server.positions[cell]]
        low, middle, high = (np.array([row[i] for row in rows]) for i in (1, 0, 2))
        return middle, low, high

    def boundary(self, module: Module, cell: Cell, epsilon: float) -> tuple[int, int, int] | None:
        """See :class:`Answers`."""
        estimate = self._estimates.get(EstimateCell(module, *cell))
        if estimate is None:
            return None
        [found] = [b for b in estimate.boundaries if b.epsilon == epsilon]
        return found.positions, found.lower, found.upper

    def draft(self, cell: Cell, acceptance: float) -> int:
        """See :class:`Answers`."""
        curves = [
            StepCurve(
                of.batch_size,
                of.context,
                estimate.curve[0].median_seconds,
                tuple((p.positions, p.ratio) for p in estimate.curve),
            )
            for of, estimate in self._estimates.items()
            if of.module is Module.MODEL
        ]
        if not curves:
            return 0
        if acceptance not in self._schedules:
            demand = Demand(constant(acceptance), slack=SLACK)
            self._schedules[acceptance] = make_schedule(curves, demand, 128)
        rows = self._schedules[acceptance].rows
        contexts = sorted({row.context for row in rows})
        context = next((c for c in contexts if c >= cell[1]), contexts[-1])
        return next(
            row.draft_length
            for row in rows
            if row.context == context and row.batch_size_first <= cell[0] <= row.batch_size_last
        )


CAPTURE_SECONDS_PER_LAYER = 1.2e-3
"""Of one graph: 82 pairs and 18 captures took 2 s with 36 layers
(benchmarks/results/2026-11-27-h200-at-defaults)."""
MODULE_GRAPH = 1.3
"""What a pair takes over its two steps: the modules' graphs run as well."""


def pair_seconds(server: Server, shape: Shape, ready: frozenset[Shape]) -> float:
    """What a pair costs the device, captures that it needs included."""
    cell = (shape.batch_size, shape.context)
    times = dict(zip(server.positions[cell], server.seconds[Module.MODEL, *cell], strict=True))
    cost = MODULE_GRAPH * (times[shape.positions] + times[1])
    needed = sum(s not in ready for s in (shape, replace(shape, positions=1)))
    return cost + needed * CAPTURE_SECONDS_PER_LAYER * server.shape.num_layers


def true_boundary(server: Server, module: Module, cell: Cell, epsilon: float) -> int | None:
    """NFP on the default grid; None where a time is missing."""
    counts = grid_of(server, cell)
    ratios = dict(zip(server.positions[cell], server.ratios(module, cell), strict=True))
    times = [float(ratios[n]) for n in counts]
    return None if not np.isfinite(times).all() else counts[count_free(times, epsilon) - 1]


def positions_of(grid: Sequence[int], value: int) -> int:
    """The place of a boundary on the grid."""
    return bisect.bisect_left(grid, value)
