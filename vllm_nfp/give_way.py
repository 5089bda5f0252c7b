"""Lets a background thread keep out of the serving thread's way.

Python runs one thread at a time. A thread that computes without a pause gives the interpreter up
only every 5 ms, and a serving thread that lets go of it, as each call into CUDA may, gets it back
no sooner. So whatever computes in the background of a server stops for a moment after each piece
of work of well under a millisecond.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 2e-4
"""Long enough for the serving thread to wake up and take the interpreter."""
LEAST_SECONDS = 1e-4
"""Work after a pause before the next one is worth it: a pause costs some 30 microseconds of one
core, and cools its caches."""


class _Paused(threading.local):
    until = -math.inf
    """Moment at which this thread's last pause ended."""


_paused = _Paused()


def give_way() -> None:
    """Pause, unless this thread just did, or is the process's main thread, which serves."""
    if threading.current_thread() is threading.main_thread():
        return
    if time.perf_counter() - _paused.until >= LEAST_SECONDS:
        time.sleep(PAUSE_SECONDS)
        _paused.until = time.perf_counter()


def in_pieces(items: Iterable[T], size: int) -> Iterator[T]:
    """The same items; a pause may come after every ``size`` of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            give_way()
