"""Times real steps with one pair of marks each, and keeps decode steps by kind.

Which steps it is asked to time, and how many each stands for, is :mod:`vllm_nfp.timing.sampling`'s.

The hot path makes no object, takes no lock and waits for nothing: marks lie in a ring that is made
at the start, and are read when a later step comes by.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable

from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import in_pieces
from vllm_nfp.timing.clock import Clock, Mark
from vllm_nfp.timing.periods import Periods
from vllm_nfp.timing.series import RealSteps, Series
from vllm_nfp.types import EngineStep, Shape, StepLatency

RING_SLOTS = 256
"""Timed steps whose end has not been read; while the ring is full none is timed or counted."""
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
KINDS_AT_A_TIME = 12
"""Kinds whose medians are taken before a pause: some 0.3 ms."""


class StepTimes:
    """Times by kind of step, in bounded memory; one thread writes, another may read."""

    def __init__(self) -> None:
        self._series: dict[int, Series] = {}

    def of(self, batch_size: int, context: int, positions: int) -> Series | None:
        """The steps of this kind; None for those beyond every bucket, which are left out."""
        b = bisect_left(BATCH_BOUNDS, batch_size)
        c = bisect_left(CONTEXT_BOUNDS, context)
        if (
            b == len(BATCH_BOUNDS)
            or c == len(CONTEXT_BOUNDS)
            or not 0 < positions <= MOST_POSITIONS
        ):
            return None
        key = (b * len(CONTEXT_BOUNDS) + c) * (MOST_POSITIONS + 1) + positions
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MOST_KINDS:
                return None
            series = self._series[key] = Series()
        return series

    def kinds(self) -> tuple[RealSteps, ...]:
        """The steps of each kind, in order; kinds of which none has been read yet are left out."""
        return tuple(
            RealSteps(
                kind,
                series.mean_shape(kind.positions),
                series.count,
                series.timed,
                series.median,
                series.mean_positions,
                series.median_wait,
                series.median_period,
            )
            for key, series in in_pieces(sorted(self._series.items()), KINDS_AT_A_TIME)
            for kind in (self._kind(key),)
            if series.timed
        )

    def latencies(self) -> tuple[StepLatency, ...]:
        """The same as it is published."""
        return tuple(
            StepLatency(
                of.kind.batch_size,
                of.kind.context,
                of.kind.positions,
                of.count,
                of.median_seconds,
                of.period_seconds,
            )
            for of in self.kinds()
        )

    @staticmethod
    def _kind(key: int) -> Shape:
        cell, positions = divmod(key, MOST_POSITIONS + 1)
        b, c = divmod(cell, len(CONTEXT_BOUNDS))
        return Shape(BATCH_BOUNDS[b], CONTEXT_BOUNDS[c], positions)


class _Slot:
    """One step between its launch and its reading."""

    __slots__ = (
        "batch_size", "begun", "context", "end", "positions", "series", "start", "steps", "wait",
    )  # fmt: skip

    def __init__(self, clock: Clock) -> None:
        self.start: Mark = clock.mark()
        self.end: Mark = clock.mark()
        self.series: Series | None = None
        self.steps = 1
        """Steps that it stands for."""
        self.batch_size = 1
        self.context = 0
        self.positions = 1.0
        self.begun = 0.0
        """On the host, in seconds."""
        self.wait = 0.0
        """Seconds that the device may have waited for the step's launch, at most."""


class StepTimer:
    """Marks real steps and reads the marks later.

    Args:
        clock: marks the serving stream.
        on_seconds: takes the time of steps as it is read, decode steps or not: that of a timed
            step, times the steps that it stands for.
        now: the host's clock, in seconds, for periods.
    """

    def __init__(
        self,
        clock: Clock,
        on_seconds: Callable[[float], None] = lambda _: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._on_seconds = on_seconds
        self._slots = [_Slot(clock) for _ in range(RING_SLOTS)]
        self._first = 0
        self._pending = 0
        self._open: _Slot | None = None
        self._series: Series | None = None
        self._stands_for = 1
        self._batch_size = 1
        self._context = 0
        self._positions = 1.0
        self.times = StepTimes()
        self.periods = Periods(now)
        """Is told of every step; an interval begins at one that is timed."""
        self.last_seconds = 0.0
        """The most recent step's time; 0 before the first."""

    def describe(self, step: EngineStep, stands_for: int = 1) -> None:
        """What the step that comes next is; only decode steps are kept by kind.

        It may be told again until the step ends: vLLM may cut its drafts while it runs.

        Args:
            stands_for: steps, its own among them.
        """
        batch_size, context = step.batch_size, step.context
        self._series = self.times.of(batch_size, context, step.positions) if step.decode else None
        self._stands_for = stands_for
        self._batch_size, self._context = batch_size, context
        self._positions = step.mean_positions

    def begin(self) -> None:
        """The step's work is enqueued from here on; one that ran nothing is begun again."""
        if self._series is not None:
            self.periods.open(self._series)
        self._open = None
        if self._pending < RING_SLOTS:
            self._open = self._slots[(self._first + self._pending) % RING_SLOTS]
            self._clock.renew(self._open.start)
            self._open.begun = time.perf_counter()

    def end(self) -> None:
        """The step's work has been enqueued."""
        slot, series = self._open, self._series
        if slot is None:
            return
        self._clock.renew(slot.end)
        reached = self._clock.reached(slot.start)
        slot.wait = time.perf_counter() - slot.begun if reached else 0.0
        self._open, slot.series, slot.steps = None, series, self._stands_for
        slot.batch_size, slot.context = self._batch_size, self._context
        slot.positions = self._positions
        self._pending += 1
        if series is not None:
            series.count += self._stands_for

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
            self._on_seconds(seconds * slot.steps)
            if slot.series is not None:
                slot.series.add(
                    seconds, slot.steps, slot.batch_size, slot.context, slot.positions, slot.wait
                )
