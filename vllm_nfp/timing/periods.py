"""Times real steps from the begin of one to the begin of the next: a step and all its host time.

vLLM's inter-token latency holds the steps that read other requests' prompts, and its end-to-end
times hold queues. A period is one decode step and no more, if the engine decodes without a break.
So an interval counts only while all of this holds:

- Each step has as many sequences and tokens as the one before, and none is new. A step that reads a
  prompt, or a request that comes after an idle time, differs in one of them.
- The step before the interval was such a step as well. With async scheduling vLLM begins a step
  while the one before runs: the time between two begins is the work of the earlier one.
- No probe was launched in it, or was on the device when it began.
- vLLM cut none of its drafts.

The interval ends at the last begin for which this holds, so what follows is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized

from vllm_nfp.timing.series import Series

NO_STEP = -1
"""Tokens that no step has: the next step is like none before."""


class Periods:
    """Follows every step, and files the mean period of an interval that a look begins.

    A step costs a comparison and a reading of the clock. Nothing is made.

    Args:
        now: the host's clock, in seconds.
    """

    __slots__ = (
        "_at", "_begun", "_first", "_like_before", "_now", "_sequences", "_series", "_tokens",
    )  # fmt: skip

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._tokens = NO_STEP
        self._sequences = 0
        self._like_before = 0
        """Latest steps that were each like the one before."""
        self._at = 0.0
        """When the latest of them began."""
        self._series: Series | None = None
        """Of the open interval; None: none is open."""
        self._begun = 0.0
        self._first = 0

    def step(self, sequences: int, tokens: int, new: Sized) -> None:
        """A real step begins.

        Args:
            new: requests that it runs for the first time.
        """
        if tokens == self._tokens and sequences == self._sequences and not new:
            self._at = self._now()
            self._like_before += 1
            return
        self._close()
        self._tokens = NO_STEP if new else tokens
        self._sequences = sequences
        self._like_before = 0

    def open(self, series: Series) -> None:
        """Begin an interval at the latest step, if the step before was like it.

        Args:
            series: steps of its kind.
        """
        self._close()
        if self._like_before:
            self._series, self._begun, self._first = series, self._at, self._like_before

    def cut(self, tokens: int) -> None:
        """The latest step runs so many tokens: other ones than planned end the interval."""
        if tokens != self._tokens:
            self.interrupt()

    def interrupt(self) -> None:
        """Something else takes time before the next step: leave the open interval out."""
        self._series = None
        self._tokens = NO_STEP
        self._like_before = 0

    def _close(self) -> None:
        series, steps = self._series, self._like_before - self._first
        self._series = None
        if series is not None and steps > 0:
            series.add_period((self._at - self._begun) / steps, steps)
