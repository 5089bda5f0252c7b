"""Where measured costs come from on a rank that follows: the file of the rank that leads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from vllm_nfp.draft.cost_tables import TableMaker
from vllm_nfp.draft.verify_costs import read_costs
from vllm_nfp.session.cost_feed import CostFeed

logger = logging.getLogger("vllm.nfp")

POLL_SECONDS = 0.25


class FollowingCosts:
    """Reads what the leader has written, in a thread of its own.

    Args:
        feed: is given what was read.
        path: of the leader's file.
        most_requests: of a step.
        capture_sizes: tokens of the CUDA graphs, ascending.
    """

    def __init__(
        self, feed: CostFeed, path: Path, most_requests: int, capture_sizes: Sequence[int]
    ) -> None:
        self._feed, self._path = feed, path
        self._maker = TableMaker(most_requests, capture_sizes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfp-costs", daemon=True)

    def start(self) -> None:
        """Begin to look for the file."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def look(self) -> None:
        """Read the file if it holds another version."""
        try:
            costs = read_costs(self._path)
        except (OSError, ValueError):
            return  # nothing yet: the ranks agree on no costs that one of them lacks
        if self._feed.ready is None or costs.version != self._feed.ready.version:
            self._feed.ready = self._maker.made(costs)

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL_SECONDS):
                self.look()
        except Exception:
            logger.exception("vllm-nfp: this rank gets no measured costs any more")
