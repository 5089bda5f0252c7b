"""Values of one shape: pairs, or real steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from vllm_nfp.surface import noise
from vllm_nfp.surface.parts import FloatArray

K = TypeVar("K")


@dataclass(slots=True)
class Seen:
    """Values of one shape, the moments of their runs, and what they come to.

    Attributes:
        apart: median distance of the values from their center; 0 for a single one.
        spread: their variance.
        doubt: variance that a change of the machine has added.
    """

    values: deque[float]
    times: deque[float]
    center: float = 0.0
    apart: float = 0.0
    spread: float = 0.0
    doubt: float = 0.0
    gaps: FloatArray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def empty(cls, most: int) -> Seen:
        """Of at most so many values; older ones leave."""
        return cls(deque(maxlen=most), deque(maxlen=most))

    @property
    def latest(self) -> float:
        """Moment of the last run."""
        return self.times[-1]

    def add(self, value: float, now: float) -> None:
        """One more value; those of before a change of the machine leave."""
        if self.doubt:
            self.forget_before(now)
        self.values.append(value)
        self.times.append(now)
        self._sum_up()

    def forget_before(self, moment: float) -> None:
        """Only later values stay."""
        kept = [(v, t) for v, t in zip(self.values, self.times, strict=True) if t >= moment]
        self.values = deque((v for v, _ in kept), self.values.maxlen)
        self.times = deque((t for _, t in kept), self.times.maxlen)
        self.doubt = 0.0
        self._sum_up()

    def _sum_up(self) -> None:
        sample = np.array(self.values)
        self.gaps = noise.gaps_of(sample)
        if len(sample):
            self.center = noise.center(sample)
            self.apart = float(np.median(np.abs(sample - self.center)))
            self.spread = float(np.var(sample))


def variances(
    seen: Mapping[K, Seen],
    now: float,
    deviation: FloatArray | float,
    least: float = noise.LEAST_DEVIATION,
    grows: bool = True,
) -> list[float]:
    """Of each shape's center; ``grows``: more values make it more certain."""
    samples = np.array([len(one.values) if grows else 1 for one in seen.values()], np.float64)
    ages = now - np.array([one.latest for one in seen.values()])
    spread = noise.variance(np.asarray(deviation), samples, ages, least)
    spread += np.array([one.doubt for one in seen.values()])
    return [float(value) for value in spread]
