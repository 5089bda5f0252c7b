"""What an adaptive step takes from begin to begin, beside what it is priced at.

Prices hold the device's work on the model and drafting. Sampling and the host's work are not in
them, and the host's depends on the choice itself: where all drafts are verified, vLLM neither ranks
them on the device nor runs the drafter's first pass outside its full CUDA graph (vLLM 0.33,
``adaptive_verification.py``, ``reallocate_drafts``, and ``target_dependent_ar/speculator.py``,
``propose``). So steps that verify all drafts and steps that cut some are told apart.

The hot path reads the clock once a step and makes no object.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from statistics import median

from vllm_nfp.draft.verify_costs import Rest
from vllm_nfp.results.real_steps import AGAIN_SECONDS, ENOUGH
from vllm_nfp.timing.series import SAMPLES_KEPT
from vllm_nfp.timing.steps import BATCH_BOUNDS

OLD_SECONDS = 10.0
"""Age from which on steps do not count: a host's speed was seen to differ by 3 ms a step from one
load to the next, each some seconds long (2026-11-28, H200; docs/adaptive-verification.md)."""
FORGOTTEN_SECONDS = AGAIN_SECONDS
"""Age from which on a batch size that does not run is not known any more, nor what cut steps take
more if only one kind runs: the other is tried again then."""


class _Latest:
    """The latest steps of one kind; one thread writes, another may read."""

    __slots__ = ("at", "count", "seconds")

    def __init__(self) -> None:
        self.seconds = array("d", bytes(8 * SAMPLES_KEPT))
        self.count = 0
        self.at = 0.0

    def add(self, seconds: float, now: float) -> None:
        if now - self.at > OLD_SECONDS:
            self.count = 0
        self.seconds[self.count % SAMPLES_KEPT] = seconds
        self.count += 1
        self.at = now

    def known(self, now: float) -> float | None:
        """The median; None of too few steps, or old ones."""
        if self.count < ENOUGH or now - self.at > OLD_SECONDS:
            return None
        return median(self.seconds[: min(self.count, SAMPLES_KEPT)])


class StepRests:
    """Follows the steps of one engine.

    A step counts only if the one before was of its kind: with async scheduling a step begins while
    the one before runs, so that the time between two begins is the work of both.

    Args:
        now: the host's clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._of: dict[tuple[int, bool], _Latest] = {}
        """By bucket of requests, and whether all drafts are verified."""
        self._more: dict[int, tuple[float, float]] = {}
        """By bucket: seconds that cut steps took more when both kinds ran, and when that was."""
        self._last: dict[int, tuple[Rest, float]] = {}
        """By bucket: what was known at last, and when."""
        self._begun = 0.0
        self._price = 0.0
        self._like = 0, False
        """Requests of the latest step, and whether all its drafts are verified; 0: not priced."""
        self._open: _Latest | None = None
        """Of the latest step; None: it does not count."""

    def begin(self) -> None:
        """A step with drafts begins, so that the one before has ended."""
        now, latest = self._now(), self._open
        if latest is not None:
            latest.add(now - self._begun - self._price, now)
            self._open = None
        self._begun = now

    def chosen(self, requests: int, whole: bool, price: float | None) -> None:
        """vLLM has chosen the drafts of the step that has begun.

        Args:
            whole: all drafts are verified.
            price: seconds; None: measured costs did not choose.
        """
        like = requests, whole
        if price is None:
            self._like = 0, False
            return
        if like == self._like:
            bucket = bisect_left(BATCH_BOUNDS, requests), whole
            latest = self._of.get(bucket)
            if latest is None:
                latest = self._of[bucket] = _Latest()
            self._open, self._price = latest, price
        self._like = like

    def known(self) -> tuple[Rest, ...]:
        """By batch size, ascending; asked of one thread, at least every OLD_SECONDS.

        Where one kind of step does not run, it takes more or less than the other what it took when
        both ran, whatever the host's speed is now.
        """
        now = self._now()
        found: dict[int, dict[bool, float]] = {}
        for (bucket, whole), latest in sorted(self._of.items()):
            seconds = latest.known(now)
            if seconds is not None and bucket < len(BATCH_BOUNDS):
                found.setdefault(bucket, {})[whole] = seconds
        self._last |= {bucket: (self._rest(bucket, of, now), now) for bucket, of in found.items()}
        return tuple(
            rest for _, (rest, at) in sorted(self._last.items()) if now - at <= FORGOTTEN_SECONDS
        )

    def _rest(self, bucket: int, of: Mapping[bool, float], now: float) -> Rest:
        if len(of) == 2:
            self._more[bucket] = of[False] - of[True], now
        more, at = self._more.get(bucket, (0.0, now))
        if now - at > FORGOTTEN_SECONDS:
            more = 0.0
        whole = of[True] if True in of else of[False] - more
        cut = of[False] if False in of else whole + more
        return Rest(BATCH_BOUNDS[bucket], max(0.0, whole), max(0.0, cut))
