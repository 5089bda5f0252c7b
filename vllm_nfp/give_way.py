"""Lets a background thread keep out of the serving thread's way.

Python runs one thread at a time. A thread that computes without a pause gives the interpreter up
only every 5 ms, and a serving thread that lets go of it, as each call into CUDA may, gets it back
no sooner. So whatever computes in the background of a server stops for a moment after each piece
of work of well under a millisecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 2e-4
"""Long enough for the serving thread to wake up and take the interpreter."""


def give_way() -> None:
    """Pause, unless this is the process's main thread, which serves."""
    if threading.current_thread() is not threading.main_thread():
        time.sleep(PAUSE_SECONDS)


def in_pieces(items: Iterable[T], size: int) -> Iterator[T]:
    """The same items, with a pause after every ``size`` of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            give_way()
