"""The definition of NFP, on any curve."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

USUAL_EPSILON = 0.1
"""The tolerance that is shown where none is asked for."""
MOST_EPSILON = 1.0
"""Largest tolerance: a step that takes twice as long is free by no measure. It also refuses 10,
which means 10 % where fractions are asked for."""


def count_free(times: Iterable[float], epsilon: float) -> int:
    """How many of the first times lie within (1 + epsilon) of the first of all.

    NFP is the number of positions that the last of these belongs to; if it is the last of all,
    nothing was over the line and NFP is this or more.

    Args:
        times: t(N) or t(N) / t(1), ascending in N from 1; not empty.
        epsilon: tolerance, 0 or more.
    """
    values = iter(times)
    line = (1.0 + epsilon) * next(values)
    return 1 + sum(1 for _ in takewhile(lambda time: time <= line, values))


def usual_epsilon(known: Iterable[float]) -> float:
    """The tolerance that is shown where none is asked for: the usual one, else the one next to it.

    Args:
        known: tolerances with results; the smaller of two that are equally near is taken.
    """
    return min(known, key=lambda e: (abs(e - USUAL_EPSILON), e), default=USUAL_EPSILON)
