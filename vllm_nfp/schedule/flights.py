"""What of the probe is on the device: launched, and read once the device has passed it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.shape_runner import ShapeRunner
from vllm_nfp.timing import Clock, Mark
from vllm_nfp.types import PairResult, Shape, Timing

LONGEST_FLIGHT_SECONDS = 60.0
"""A pair that has not passed the device by then never will."""


class DeviceStuckError(RuntimeError):
    """A probe's marks are never passed: the device, or what it waits for, hangs."""


class Account(StrEnum):
    """What pays for a launch."""

    STARTUP = "startup"
    """The time at the start."""
    MEASURED = "measured"
    """The budget, between real steps."""
    IDLE = "idle"
    """The share of idle time."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A launch that the device has passed."""

    account: Account
    cost_seconds: float
    pair: Pair | None
    """None if a piece of what a pair needs was made, or a run was refused."""
    refused: bool
    """Only its cost counts."""
    result: PairResult | None
    """Of the pair."""


@dataclass(slots=True)
class _Flight:
    """A launch on the device."""

    account: Account
    pair: Pair | None
    tickets: list[Any]
    timings: list[Timing | None]
    """Of the tickets, as far as they have been read."""
    start: Mark
    end: Mark
    host_seconds: float
    launched: float
    refused: bool


class Flights:
    """Launches one pair, or one piece of what a pair needs, at a time.

    Args:
        engine: runs shapes.
        clock: marks the serving stream.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self, engine: ShapeRunner, clock: Clock, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._now = now
        self._flight: _Flight | None = None

    @property
    def busy(self) -> bool:
        """Whether something is on the device."""
        return self._flight is not None

    def ready(self, shape: Shape) -> bool:
        """Whether a launch of this shape would find all that it needs."""
        return self._engine.ready(shape)

    def ready_keys(self) -> frozenset[tuple[int, int]]:
        """(batch size, positions) of all shapes that are ready."""
        return self._engine.ready_keys()

    def written_contexts(self) -> tuple[int, ...] | None:
        """See :meth:`ShapeRunner.written_contexts`."""
        return self._engine.written_contexts()

    def launch(self, pair: Pair, account: Account) -> None:
        """Launch both runs of a pair.

        Raises:
            RefusedForNowError: if one cannot be run at the moment.
            ShapeRefusedError: if one can never be run here.
        """
        begun, start = self._now(), self._clock.mark()
        tickets: list[Any] = []
        complete = False
        try:
            with self._around(account):
                for shape in pair.shapes:
                    tickets.append(self._engine.launch(shape, pair.draw))
            complete = True
        finally:
            # A run whose partner was refused is read, and forgotten.
            self._fly(account, pair if complete else None, tickets, start, begun, not complete)

    def make_ready(self, shapes: Sequence[Shape], account: Account) -> None:
        """Make one piece of what the shapes lack.

        Raises:
            RefusedForNowError: if it cannot be made at the moment.
            ShapeRefusedError: if it can never be made here.
        """
        begun, start = self._now(), self._clock.mark()
        made = False
        try:
            with self._around(account):
                self._engine.make_ready(shapes)
            made = True
        finally:
            # A refusal has cost its time as well.
            self._fly(account, None, [], start, begun, refused=not made)

    def _around(self, account: Account) -> AbstractContextManager[None]:
        """Real steps wait for what is launched ahead of them."""
        serves = account is Account.MEASURED
        return self._engine.serving() if serves else self._engine.waiting()

    def _fly(
        self,
        account: Account,
        pair: Pair | None,
        tickets: list[Any],
        start: Mark,
        begun: float,
        refused: bool,
    ) -> None:
        end, now = self._clock.mark(), self._now()
        unread: list[Timing | None] = [None] * len(tickets)
        self._flight = _Flight(
            account, pair, tickets, unread, start, end, now - begun, now, refused
        )

    def landed(self) -> Landed | None:
        """What the device has passed since the last call, if anything; waits for nothing.

        Raises:
            DeviceStuckError: if it has been on the device for longer than anything can be.
        """
        flight = self._flight
        if flight is None:
            return None
        if self._clock.ready(flight.end) and self._read(flight):
            self._flight = None
            return self._land(flight)
        if self._now() > flight.launched + LONGEST_FLIGHT_SECONDS:
            raise DeviceStuckError(
                f"a probe has not finished within {LONGEST_FLIGHT_SECONDS:g} s: the device hangs"
            )
        return None

    def _read(self, flight: _Flight) -> bool:
        """Whether all tickets have been read."""
        for place, ticket in enumerate(flight.tickets):
            # A ticket that has been read has given its marks back: it must not be read again.
            if flight.timings[place] is None:
                flight.timings[place] = self._engine.poll(ticket)
        return None not in flight.timings

    def _land(self, flight: _Flight) -> Landed:
        device_seconds = self._clock.seconds(flight.start, flight.end)
        self._clock.release(flight.start)
        self._clock.release(flight.end)
        # A pair delays the next step by its time on the device or, where launching takes longer
        # than running, by its time on the host.
        cost = max(device_seconds, flight.host_seconds)
        result = None if flight.pair is None else _result(flight.pair, flight.timings, cost)
        return Landed(flight.account, cost, flight.pair, flight.refused, result)


def _result(pair: Pair, timings: Sequence[Timing | None], cost: float) -> PairResult:
    one, many = timings if pair.baseline_first else reversed(timings)
    assert one is not None and many is not None, "all tickets have been read"
    return PairResult(many, one, pair.baseline_first, cost)
