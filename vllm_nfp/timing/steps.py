"""Times real decode steps with one pair of marks each, and keeps them by kind of step.

The hot path makes no object, takes no lock and waits for nothing: marks lie in a ring that is made
at the start, and are read when a later step comes by.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from vllm_nfp.faults import maybe_fail
from vllm_nfp.timing.clock import Clock, Mark

RING_SLOTS = 256
"""Steps whose end has not been read; while the ring is full no further step is timed."""
BATCH_BOUNDS = (
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096,
)  # fmt: skip
"""Upper bounds of the buckets of sequences in a step."""
CONTEXT_BOUNDS = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
"""Upper bounds of the buckets of mean context lengths, in tokens."""
MOST_POSITIONS = 64
"""Steps with more positions per sequence are not kept."""
MOST_KINDS = 512
"""Kinds of steps kept; later ones are left out. Bounds memory and the labels of the metrics."""
SAMPLES_KEPT = 64
"""Most recent steps of a kind that its median is taken over."""


@dataclass(frozen=True, slots=True, order=True)
class StepKind:
    """Bucket bounds of a step."""

    batch_size: int
    context: int
    positions: int


class _Series:
    """The last times of one kind."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.seconds = array("d", bytes(8 * SAMPLES_KEPT))
        self.count = 0


class StepTimes:
    """Times by kind of step, in bounded memory; one thread writes, another may read."""

    def __init__(self) -> None:
        self._series: dict[int, _Series] = {}

    def add(self, batch_size: int, context: int, positions: int, seconds: float) -> None:
        """Keep the time of one step; steps beyond every bucket are left out."""
        b = bisect_left(BATCH_BOUNDS, batch_size)
        c = bisect_left(CONTEXT_BOUNDS, context)
        if (
            b == len(BATCH_BOUNDS)
            or c == len(CONTEXT_BOUNDS)
            or not 0 < positions <= MOST_POSITIONS
        ):
            return
        key = (b * len(CONTEXT_BOUNDS) + c) * (MOST_POSITIONS + 1) + positions
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MOST_KINDS:
                return
            series = self._series[key] = _Series()
        series.seconds[series.count % SAMPLES_KEPT] = seconds
        series.count += 1

    def recent(self) -> dict[StepKind, tuple[int, list[float]]]:
        """Steps counted since the start, and the times of the most recent ones, by kind."""
        found = {}
        for key, series in list(self._series.items()):
            cell, positions = divmod(key, MOST_POSITIONS + 1)
            b, c = divmod(cell, len(CONTEXT_BOUNDS))
            count = series.count
            kept = list(series.seconds[: min(count, SAMPLES_KEPT)])
            found[StepKind(BATCH_BOUNDS[b], CONTEXT_BOUNDS[c], positions)] = (count, kept)
        return found


class _Slot:
    """One step between its launch and its reading."""

    __slots__ = ("batch_size", "context", "end", "keep", "positions", "start")

    def __init__(self, clock: Clock) -> None:
        self.start: Mark = clock.mark()
        self.end: Mark = clock.mark()
        self.batch_size = self.context = self.positions = 0
        self.keep = False


class StepTimer:
    """Marks real steps and reads the marks later.

    Args:
        clock: marks the serving stream.
        on_seconds: takes each step's time as it is read, decode step or not.
    """

    def __init__(self, clock: Clock, on_seconds: Callable[[float], None] = lambda _: None) -> None:
        self._clock = clock
        self._on_seconds = on_seconds
        self._slots = [_Slot(clock) for _ in range(RING_SLOTS)]
        self._first = 0
        self._pending = 0
        self._open: _Slot | None = None
        self._next = (0, 0, 0, False)
        self.times = StepTimes()
        self.last_seconds = 0.0
        """The most recent step's time; 0 before the first."""

    def describe(self, batch_size: int, context: int, positions: int, decode: bool) -> None:
        """What the step that comes next is; only decode steps are kept by kind."""
        self._next = (batch_size, context, positions, decode)

    def begin(self) -> None:
        """The step's work is enqueued from here on; one that ran nothing is begun again."""
        if self._pending == RING_SLOTS:
            self._open = None
            return
        slot = self._slots[(self._first + self._pending) % RING_SLOTS]
        self._clock.renew(slot.start)
        slot.batch_size, slot.context, slot.positions, slot.keep = self._next
        self._open = slot

    def end(self) -> None:
        """The step's work has been enqueued."""
        if self._open is None:
            return
        self._clock.renew(self._open.end)
        self._open = None
        self._pending += 1

    def settle(self) -> None:
        """Read the marks that the device has passed; waits for nothing."""
        maybe_fail("step_times")
        while self._pending:
            slot = self._slots[self._first]
            if not self._clock.ready(slot.end):
                return
            self._first = (self._first + 1) % RING_SLOTS
            self._pending -= 1
            self.last_seconds = seconds = self._clock.seconds(slot.start, slot.end)
            self._on_seconds(seconds)
            if slot.keep:
                self.times.add(slot.batch_size, slot.context, slot.positions, seconds)
