"""Tells a change of the machine, such as another clock or a neighbour on the GPU, from an outlier.

A pair is evidence of a change if it contradicts the earlier pairs of its own shape, unless those
were in doubt themselves. A host that stops for a moment gives such a pair too; but the next pair of
that shape agrees with the earlier ones again and takes the evidence back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.types import Shape

CONTRADICTS = 4.0
"""Standard deviations between a pair and what was known."""
LEAST_MOVE = 0.005
"""Standard deviation of what moves from pair to pair without any change of the machine."""
ENOUGH = 3
"""Pairs that contradict in the same direction, of several shapes or of one that was certain."""
CERTAIN = 6
"""Earlier pairs that make a shape certain: two of three may have been outliers themselves."""
WINDOW = 12
"""Most recent pairs of shapes that were known before."""


@dataclass(frozen=True, slots=True)
class Change:
    """The machine has changed.

    Attributes:
        since: moment of the first pair that shows it.
        variance: by how much log ratios moved, mean square.
    """

    since: float
    variance: float


@dataclass(frozen=True, slots=True)
class _Evidence:
    number: int
    shape: Shape
    before: float
    samples: int
    deviation: float
    at: float


class Watch:
    """Gathers evidence of a change, pair by pair."""

    def __init__(self) -> None:
        self._pairs = 0
        self._evidence: list[_Evidence] = []

    @property
    def suspects(self) -> tuple[Shape, ...]:
        """Shapes whose pairs contradict what was known, the latest first."""
        return tuple(one.shape for one in reversed(self._evidence))

    @property
    def since(self) -> float:
        """Moment of the first evidence that still holds; infinite without any."""
        return min((one.at for one in self._evidence), default=math.inf)

    def before(self, shape: Shape) -> float | None:
        """The log ratio of a suspected shape before the first pair that contradicts it."""
        return next((one.before for one in self._evidence if one.shape == shape), None)

    def agrees(self, shape: Shape) -> None:
        """A pair agrees with the earlier ones of its shape."""
        self._pairs += 1
        self._keep(shape)

    def contradicts(
        self, shape: Shape, before: float, samples: int, deviation: float, now: float
    ) -> Change | None:
        """A pair contradicts the earlier ones of its shape.

        Args:
            before: their log ratio.
            samples: how many they are.
            deviation: by how much the pair lies over it.
        """
        self._pairs += 1
        self._keep(None)
        first = next((one for one in self._evidence if one.shape == shape), None)
        samples = samples if first is None else first.samples
        self._evidence.append(_Evidence(self._pairs, shape, before, samples, deviation, now))
        same = [one for one in self._evidence if one.deviation * deviation > 0.0]
        if len(same) < ENOUGH:
            return None
        if len({one.shape for one in same}) == 1 and samples < CERTAIN:
            self._keep(shape)  # its first pairs were the outliers
            return None
        self._evidence = []
        size = sum(one.deviation**2 for one in same) / len(same)
        return Change(min(one.at for one in same), size)

    def _keep(self, but: Shape | None) -> None:
        self._evidence = [
            one for one in self._evidence if one.shape != but and one.number > self._pairs - WINDOW
        ]


def nearest(shapes: Sequence[Shape], to: Shape) -> Shape | None:
    """The shape most like another one: alike in tokens and batch size first, then in context."""
    return min(shapes, key=lambda shape: _apart(shape, to), default=None)


def _apart(some: Shape, other: Shape) -> float:
    tokens = some.batch_size * some.positions / (other.batch_size * other.positions)
    batch, context = some.batch_size / other.batch_size, some.context / other.context
    return abs(math.log(tokens)) + abs(math.log(batch)) + 0.2 * abs(math.log(context))
