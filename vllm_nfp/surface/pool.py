"""Gathers pairs and real steps in bounded memory, and compresses them to observations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vllm_nfp.give_way import in_pieces
from vllm_nfp.surface import noise
from vllm_nfp.surface.observations import Baseline, Observations, Ratio, StepTime
from vllm_nfp.types import Module, Shape

PAIRS_KEPT = 32
SHAPES_KEPT = 80
MOST_STEPS = 24
"""Shapes of real steps that are kept."""
AT_A_TIME = 64
"""Numbers that are made before a pause."""
K = TypeVar("K")


@dataclass(slots=True)
class Seen:
    """Values of one shape, the moments of their runs, and what they come to.

    Attributes:
        doubt: variance that a change of the machine has added.
    """

    values: deque[float]
    times: deque[float]
    center: float = 0.0
    doubt: float = 0.0

    @classmethod
    def empty(cls, most: int) -> Seen:
        """Of at most so many values; older ones leave."""
        return cls(deque(maxlen=most), deque(maxlen=most))

    @property
    def latest(self) -> float:
        """Moment of the last run."""
        return self.times[-1]

    def add(self, value: float, now: float) -> None:
        """One more value."""
        self.values.append(value)
        self.times.append(now)
        self.center = noise.center(self.values)


class Pool:
    """Pairs and real steps of one server.

    Not thread safe: one thread adds and compresses, others get what :meth:`compressed` returns.

    Args:
        pairs_kept: of a shape; older ones leave.
        shapes_kept: of pairs, those with the latest ones: the posterior's cost grows with the cube
            of what it is made from.
    """

    def __init__(self, pairs_kept: int = PAIRS_KEPT, shapes_kept: int = SHAPES_KEPT) -> None:
        self._pairs_kept, self._shapes_kept = pairs_kept, shapes_kept
        self._ratios: dict[tuple[Module, Shape], Seen] = {}
        self._baselines: dict[tuple[Module, Shape], Seen] = {}
        self._steps: dict[Shape, Seen] = {}
        self._latest: dict[Shape, float] = {}
        self._without_graph: set[Shape] = set()

    def add_pair(
        self,
        shape: Shape,
        many: Mapping[Module, float],
        one: Mapping[Module, float],
        now: float,
        in_graph: bool = True,
    ) -> None:
        """A pair of runs at N and at one position, side by side.

        Args:
            shape: the run at N positions.
            many: seconds at N by module, of one layer or of the whole step.
            one: the same at one position.
            now: seconds on a clock that does not jump.
            in_graph: the run at N had a CUDA graph.
        """
        if not in_graph:
            self._without_graph.add(shape)
        base = _base(shape)
        for module, seconds in many.items():
            if not (seconds > 0.0 and one.get(module, 0.0) > 0.0):
                continue
            self._add(self._ratios, (module, shape), np.log(seconds / one[module]), now)
            self._add(self._baselines, (module, base), np.log(one[module]), now)
        self._latest[shape] = now
        self._forget_stale()

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
        for module in Module:
            self._ratios.pop((module, stale), None)
            if not shared:
                self._baselines.pop((module, base), None)

    def seen(self, module: Module, shape: Shape) -> Seen | None:
        """The pairs kept of a module at a shape."""
        return self._ratios.get((module, shape))

    def samples(self, module: Module, shape: Shape) -> int:
        """Pairs kept of a shape."""
        seen = self.seen(module, shape)
        return len(seen.values) if seen else 0

    def compressed(self, now: float) -> Observations:
        """One number for each shape and module."""
        scatter = {m: self.noise(m, graph=True) for m in Module}
        without = self.noise(Module.MODEL, graph=False)
        ratios = []
        for (module, shape), seen in in_pieces(list(self._ratios.items()), AT_A_TIME):
            deviation = without if shape in self._without_graph else scatter[module]
            spread = noise.variance(deviation, len(seen.values), now - seen.latest) + seen.doubt
            ratios.append(Ratio(module, shape, seen.center, spread, len(seen.values)))
        steps = tuple(
            StepTime(
                shape,
                seen.center,
                noise.variance(noise.STEP_DEVIATION, 1, now - seen.latest) + seen.doubt,
            )
            for shape, seen in self._steps.items()
        )
        return Observations(tuple(ratios), steps, tuple(self._compressed_baselines(now)))

    def _compressed_baselines(self, now: float) -> Iterator[Baseline]:
        for (module, base), seen in in_pieces(list(self._baselines.items()), AT_A_TIME):
            spread = noise.variance(
                noise.BASELINE_DEVIATION,
                len(seen.values),
                now - seen.latest,
                noise.LEAST_BASELINE_DEVIATION,
            )
            yield Baseline(module, base.batch_size, base.context, seen.center, spread + seen.doubt)

    def noise(self, module: Module, graph: bool) -> float:
        """Standard deviation of a pair's log ratio, from pairs of the same shape."""
        values = (
            seen.values
            for (of, shape), seen in self._ratios.items()
            if of is module and (shape not in self._without_graph) is graph
        )
        return noise.scatter(values, self._usual(module) if graph else noise.NOISE_WITHOUT_GRAPH)

    def pair_noise(self, shape: Shape, graph: bool) -> float:
        """The same of the whole step at a shape that ``graph`` says to have a CUDA graph or not."""
        return self.noise(Module.MODEL, graph and shape not in self._without_graph)

    def _usual(self, module: Module) -> float:
        routed = module is Module.MODEL and any(of is Module.MOE_FFN for of, _ in self._ratios)
        return noise.NOISE_WITH_EXPERTS if routed else noise.USUAL_NOISE[module]


def _base(shape: Shape) -> Shape:
    return Shape(shape.batch_size, shape.context, 1)
