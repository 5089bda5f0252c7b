"""Gathers pairs and real steps in bounded memory, and compresses them to observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface import noise
from vllm_nfp.surface.drift import Change
from vllm_nfp.surface.observations import Baseline, Observations, Ratio, StepTime
from vllm_nfp.surface.parts import FloatArray
from vllm_nfp.surface.seen import Seen, variances
from vllm_nfp.types import Module, Shape

PAIRS_KEPT = 32
SHAPES_KEPT = 80
MOST_STEPS = 24
"""Shapes of real steps that are kept."""
LEAST_STEPS, STEP_MOVED = 3, 0.05
"""Real steps of a shape that must be known to see others move, and by how much in log time."""
AT_A_TIME = 64
"""Numbers that are made before a pause."""
K = TypeVar("K")


class Pool:
    """Pairs and real steps of one server.

    Not thread safe: one thread adds and compresses, others get what :meth:`compressed` returns.

    Args:
        pairs_kept: of a shape; older ones leave.
        shapes_kept: of pairs, those with the latest ones: the posterior's cost grows with the cube
            of what it is made from.
        routed: the model has experts.
    """

    def __init__(
        self, pairs_kept: int = PAIRS_KEPT, shapes_kept: int = SHAPES_KEPT, routed: bool = False
    ) -> None:
        self.routed = routed
        self._pairs_kept, self._shapes_kept = pairs_kept, shapes_kept
        self._ratios: dict[tuple[Module, Shape], Seen] = {}
        self._baselines: dict[tuple[Module, Shape], Seen] = {}
        self._steps: dict[Shape, Seen] = {}
        self._latest: dict[Shape, float] = {}
        self._without_graph: set[Shape] = set()
        self._bare: set[Shape] = set()
        """Shapes whose whole steps were timed on KV blocks without content."""
        self._noises: dict[tuple[Module, bool], float] = {}
        """Of :meth:`noises`; empty once they may have changed."""

    def add_pair(
        self,
        shape: Shape,
        many: Mapping[Module, float],
        one: Mapping[Module, float],
        now: float,
        in_graph: bool = True,
        content: bool = True,
    ) -> None:
        """A pair of runs at N and at one position, side by side.

        A whole step on KV blocks without content gives way to one on blocks with content.

        Args:
            shape: the run at N positions.
            many: seconds at N by module, of one layer or of the whole step.
            one: the same at one position.
            now: seconds on a clock that does not jump.
            in_graph: the run at N had a CUDA graph.
            content: the KV blocks that were read had content, or it does not matter.
        """
        self._noises = {}
        if not in_graph:
            self._without_graph.add(shape)
        base = _base(shape)
        for module, seconds in many.items():
            if not (seconds > 0.0 and one.get(module, 0.0) > 0.0):
                continue
            if self._takes(self._ratios, module, shape, content):
                self._add(self._ratios, (module, shape), np.log(seconds / one[module]), now)
            if self._takes(self._baselines, module, base, content):
                self._add(self._baselines, (module, base), np.log(one[module]), now)
        self._latest[shape] = now
        self._forget_stale()

    def _takes(
        self, known: dict[tuple[Module, Shape], Seen], module: Module, shape: Shape, content: bool
    ) -> bool:
        """Whether a time counts, given what is known of its shape."""
        if module is not Module.MODEL:
            return True
        key, bare = (module, shape), shape in self._bare
        if not content:
            if key in known and not bare:
                return False
            self._bare.add(shape)
        elif bare:
            known.pop(key, None)
            self._bare.discard(shape)
        return True

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """The median time of some real steps of a shape."""
        if seconds > 0.0:
            self._add(self._steps, shape, np.log(seconds), now)
            if len(self._steps) > MOST_STEPS:
                del self._steps[min(self._steps, key=lambda known: self._steps[known].latest)]

    def _add(self, into: dict[K, Seen], key: K, value: float, now: float) -> None:
        if key not in into:
            into[key] = Seen.empty(self._pairs_kept)
        into[key].add(float(value), now)

    def _forget_stale(self) -> None:
        if len(self._latest) <= self._shapes_kept:
            return
        stale = min(self._latest, key=lambda shape: self._latest[shape])
        del self._latest[stale]
        self._without_graph.discard(stale)
        base = _base(stale)
        shared = any(_base(shape) == base for shape in self._latest)
        self._bare -= {stale} if shared else {stale, base}
        for module in Module:
            self._ratios.pop((module, stale), None)
            if not shared:
                self._baselines.pop((module, base), None)

    def changed(self, change: Change) -> None:
        """The machine has changed: what is older counts little, or leaves where newer pairs are."""
        self._noises = {}
        for seen in in_pieces(
            [*self._ratios.values(), *self._baselines.values(), *self._steps.values()], AT_A_TIME
        ):
            if seen.latest >= change.since:
                seen.forget_before(change.since)
            else:
                seen.doubt += change.variance

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes with pairs."""
        return tuple(self._latest)

    def latest(self, shape: Shape) -> float:
        """Moment of a shape's last pair."""
        return self._latest[shape]

    def log_ratio(self, shape: Shape) -> float:
        """log t(N) / t(1) of the whole step at a shape; 0 without a pair."""
        seen = self.seen(Module.MODEL, shape)
        return seen.center if seen else 0.0

    def step_moved(self, shape: Shape) -> bool:
        """Whether the last two real steps of a shape differ from those before, the same way."""
        values = np.array(self._steps[shape].values)
        if len(values) < LEAST_STEPS + 2:
            return False
        apart = values[-2:] - np.median(values[:-2])
        return bool((apart > STEP_MOVED).all() or (apart < -STEP_MOVED).all())

    def seen(self, module: Module, shape: Shape) -> Seen | None:
        """The pairs kept of a module at a shape."""
        return self._ratios.get((module, shape))

    def samples(self, module: Module, shape: Shape) -> int:
        """Pairs kept of a shape."""
        seen = self.seen(module, shape)
        return len(seen.values) if seen else 0

    def compressed(self, now: float) -> Observations:
        """One number for each shape and module."""
        scatter = self.noises()
        without = scatter[Module.MODEL, False]
        give_way()
        deviations = [
            without if shape in self._without_graph else scatter[module, True]
            for module, shape in self._ratios
        ]
        spread = variances(self._ratios, now, np.array(deviations))
        give_way()
        seen = zip(self._ratios.items(), spread, deviations, strict=True)
        ratios = tuple(
            _ratio(module, shape, one, variance, deviation, self.has_content(module, shape))
            for ((module, shape), one), variance, deviation in in_pieces(seen, AT_A_TIME)
        )
        step = noise.STEP_DEVIATION_WITH_EXPERTS if self.routed else noise.STEP_DEVIATION
        of_steps = variances(self._steps, now, step, grows=False)
        steps = tuple(
            StepTime(shape, one.center, variance)
            for (shape, one), variance in zip(self._steps.items(), of_steps, strict=True)
        )
        of_bases = variances(
            self._baselines, now, noise.BASELINE_DEVIATION, noise.LEAST_BASELINE_DEVIATION
        )
        known = zip(self._baselines.items(), of_bases, strict=True)
        baselines = tuple(
            self._baseline(module, base, one, variance)
            for ((module, base), one), variance in in_pieces(known, AT_A_TIME)
        )
        return Observations(ratios, steps, baselines)

    def noises(self) -> Mapping[tuple[Module, bool], float]:
        """Standard deviation of a pair's log ratio, from pairs of the same shape.

        Returns:
            Mapping: by module, and whether the run at N had a CUDA graph.
        """
        if not self._noises:
            self._noises = self._scattered()
        return self._noises

    def _scattered(self) -> dict[tuple[Module, bool], float]:
        gaps: dict[tuple[Module, bool], list[FloatArray]] = {
            (module, graph): [] for module in Module for graph in (True, False)
        }
        for (module, shape), seen in self._ratios.items():
            if len(seen.gaps):
                gaps[module, shape not in self._without_graph].append(seen.gaps)
        return {
            (of, graph): noise.scatter(
                known, self._usual(of) if graph else noise.NOISE_WITHOUT_GRAPH
            )
            for (of, graph), known in gaps.items()
        }

    def _baseline(self, module: Module, base: Shape, seen: Seen, variance: float) -> Baseline:
        content, cell = self.has_content(module, base), (base.batch_size, base.context)
        return Baseline(module, *cell, seen.center, variance, content)

    def has_content(self, module: Module, shape: Shape) -> bool:
        """Whether the KV blocks that a shape's runs read had content, or it does not matter."""
        return module is not Module.MODEL or shape not in self._bare

    def ran_without_graph(self, shape: Shape) -> bool:
        """Whether a pair of this shape had no CUDA graph."""
        return shape in self._without_graph

    def _usual(self, module: Module) -> float:
        routed = module is Module.MODEL and self.routed
        return noise.NOISE_WITH_EXPERTS if routed else noise.USUAL_NOISE[module]


def _ratio(
    module: Module, shape: Shape, seen: Seen, variance: float, deviation: float, content: bool
) -> Ratio:
    torn = seen.apart > noise.TORN * deviation
    variance += seen.spread if torn else 0.0
    return Ratio(module, shape, seen.center, variance, len(seen.values), torn, content)


def _base(shape: Shape) -> Shape:
    return Shape(shape.batch_size, shape.context, 1)
