"""A pair of runs, as it is launched."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from vllm_nfp.types import Shape


def both(target: Shape) -> tuple[Shape, Shape]:
    """The baseline at one position, and the target itself."""
    return Shape(target.batch_size, target.context, 1), target


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its baseline, in the order of their launch."""

    target: Shape
    baseline_first: bool
    draw: int = 0
    """Which tokens both run on."""

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """The two runs in the order in which they are launched."""
        one, many = both(self.target)
        return (one, many) if self.baseline_first else (many, one)


class Draws:
    """Draws the order of each pair, and its tokens.

    Args:
        seed: of the random order.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._drawn: Counter[Shape] = Counter()

    def pair(self, target: Shape) -> Pair:
        """The next pair of the target, in random order, on the same tokens for all N, one by one.

        With experts the time of a step depends on its tokens: with few sequences, by several per
        cent. Pairs of different N run on the same tokens, so that their ratios can be compared.
        """
        first, draw = self._rng.random() < 0.5, self._drawn[target]
        self._drawn[target] += 1
        return Pair(target, first, draw)
