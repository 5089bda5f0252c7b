"""What was seen, compressed: a few hundred numbers with their variances."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from vllm_nfp.estimate.location import center, walsh_averages
from vllm_nfp.give_way import in_pieces
from vllm_nfp.types import Module, Shape

PAIRS_KEPT = 16
"""Of a shape; older ones leave."""
MOST_SHAPES = 80
"""Shapes of pairs that are kept, those with the latest pairs: the posterior's cost grows with the
cube of what it is made from."""
MOST_STEPS = 24
"""The same of real steps."""
AT_A_TIME = 64
"""Numbers that are made before a pause."""
MANY = 6
"""Pairs of a shape from which on their pseudo-median withstands an outlier."""
USUAL_NOISE: Mapping[Module, float] = {
    Module.MODEL: 0.002,
    Module.DENSE_FFN: 0.005,
    Module.MOE_FFN: 0.03,
    Module.ATTENTION: 0.013,
    Module.COMMUNICATION: 0.04,
}
"""Standard deviation of a pair's log ratio until enough pairs tell, outliers left out. From the
pairs of benchmarks/results/2026-11-24-h100, -whole-models and 2026-11-25-h100x2-tensor-parallel."""
NOISE_WITH_EXPERTS = 0.02
"""Of the whole step where experts are routed: the two runs wake other ones. From the same pairs."""
USUAL_NOISE_WEIGHT = 6.0
"""Differences between pairs of one shape that the usual noise counts as."""
NOISE_WITHOUT_GRAPH = 0.15
"""Of a pair whose N positions run without a CUDA graph: the host's stops are in it."""
LEAST_DEVIATION = 0.001
"""However many pairs: the same shape, captured again, differs by so much."""
SHARE_DEVIATION = 0.005
"""Of a module's share of the step, beside the noise of its time."""
FORGET_SECONDS = 1800.0
"""Age at which the variance of an observation has grown by DRIFT squared."""
DRIFT = 0.01

Key: TypeAlias = "tuple[Module, Shape]"


@dataclass(frozen=True, slots=True)
class Ratio:
    """log t(N) / t(1) of a module at a shape, from pairs."""

    module: Module
    shape: Shape
    log_ratio: float
    variance: float
    samples: int


@dataclass(frozen=True, slots=True)
class Share:
    """log of a module's time, all layers, over that of the step, from the same runs."""

    module: Module
    shape: Shape
    log_share: float
    variance: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Median time of real steps of a shape. A factor common to all of them is not known."""

    shape: Shape
    log_seconds: float
    variance: float


@dataclass(frozen=True, slots=True)
class Observations:
    """All that the posterior is made from."""

    ratios: tuple[Ratio, ...] = ()
    shares: tuple[Share, ...] = ()
    steps: tuple[StepTime, ...] = ()

    def __add__(self, others: Observations) -> Observations:
        """Both, as when an earlier profile of the same model and device starts a surface warm."""
        return Observations(
            self.ratios + others.ratios, self.shares + others.shares, self.steps + others.steps
        )


@dataclass(slots=True)
class _Seen:
    """Values of one shape, and what they come to."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=PAIRS_KEPT))
    latest: float = 0.0
    center: float = 0.0

    def add(self, value: float, now: float) -> None:
        self.values.append(value)
        self.latest = now
        self.center = _center(self.values)


