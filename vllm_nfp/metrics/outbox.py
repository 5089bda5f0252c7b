"""Metrics on their way through vLLM itself, as changes since they were last taken.

Where vLLM carries numbers from workers to its API servers (see patches/README.md), the engine
hands over what has changed: a gauge's new value, NaN for one that is gone, and what a counter has
grown by. A counter never gets NaN, which it would keep for ever: one that is gone stays as it is.
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
        self._shown: dict[_Key, float] = {}
        """Gauges as vLLM shows them: handed over, and not gone since."""
        self._counted: dict[_Key, float] = {}
        """The largest value of each counter, what is pending included."""
        self._pending: dict[_Key, Change] = {}

    def put(self, families: Iterable[Metric]) -> None:
        """Take up the state of all metrics; gauges that it lacks are gone.

        A counter that it lacks, that has fallen or is no finite number is left as it was. It grows
        again once it exceeds the largest value that it has had.
        """
        gauges: set[_Key] = set()
        for family in families:
            for sample in in_pieces(family.samples, SAMPLES_AT_A_TIME):
                labels = tuple(
                    (name, value)
                    for name, value in sample.labels.items()
                    if name not in ADDED_BY_VLLM
                )
                key, value = (sample.name, labels), float(sample.value)
                if not math.isfinite(value):
                    continue
                with self._lock:
                    if family.type == "counter":
                        self._count(key, value, family.documentation)
                    else:
                        gauges.add(key)
                        self._set(key, value, family.documentation)
        with self._lock:
            self._remove_all_but(gauges)

    def _set(self, key: _Key, value: float, documentation: str) -> None:
        if self._shown.get(key) == value:
            self._pending.pop(key, None)  # its removal, or another value, was not taken
        else:
            self._pending[key] = Change(key[0], value, False, key[1], documentation)

    def _remove_all_but(self, gauges: set[_Key]) -> None:
        """NaN for gauges that vLLM shows; those that it was never given are forgotten."""
        for key, change in list(self._pending.items()):
            if not change.is_counter and key not in gauges:
                del self._pending[key]
        for key in self._shown.keys() - gauges:
            self._pending[key] = Change(key[0], math.nan, False, key[1], "")

    def _count(self, key: _Key, value: float, documentation: str) -> None:
        before = self._counted.get(key)
        if before is not None and value <= before:
            return
        self._counted[key] = max(0.0, value)
        waiting = self._pending.get(key)
        total = max(0.0, value - (before or 0.0)) + (0.0 if waiting is None else waiting.value)
        self._pending[key] = Change(key[0], total, True, key[1], documentation)

    def take(self) -> list[Change]:
        """What has changed since the last call, or the first part of it, for a serving thread.

        Empty at once if nothing has, or while the other thread puts something in.
        """
        if not self._pending or not self._lock.acquire(blocking=False):
            return []
        try:
            keys = list(itertools.islice(self._pending, MOST_CHANGES))
            changes = [(key, self._pending.pop(key)) for key in keys]
            for key, change in changes:
                if change.is_counter:
                    continue
                if math.isnan(change.value):
                    del self._shown[key]
                else:
                    self._shown[key] = change.value
            return [change for _, change in changes]
        finally:
            self._lock.release()
