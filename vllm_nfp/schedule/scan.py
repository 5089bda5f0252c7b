"""The scan at the start: pairs back to back, while no request waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from vllm_nfp.schedule.flights import Account
from vllm_nfp.schedule.plan import NOTHING_KNOWN, Feedback
from vllm_nfp.schedule.prober import Prober

PROGRESS_SECONDS = 0.5
"""Time between two reports of a scan's progress."""
POLL_SECONDS = 0.0002


def scan(
    prober: Prober,
    seconds: float,
    report: Callable[[], Feedback] = lambda: NOTHING_KNOWN,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run pairs for this long, or until every point has its samples. Charged to no budget.

    Args:
        report: called every :data:`PROGRESS_SECONDS`; returns the feedback from then on.
        now: seconds of a monotonic clock.
    """
    feedback = NOTHING_KNOWN
    begun = told = now()
    while now() < begun + seconds and not prober.planner.complete(feedback):
        if not prober.advance(Account.STARTUP, feedback):
            return
        while prober.busy:
            prober.settle(feedback)
            sleep(POLL_SECONDS)
        if now() >= told + PROGRESS_SECONDS:
            feedback = report()
            told = now()