class Pool:
    """Gathers pairs and real steps, in bounded memory.

    Not thread safe: one thread adds and compresses, others get what :meth:`compressed` returns.
    """

    def __init__(self) -> None:
        self._ratios: dict[Key, _Seen] = {}
        self._shares: dict[Key, _Seen] = {}
        self._steps: dict[Shape, _Seen] = {}
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
            many: seconds at N by module, all layers' where several are timed; with MODEL.
            one: the same at one position.
            now: seconds on a clock that does not jump.
            in_graph: the run at N had a CUDA graph.
        """
        if not in_graph:
            self._without_graph.add(shape)
        for module, seconds in many.items():
            if not (seconds > 0.0 and one.get(module, 0.0) > 0.0):
                continue
            self._add(self._ratios, (module, shape), np.log(seconds / one[module]), now)
        base = Shape(shape.batch_size, shape.context, 1)
        for module, seconds in one.items():
            if module is not Module.MODEL and Module.MODEL in one and seconds > 0.0:
                share = float(np.log(seconds / one[Module.MODEL]))
                self._add(self._shares, (module, base), share, now)

        self._forget_stale()

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """The median time of some real steps of a shape."""
        if seconds > 0.0:
            self._steps.setdefault(shape, _Seen()).add(float(np.log(seconds)), now)
            if len(self._steps) > MOST_STEPS:
                del self._steps[min(self._steps, key=lambda known: self._steps[known].latest)]

    @staticmethod
    def _add(into: dict[Key, _Seen], key: Key, value: float, now: float) -> None:
        into.setdefault(key, _Seen()).add(float(value), now)

    def _forget_stale(self) -> None:
        latest: dict[Shape, float] = {}
        for (_, shape), seen in self._ratios.items():
            latest[shape] = max(seen.latest, latest.get(shape, seen.latest))
        if len(latest) <= MOST_SHAPES:
            return
        stale = min(latest, key=lambda shape: latest[shape])
        for module in Module:
            self._ratios.pop((module, stale), None)
        self._without_graph.discard(stale)

    def samples(self, module: Module, shape: Shape) -> int:
        """Pairs kept of a shape."""
        seen = self._ratios.get((module, shape))
        return len(seen.values) if seen else 0

    def compressed(self, now: float) -> Observations:
        """One number for each shape and module."""
        noise = {m: self.noise(m, graph=True) for m in Module}
        without = self.noise(Module.MODEL, graph=False)
        ratios = []
        for (module, shape), seen in in_pieces(list(self._ratios.items()), AT_A_TIME):
            deviation = without if shape in self._without_graph else noise[module]
            ratios.append(
                Ratio(
                    module,
                    shape,
                    seen.center,
                    _variance(deviation, len(seen.values), now - seen.latest),
                    len(seen.values),
                )
            )
        shares = tuple(
            Share(
                module, shape, seen.center,
                _variance(np.hypot(noise[module], SHARE_DEVIATION), len(seen.values), 0.0),
            )
            for (module, shape), seen in in_pieces(list(self._shares.items()), AT_A_TIME)
        )  # fmt: skip
        steps = tuple(
            StepTime(shape, seen.center, _variance(0.01, 1, now - seen.latest))
            for shape, seen in list(self._steps.items())
        )
        return Observations(tuple(ratios), shares, steps)

    def _usual_noise(self, module: Module) -> float:
        experts = any(of is Module.MOE_FFN for of, _ in self._ratios)
        routed = experts and module is Module.MODEL
        return NOISE_WITH_EXPERTS if routed else USUAL_NOISE[module]

    def noise(self, module: Module, graph: bool) -> float:
        """Standard deviation of a pair's log ratio, from pairs of the same shape."""
        apart = [
            abs(a - b)
            for (of, shape), seen in self._ratios.items()
            if of is module and (shape not in self._without_graph) is graph
            for a, b in _neighbours(seen.values)
        ]
        usual = self._usual_noise(module) if graph else NOISE_WITHOUT_GRAPH
        if not apart:
            return usual
        # Of a normal difference of two the median size is 0.954 standard deviations of one.
        found = float(np.median(apart)) / 0.954
        weight = len(apart) / (len(apart) + USUAL_NOISE_WEIGHT)
        return float(np.exp(weight * np.log(max(found, 1e-4)) + (1 - weight) * np.log(usual)))


def _neighbours(values: Iterable[float]) -> Iterable[tuple[float, float]]:
    kept = list(values)
    return zip(kept[::2], kept[1::2], strict=False)


def _center(values: Iterable[float]) -> float:
    """The median of a few values, which one outlier moves little; the pseudo-median of many."""
    sample = np.fromiter(values, dtype=np.float64)
    return center(walsh_averages(sample)) if len(sample) >= MANY else float(np.median(sample))


def _variance(deviation: float, samples: int, age: float) -> float:
    drift = DRIFT**2 * max(0.0, age) / FORGET_SECONDS
    of_median = 1.0 if samples < 3 or samples >= MANY else np.pi / 2.0
    return float(of_median * deviation**2 / samples) + LEAST_DEVIATION**2 + drift
