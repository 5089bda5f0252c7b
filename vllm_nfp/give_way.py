"""Lets a background thread keep out of the serving thread's way.

Python runs one thread at a time. A thread that computes without a pause gives the interpreter up
only every 5 ms, and a serving thread that lets go of it, as each call into CUDA may, gets it back
no sooner. So whatever computes in the background of a server stops for a moment after each piece
of work of well under a millisecond.

A step that reads a prompt has no CUDA graph. The device waits for the host all the time, which lets
go of the interpreter at each operator. So the background also waits until such a step is launched,
for a while.
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


PATIENCE_SECONDS = 5.0
"""For which one piece of news waits for host-bound steps in all. A server that reads prompts all
the time would let it wait for ever."""


class Serving:
    """What the serving thread of this process is at; it alone writes."""

    __slots__ = ("_free", "host_bound")

    def __init__(self) -> None:
        self.host_bound = False
        """A step is being launched whose launch is slower than the device."""
        self._free = threading.Event()

    def begin(self, host_bound: bool) -> None:
        """A step begins. The one before has been launched, said or not: some ranks never say it."""
        if host_bound:
            self._free.clear()
            self.host_bound = True
        else:
            self.end()

    def end(self) -> None:
        """Any step has been launched."""
        if self.host_bound:
            self.host_bound = False
            self._free.set()

    def wait(self, seconds: float) -> None:
        """Wait until the host-bound step has been launched, for so long at most.

        To look again and again would take the interpreter each time.
        """
        self._free.wait(seconds)


serving = Serving()


class _Paused(threading.local):
    until = -math.inf
    """Moment at which this thread's last pause ended."""
    patience = 0.0
    """Seconds for which this thread may still wait for host-bound steps."""


_paused = _Paused()


def be_patient(seconds: float = PATIENCE_SECONDS) -> None:
    """Let this thread wait for host-bound steps for so long in all, from now on."""
    _paused.patience = seconds


def give_way() -> None:
    """Pause, unless this thread just did, or is the process's main thread, which serves.

    The pause lasts until no host-bound step is being launched, or this thread's patience is spent.
    """
    if threading.current_thread() is threading.main_thread():
        return
    if time.perf_counter() - _paused.until >= LEAST_SECONDS:
        time.sleep(PAUSE_SECONDS)
        while serving.host_bound and _paused.patience > 0.0:
            begun = time.perf_counter()
            serving.wait(_paused.patience)
            _paused.patience -= time.perf_counter() - begun
        _paused.until = time.perf_counter()


def in_pieces(items: Iterable[T], size: int) -> Iterator[T]:
    """The same items; a pause may come after every ``size`` of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            give_way()
