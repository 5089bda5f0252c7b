"""Metrics on their way through vLLM itself, as changes since they were last taken.

Where vLLM carries numbers from workers to its API servers (see patches/README.md), the engine
hands over what has changed: a gauge's new value, NaN for one that is gone, and what a counter has
grown by.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import Metric

from vllm_nfp.give_way import in_pieces

ADDED_BY_VLLM = frozenset({"model_name", "engine"})
"""Labels that vLLM puts on by itself."""

SAMPLES_AT_A_TIME = 64
"""Samples that are compared before a pause: some 0.2 ms."""
MOST_CHANGES = 256
"""Changes that one step carries, some 0.5 ms of it; later steps carry the others."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """A series that is to be set (gauge) or raised (counter)."""

    name: str
    value: float
    is_counter: bool
    labels: tuple[tuple[str, str], ...]
    documentation: str


class Outbox:
    """Filled by one thread with whole states, emptied by another as changes.

    >>> from prometheus_client.core import GaugeMetricFamily
    >>> box = Outbox()
    >>> box.put([GaugeMetricFamily("free_tokens", "Free.", value=3)])
    >>> [(change.name, change.value) for change in box.take()]
    [('free_tokens', 3.0)]
    >>> box.put([GaugeMetricFamily("free_tokens", "Free.", value=3)])
    >>> box.take()
    []
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[_Key, float] = {}
        self._pending: dict[_Key, Change] = {}

    def put(self, families: Iterable[Metric]) -> None:
        """Take up the state of all metrics; series that it lacks are gone."""
        seen: set[_Key] = set()
        for family in families:
            for sample in in_pieces(family.samples, SAMPLES_AT_A_TIME):
                labels = tuple(
                    (name, value)
                    for name, value in sample.labels.items()
                    if name not in ADDED_BY_VLLM
                )
                key = (sample.name, labels)
                seen.add(key)
                with self._lock:
                    self._change(key, float(sample.value), family)
        gone = [key for key in in_pieces(self._last, SAMPLES_AT_A_TIME) if key not in seen]
        with self._lock:
            for key in gone:
                del self._last[key]
                old = self._pending.pop(key, None)
                documentation = "" if old is None else old.documentation
                self._pending[key] = Change(key[0], math.nan, False, key[1], documentation)

    def _change(self, key: _Key, value: float, family: Metric) -> None:
        is_counter = family.type == "counter"
        before = self._last.get(key)
        self._last[key] = value
        if not is_counter:
            if value != before:
                self._pending[key] = Change(key[0], value, False, key[1], family.documentation)
            return
        growth = max(0.0, value - (before or 0.0))
        if growth or before is None:
            waiting = self._pending.get(key)
            total = growth + (0.0 if waiting is None else waiting.value)
            self._pending[key] = Change(key[0], total, True, key[1], family.documentation)

    def take(self) -> list[Change]:
        """What has changed since the last call, or the first part of it, for a serving thread.

        Empty at once if nothing has, or while the other thread puts something in.
        """
        if not self._pending or not self._lock.acquire(blocking=False):
            return []
        try:
            keys = list(itertools.islice(self._pending, MOST_CHANGES))
            return [self._pending.pop(key) for key in keys]
        finally:
            self._lock.release()
