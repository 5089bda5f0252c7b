"""Tells a change of the machine, such as another clock or a neighbour on the GPU, from an outlier.

A pair is evidence of a change if it contradicts the earlier pairs of its own shape, unless those
were in doubt themselves. A host that stops for a moment gives such a pair too; but the next pair of
that shape agrees with the earlier ones again and takes the evidence back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.types import Shape

CONTRADICTS = 4.0
"""Standard deviations between a pair and what was known."""
IN_A_ROW = 2
"""Pairs of a shape that must contradict in a row: a delay of the host or an odd draw of tokens
spoils one pair."""
SHAPES, SHAPES_IF_UNSURE, SURE = 2, 3, 3
"""Shapes that must do so in the same direction; more if none of them had so many earlier pairs: the
very first pair of a shape is often slow."""
CERTAIN, ALONE = 6, 3
"""A shape with so many earlier pairs shows a change alone, by so many pairs in a row, unless
another one has agreed in between."""
GIVE_UP = 4
"""Pairs in a row after which a shape that contradicts alone is no more a suspect: its earlier pairs
were the outliers, or it has got another kernel."""
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
class Before:
    """What the pairs of a shape said before one contradicted them.

    Attributes:
        center: their log ratio.
        samples: how many they are.
        deviation: of one more pair from the center, while the machine stays as it is.
    """

    center: float
    samples: int
    deviation: float

    def contradicted_by(self, log_ratio: float) -> bool:
        """Whether one more pair cannot be of the same machine, if it is no outlier."""
        return abs(log_ratio - self.center) > CONTRADICTS * self.deviation


@dataclass(frozen=True, slots=True)
class _Evidence:
    number: int
    shape: Shape
    before: Before
    deviation: float
    at: float


class Watch:
    """Gathers evidence of a change, pair by pair."""

    def __init__(self) -> None:
        self._pairs = 0
        self._agreed = 0
        """Number of the last pair that agreed."""
        self._evidence: list[_Evidence] = []

    @property
    def suspects(self) -> tuple[Shape, ...]:
        """Shapes whose pairs contradict what was known, the latest first."""
        return tuple(one.shape for one in reversed(self._evidence))

    @property
    def since(self) -> float:
        """Moment of the first evidence that still holds; infinite without any."""
        return min((one.at for one in self._evidence), default=math.inf)

    def before(self, shape: Shape) -> Before | None:
        """What was known of a suspected shape before the first pair that contradicts it."""
        return next((one.before for one in self._evidence if one.shape == shape), None)

    def agrees(self, shape: Shape) -> None:
        """A pair agrees with the earlier ones of its shape."""
        self._pairs += 1
        self._agreed = self._pairs
        self._keep(shape)

    def contradicts(
        self, shape: Shape, before: Before, log_ratio: float, now: float
    ) -> Change | None:
        """A pair contradicts the earlier ones of its shape."""
        self._pairs += 1
        self._keep(None)
        deviation = log_ratio - before.center
        self._evidence.append(_Evidence(self._pairs, shape, before, deviation, now))
        same = [one for one in self._evidence if one.deviation * deviation > 0.0]
        if not self._believed(same):
            if len(same) >= GIVE_UP and {one.shape for one in same} == {shape}:
                self._keep(shape)
            return None
        self._evidence = []
        size = sum(one.deviation**2 for one in same) / len(same)
        return Change(min(one.at for one in same), size)

    def _believed(self, same: Sequence[_Evidence]) -> bool:
        """Whether pairs that all contradict in one direction are a change of the machine."""
        pairs = Counter(one.shape for one in same)
        samples = {one.shape: one.before.samples for one in same}
        several = [shape for shape in pairs if pairs[shape] >= IN_A_ROW]
        sure = any(samples[shape] >= SURE for shape in several)
        if len(several) >= (SHAPES if sure else SHAPES_IF_UNSURE):
            return True
        alone = len(pairs) == 1 and same[0].number > self._agreed
        return alone and len(same) >= ALONE and same[0].before.samples >= CERTAIN

    def _keep(self, but: Shape | None) -> None:
        self._evidence = [
            one for one in self._evidence if one.shape != but and one.number > self._pairs - WINDOW
        ]


def nearest(shapes: Sequence[Shape], to: Shape, most: int) -> tuple[Shape, ...]:
    """The shapes most like another one: alike in tokens and batch size first, then in context."""
    return tuple(sorted(shapes, key=lambda shape: _apart(shape, to))[:most])


def _apart(some: Shape, other: Shape) -> float:
    tokens = some.batch_size * some.positions / (other.batch_size * other.positions)
    batch, context = some.batch_size / other.batch_size, some.context / other.context
    return abs(math.log(tokens)) + abs(math.log(batch)) + 0.2 * abs(math.log(context))
