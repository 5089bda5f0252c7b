"""Marks in time: CUDA events on a GPU, the host's monotonic clock on a CPU.

A mark is recorded in the hot path and read later; nothing here waits for the device. Times come
from the GPU's own clock or from a monotonic one, so that a step of the wall clock changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_nfp.faults import maybe_fail, stuck


@dataclass(slots=True, eq=False)
class Mark:
    """One moment: a CUDA event, or seconds of the monotonic clock."""

    value: Any
    external: bool = False
    """Recorded inside a CUDA graph: renewed by each replay, and never returned to the pool."""


class Clock(Protocol):
    """Records marks and tells the time between two of them."""

    def mark(self, external: bool = False) -> Mark:
        """Record a mark at this point of the current stream."""
        ...

    def renew(self, mark: Mark) -> None:
        """Record a mark again, at this point of the current stream; makes no new object."""
        ...

    def ready(self, mark: Mark) -> bool:
        """Whether the device has passed the mark."""
        ...

    def reached(self, mark: Mark) -> bool:
        """Whether the device is past the mark already, so that it may wait for what comes next."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds from start to end; both must be ready."""
        ...

    def release(self, mark: Mark) -> None:
        """Give the mark back for another use."""
        ...


class HostClock:
    """Marks of the host's clock, for devices that run synchronously.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self, external: bool = False) -> Mark:
        """Now; the host has no graphs, so ``external`` changes nothing."""
        maybe_fail("timing")
        return Mark(self._now())

    def renew(self, mark: Mark) -> None:
        """Now, in place."""
        mark.value = self._now()

    def ready(self, mark: Mark) -> bool:
        """Always: the device has finished when the call returns."""
        return not stuck()

    def reached(self, mark: Mark) -> bool:
        """Never: launching and running are one, and the device waits for nobody."""
        return False

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds from start to end."""
        return float(end.value - start.value)

    def release(self, mark: Mark) -> None:
        """Nothing to give back."""


class CudaClock:
    """Marks that are CUDA events, from a pool, so that a long run makes no new ones.

    Args:
        make_event: makes an event; ``make_event(enable_timing=True, external=bool)``.
    """

    def __init__(self, make_event: Callable[..., Any] | None = None) -> None:
        if make_event is None:
            import torch

            make_event = torch.cuda.Event
        self._make_event = make_event
        self._pool: list[Any] = []

    def mark(self, external: bool = False) -> Mark:
        """Record an event on the current stream.

        ``external`` events may be recorded while a graph is captured; each replay renews them.
        """
        maybe_fail("timing")
        if external:
            event = self._make_event(enable_timing=True, external=True)
        else:
            event = self._pool.pop() if self._pool else self._make_event(enable_timing=True)
        event.record()
        return Mark(event, external)

    def renew(self, mark: Mark) -> None:
        """Record the mark's event again."""
        mark.value.record()

    def ready(self, mark: Mark) -> bool:
        """Whether the device has passed the event; does not wait."""
        return self.reached(mark) and not stuck()

    def reached(self, mark: Mark) -> bool:
        """Whether the device has passed the event; does not wait."""
        return bool(mark.value.query())

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds between the events, as the GPU timed them."""
        return float(start.value.elapsed_time(end.value)) * 1e-3

    def release(self, mark: Mark) -> None:
        """Return an event to the pool; one that belongs to a graph stays with it."""
        if not mark.external:
            self._pool.append(mark.value)
