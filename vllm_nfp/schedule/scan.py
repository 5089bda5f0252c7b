"""The scan at the start: pairs back to back, while no request waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from vllm_nfp.schedule.flights import Account
from vllm_nfp.schedule.prober import Prober

PROGRESS_SECONDS = 0.5
"""Time between two reports of a scan's progress."""
POLL_SECONDS = 0.0002


def scan(
    prober: Prober,
    seconds: float,
    report: Callable[[], None],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run pairs for this long, or until the agenda is settled. Charged to no budget.

    Args:
        report: makes the next agenda; called when the last one is used up, and every
            :data:`PROGRESS_SECONDS`. The scan ends if nothing of the new one can be run.
        now: seconds of a monotonic clock.
    """
    begun = told = now()
    while now() < begun + seconds:
        asks = prober.wants_agenda or now() >= told + PROGRESS_SECONDS
        if asks:
            report()
            told = now()
        if prober.queue.settled or (not prober.advance(Account.STARTUP) and asks):
            return
        while prober.busy:
            prober.settle()
            sleep(POLL_SECONDS)
