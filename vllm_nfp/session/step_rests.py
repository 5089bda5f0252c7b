"""What an adaptive step takes from begin to begin, beside what it is priced at.

Prices hold the device's work on the model and drafting. Sampling and the host's work are not in
them, and the host's depends on the choice itself: where all drafts are verified, vLLM does not rank
them on the device (vLLM 0.33, ``adaptive_verification.py``, ``reallocate_drafts``). So steps that
verify all drafts and steps that cut some are told apart.

The host prepares a step while the device runs the one before. So a step takes what the slower of
the two takes, and where that is the host, more positions cost nothing. How long the host works is
the processor time of the serving thread: while it waits for the device it takes none.

The hot path reads two clocks once a step and makes no object.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from vllm_nfp.draft.verify_costs import Beside, Rest
from vllm_nfp.results.real_steps import AGAIN_SECONDS, ENOUGH
from vllm_nfp.timing.series import SAMPLES_KEPT
from vllm_nfp.timing.steps import BATCH_BOUNDS

OLD_SECONDS = 10.0
"""Age from which on steps do not count: a host's speed was seen to differ by 3 ms a step from one
load to the next, each some seconds long (2026-11-28, H200; docs/adaptive-verification.md)."""
FORGOTTEN_SECONDS = AGAIN_SECONDS
"""Age from which on a batch size that does not run is not known any more, nor what cut steps take
more if only one kind runs: the other is tried again then."""


BUSY = 0.85
"""Share of a step in which the host works from which on it is the host that decides how long the
step takes. Beside the thread's own work are the hand-over to other threads and what the machine
takes of it: the calls alone that launch a step took 0.88 to 0.93 of it in measured servers of 1 to
8 requests (2026-11-29, H200, benchmarks/results/2026-11-29-h200/turns/host-speed.md)."""


class _Latest:
    """The latest steps of one kind; one thread writes, another may read."""

    __slots__ = ("at", "busy", "count", "drafting", "rests", "seconds")

    def __init__(self) -> None:
        empty = bytes(8 * SAMPLES_KEPT)
        self.seconds, self.busy = array("d", empty), array("d", empty)
        """From begin to begin, and how long of it the host worked."""
        self.rests = array("d", empty)
        """From begin to begin, without the price."""
        self.drafting = 0.0
        self.count = 0
        self.at = 0.0

    def add(self, seconds: float, busy: float, price: float, drafting: float, now: float) -> None:
        if now - self.at > OLD_SECONDS:
            self.count = 0
        place = self.count % SAMPLES_KEPT
        self.seconds[place], self.busy[place] = seconds, busy
        self.rests[place] = seconds - price
        self.drafting = drafting
        self.count += 1
        self.at = now

    def known(self, now: float) -> _Known | None:
        """Medians; None of too few steps, or old ones."""
        if self.count < ENOUGH or now - self.at > OLD_SECONDS:
            return None
        kept = min(self.count, SAMPLES_KEPT)
        busy, seconds = median(self.busy[:kept]), median(self.seconds[:kept])
        by_host = busy >= BUSY * seconds
        least = (seconds if by_host else busy) - self.drafting
        return _Known(None if by_host else median(self.rests[:kept]), least)


@dataclass(frozen=True, slots=True)
class _Known:
    """Of one kind of steps."""

    rest: float | None
    """Seconds beside the device's work; None: the host decides, and hides what it is."""
    least: float
    """Seconds that the host needs, without drafting."""


class _Kind(NamedTuple):
    """Steps of a bucket of batch sizes, and whether all their drafts are verified."""

    bucket: int
    whole: bool


