"""Where each publication goes, and how often."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from vllm_nfp.draft.curve_exchange import ChangedCurves, CurveSender
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.session.announcement import announce
from vllm_nfp.session.output import KeptProfile, Output

PROGRESS_SECONDS = 0.5
"""Least time between two publications in a scan."""


class Delivery:
    """Gives results to the draft control, to /metrics, to the profile, and to the server's log.

    For the thread that publishes: the one of the start, then the one in the background. A write may
    hang, and that thread with it.

    Args:
        output: writes.
        results: what is known; read by that thread after its own updates.
        sender: takes the curves whenever they have changed; None if nobody wants them.
    """

    def __init__(self, output: Output, results: Results, sender: CurveSender | None) -> None:
        self._output = output
        self._results = results
        self._curves = ChangedCurves(sender)
        self._profile = KeptProfile(output, results.layer_times)
        self._progress_at = -math.inf
        self._announced = False

    def send_curves(self) -> None:
        """Send the whole step's curves if they have changed."""
        self._curves.send(self._results.model_version, self._results.model_curves())

    def deliver(self, snapshot: Snapshot) -> None:
        """Write it, keep it in the profile now and then, and announce the first result."""
        self._output.write(snapshot)
        self._profile.keep_sometimes(snapshot)
        if not self._announced and self._results.findings.pairs:
            self._announced = True
            announce(snapshot)

    def deliver_progress(self, snapshot: Callable[[], Snapshot]) -> None:
        """Write what is known in the middle of a scan, now and then.

        Args:
            snapshot: makes it, if it is to be written.
        """
        now = time.monotonic()
        if now >= self._progress_at + PROGRESS_SECONDS:
            self._output.write(snapshot())
            self._progress_at = now
