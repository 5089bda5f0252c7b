"""What answers in a replay: the surface, with its chooser or without, and the prior alone."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from benchmarks.answers.replay_recorded import POSITIONS, Cell, Server
from vllm_nfp.config import DEFAULT_POSITIONS
from vllm_nfp.crossing import count_free
from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.session.agenda_maker import (
    MODULE_GRAPH,
    MOST_CANDIDATES,
    decisions_at,
    drawn_concerns,
)
from vllm_nfp.surface import (
    Candidate,
    CellAnswer,
    CostSurface,
    Hyperparameters,
    Prior,
    boundary,
)
from vllm_nfp.types import Module, PairResult, Shape

EPSILONS = (0.05, 0.1, 0.2)
DECISIONS = decisions_at(POSITIONS, EPSILONS)


class Method(Protocol):
    """One way to answer."""

    def next(self, ready: frozenset[Shape], traffic: Cell | None) -> Shape | None:
        """The pair to run next; None: none."""
        ...

    def add(self, pair: PairResult, now: float) -> None:
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
        """The draft length, by the rule that servers are answered with."""
        ...


def grid_of(server: Server, cell: Cell) -> tuple[int, ...]:
    """The default positions that are known in a cell."""
    return tuple(n for n in DEFAULT_POSITIONS if n in server.positions[cell])


class SurfaceMethod:
    """The surface with its chooser.

    Args:
        learns: False: the prior alone.
        chooses: False: pairs are drawn at random.
        steps: False: real steps are ignored.
        prior: instead of the server's prediction.
    """

    def __init__(
        self,
        server: Server,
        hyper: Hyperparameters,
        learns: bool = True,
        chooses: bool = True,
        steps: bool = True,
        prior: Prior | None = None,
        seed: int = 0,
    ) -> None:
        self._server, self._learns, self._steps = server, learns, steps
        self._chooses = chooses
        self.surface = CostSurface(prior or server.prior, hyper)
        self._random = random.Random(seed)
        self._queue: list[Shape] = []
        self._traffic: dict[Cell, float] = {}
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
        concerns = drawn_concerns(server.cells, self._traffic, self._random)
        drawn = {(of.batch_size, of.context) for of in concerns}
        shapes = [shape for shape in shapes if (shape.batch_size, shape.context) in drawn]
        candidates = [
            Candidate(shape, pair_seconds(server, shape, ready))
            for shape in self._random.sample(shapes, min(MOST_CANDIDATES, len(shapes)))
        ]
        self.surface.update(self._now)
        return list(self.surface.choose(candidates, concerns, DECISIONS, most=4))

    def add(self, pair: PairResult, now: float) -> None:
        """See :class:`Method`."""
        self._now = now
        self.surface.add_pair(pair, now)

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """See :class:`Method`."""
        if self._learns and self._steps:
            self.surface.add_step(shape, seconds, now)

    def answers(self, now: float) -> SurfaceAnswers:
        """See :class:`Method`."""
        self.surface.update(now)
        return SurfaceAnswers(self._server, self.surface)


class SurfaceAnswers:
    """What the surface says."""

    def __init__(self, server: Server, surface: CostSurface) -> None:
        self._server, self._surface = server, surface
        self._found: dict[tuple[int, ...], dict[tuple[Module, int, int], CellAnswer]] = {}

    def _at(self, module: Module, cell: Cell, fine: bool) -> CellAnswer:
        server = self._server
        positions = server.positions[cell] if fine else grid_of(server, cell)
        if positions not in self._found:
            cells = [
                c for c in server.cells
                if positions == (server.positions[c] if fine else grid_of(server, c))
            ]  # fmt: skip
            self._found[positions] = dict(self._surface.answers(cells, positions))
        return self._found[positions][module, *cell]

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
        ends = zip(*(end.tolist() for end in found.interval), strict=True)
        points = zip(found.positions.tolist(), found.ratio.tolist(), strict=True)
        # t(1) in seconds changes nothing where drafts cost nothing.
        curve = StepCurve(*cell, 1.0, tuple(points), intervals=tuple(ends))
        return best_length(curve, Demand(constant(acceptance)))


CAPTURE_SECONDS_PER_LAYER = 1.2e-3
"""Of one graph: 82 pairs and 18 captures took 2 s with 36 layers
(benchmarks/results/2026-11-27-h200-at-defaults)."""


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