class StepRests:
    """Follows the steps of one engine.

    A step counts only if the one before was of its kind: with async scheduling a step begins while
    the one before runs, so that the time between two begins is the work of both.

    Args:
        now: the host's clock, in seconds.
        worked: processor time of the calling thread, in seconds.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        self._now, self._worked = now, worked
        self._of: dict[_Kind, _Latest] = {}
        self._rest: dict[_Kind, tuple[float, float]] = {}
        """What was beside the device's work when the device decided, and when that was."""
        self._more: dict[int, tuple[Beside, Beside, float]] = {}
        """By bucket: whole and cut steps when both kinds ran, and when that was."""
        self._last: dict[int, tuple[Rest, float]] = {}
        """By bucket: what was known at last, and when."""
        self._begun = self._begun_work = 0.0
        self._price = self._drafting = 0.0
        self._like = 0, False
        """Requests of the latest step, and whether all its drafts are verified; 0: not priced."""
        self._open: _Latest | None = None
        """Of the latest step; None: it does not count."""

    def begin(self) -> None:
        """A step with drafts begins, so that the one before has ended."""
        now, worked, latest = self._now(), self._worked(), self._open
        if latest is not None:
            busy = worked - self._begun_work
            latest.add(now - self._begun, busy, self._price, self._drafting, now)
            self._open = None
        self._begun, self._begun_work = now, worked

    def chosen(
        self, requests: int, whole: bool, price: float | None, drafting: float = 0.0
    ) -> None:
        """vLLM has chosen the drafts of the step that has begun.

        Args:
            whole: all drafts are verified.
            price: seconds of the device's work; None: measured costs did not choose.
            drafting: those of them that drafting takes.
        """
        like = requests, whole
        if price is None:
            self._like = 0, False
            return
        if like == self._like:
            kind = _Kind(bisect_left(BATCH_BOUNDS, requests), whole)
            latest = self._of.get(kind)
            if latest is None:
                latest = self._of[kind] = _Latest()
            self._open, self._price, self._drafting = latest, price, drafting
        self._like = like

    def known(self) -> tuple[Rest, ...]:
        """By batch size, ascending; asked of one thread, at least every OLD_SECONDS.

        Where one kind of step does not run, it takes more or less than the other what it took when
        both ran, whatever the host's speed is now.
        """
        now = self._now()
        found: dict[int, dict[bool, Beside]] = {}
        for kind, latest in sorted(self._of.items()):
            known = latest.known(now)
            if known is not None and kind.bucket < len(BATCH_BOUNDS):
                found.setdefault(kind.bucket, {})[kind.whole] = self._beside(kind, known, now)
        self._last |= {bucket: (self._both(bucket, of, now), now) for bucket, of in found.items()}
        return tuple(
            rest for _, (rest, at) in sorted(self._last.items()) if now - at <= FORGOTTEN_SECONDS
        )

    def _beside(self, kind: _Kind, known: _Known, now: float) -> Beside:
        if known.rest is not None:
            self._rest[kind] = max(0.0, known.rest), now
        # While the host decides, nothing shows; before it ever did not, nothing is added.
        rest, at = self._rest.get(kind, (0.0, now))
        return Beside(rest if now - at <= FORGOTTEN_SECONDS else 0.0, max(0.0, known.least))

    def _both(self, bucket: int, of: Mapping[bool, Beside], now: float) -> Rest:
        if len(of) == 2:
            self._more[bucket] = of[True], of[False], now
        then_whole, then_cut, at = self._more.get(bucket, (Beside(), Beside(), now))
        if now - at > FORGOTTEN_SECONDS:
            then_whole = then_cut = Beside()
        whole = of[True] if True in of else _moved(of[False], then_cut, then_whole)
        cut = of[False] if False in of else _moved(of[True], then_whole, then_cut)
        return Rest(BATCH_BOUNDS[bucket], whole, cut)


def _moved(now: Beside, then: Beside, other_then: Beside) -> Beside:
    """What the kind that does not run has now, if it differs from the other as it did."""
    return Beside(
        max(0.0, now.seconds + other_then.seconds - then.seconds),
        max(0.0, now.least + other_then.least - then.least),
    )
