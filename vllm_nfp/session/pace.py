"""Spreads costly work of a background thread out, so that it takes a small share of one core."""

from __future__ import annotations

import math


class Pace:
    """Says when costly work may be done again; times are seconds of the monotonic clock.

    All work of the thread is charged. Until the share has paid for it, the costly part waits, but
    never for longer than a bound. So the thread takes at most the share and what the other work
    takes, or the cost of the costly part once in the longest wait.

    Args:
        share: of one core, that the work may take on average.
        longest_seconds: from one time of the costly work to the next.
    """

    def __init__(self, share: float, longest_seconds: float) -> None:
        self._share, self._longest = share, longest_seconds
        self._paid = -math.inf
        """When all that was spent is paid for."""
        self._done = -math.inf

    def begin(self, now: float) -> bool:
        """Whether the costly work may be done now; it then has to be."""
        due = now >= min(self._paid, self._done + self._longest)
        if due:
            self._done = now
        return due

    def spent(self, cpu_seconds: float, now: float) -> None:
        """Charge what any work has taken.

        Args:
            now: when it began.
        """
        self._paid = max(self._paid, now) + cpu_seconds / self._share
