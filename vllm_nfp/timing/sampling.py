"""Chooses the real steps that are looked at: all of the first ones, later one in eight.

To look at a step, time it and read the marks takes the host some 25 us. A step that the GPU bounds
hides that; one that the host bounds does not. So each look stands for all steps since the last one.

That is right on average only if chance alone chooses the steps. A step that is looked at for what
it is, such as one that is full of tokens, stands for itself. The sampler does not count it.
"""

from __future__ import annotations

import random

LOOKED_AT_FIRST = 512
"""First steps of a session, which are all looked at: so metrics appear at once."""
LOOKED_ONE_IN = 8
"""Of later steps; at random, since a server's steps may have a rhythm."""


class Sampler:
    """Decides step by step over the steps that only chance looks at; makes no object.

    Args:
        one_in: mean number of steps that a look stands for; 1 looks at all steps.
        first: number of first steps that are all looked at.
    """

    __slots__ = ("_first", "_gap", "_looks", "_one_in", "_random", "_since", "stands_for")

    def __init__(self, one_in: int = LOOKED_ONE_IN, first: int = LOOKED_AT_FIRST) -> None:
        self._one_in = one_in
        self._first = first
        self._random = random.Random(0)
        self._gap = 1
        self._since = 0
        self._looks = 0
        self.stands_for = 1
        """Counted steps that the latest look stands for, its own among them."""

    def look(self) -> bool:
        """Count a step; whether it is to be looked at."""
        self._since += 1
        if self._since < self._gap:
            return False
        self.stands_for, self._since = self._since, 0
        self._looks += 1
        self._gap = self._random.randrange(1, 2 * self._one_in) if self._looks >= self._first else 1
        return True
