"""Pairs on their way from the serving side to the results."""

from __future__ import annotations

import queue
from collections.abc import Callable

from vllm_nfp.give_way import give_way
from vllm_nfp.results.gather import Results
from vllm_nfp.types import PairResult

MOST_QUEUED = 1_000
"""Pairs that wait for the background side: bounds the memory."""


class NewPairs:
    """A queue: the serving side puts pairs in, and one thread at a time takes them out.

    Args:
        record: notes each pair before it counts.
        results: take the pairs in.
    """

    def __init__(self, record: Callable[[PairResult], None], results: Results) -> None:
        self._record, self._results = record, results
        self._queue: queue.SimpleQueue[PairResult] = queue.SimpleQueue()

    def put(self, result: PairResult) -> None:
        """Hand over a pair; called by the serving side, never blocks.

        While the background thread hangs, as in a write to a dead disk, further pairs are dropped.
        """
        if self._queue.qsize() < MOST_QUEUED:
            self._queue.put(result)

    def take_in(self, now: float) -> None:
        """Have all count that wait; gives way after each.

        Args:
            now: seconds of the monotonic clock.
        """
        while not self._queue.empty():
            result = self._queue.get()
            self._record(result)
            self._results.add(result, now)
            give_way()
