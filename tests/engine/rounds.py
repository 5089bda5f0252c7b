"""Rounds of requests until a probe has run, on a machine that may be busy or stand still."""

from __future__ import annotations

import time
from collections.abc import Iterator

LEAST, SECONDS = 20, 60.0


def rounds() -> Iterator[int]:
    """Numbers of rounds, for a loop that ends by itself; at least LEAST, and for SECONDS.

    A busy machine runs few pairs at a time. One that stands still for seconds in the middle of a
    pair owes them: no other pair runs until steps have earned as much.
    """
    until, number = time.monotonic() + SECONDS, 0
    while number < LEAST or time.monotonic() < until:
        yield number
        number += 1
