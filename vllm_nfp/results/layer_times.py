"""Times of single layers: the most recent ones for profiles, and histograms for the metrics."""

from __future__ import annotations

import itertools
import statistics
import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator

from vllm_nfp.give_way import in_pieces
from vllm_nfp.types import LayerHistogram, LayerLatency, Module, Shape, Timing

BOUNDS_SECONDS = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1,
)  # fmt: skip
SAMPLES = 15
"""Most recent runs that a layer's time in a profile is the median of."""
MOST_ROWS = 8_000
"""Most points (layer, module, cell, positions) whose times are kept: bounds the memory."""
ROWS_AT_A_TIME = 64
"""Medians that are taken before a pause: some 0.2 ms."""

_Key = tuple[Shape, int, Module]


class LayerTimes:
    """One thread adds; any thread may read the latencies.

    The lock is held for as long as copying one layer's times takes.

    Args:
        histograms: count for :meth:`histograms` as well.
    """

    def __init__(self, histograms: bool) -> None:
        self._rings: dict[_Key, deque[float]] = {}
        self._lock = threading.Lock()
        self._counting = histograms
        self._counts: dict[tuple[int, Module], tuple[list[int], float]] = {}

    def add(self, timing: Timing) -> None:
        """Keep the times of the layers of one run."""
        with self._lock:
            self._keep(timing)
        if self._counting:
            self._count(timing)

    def _keep(self, timing: Timing) -> None:
        for of_layer in timing.layers:
            key = (timing.shape, of_layer.layer, of_layer.module)
            ring = self._rings.get(key)
            if ring is None and len(self._rings) < MOST_ROWS:
                ring = self._rings[key] = deque(maxlen=SAMPLES)
            if ring is not None:
                ring.append(of_layer.seconds)

    def _count(self, timing: Timing) -> None:
        for of_layer in timing.layers:
            key = (of_layer.layer, of_layer.module)
            counts, total = self._counts.get(key, ([0] * (len(BOUNDS_SECONDS) + 1), 0.0))
            counts[bisect_left(BOUNDS_SECONDS, of_layer.seconds)] += 1
            self._counts[key] = (counts, total + of_layer.seconds)

    def latencies(self) -> tuple[LayerLatency, ...]:
        """The median of each timed layer, module, cell and number of positions."""
        return tuple(
            LayerLatency(
                layer,
                module,
                shape.batch_size,
                shape.context,
                shape.positions,
                len(ring),
                statistics.median(ring),
            )
            for (shape, layer, module), ring in in_pieces(self._sorted(), ROWS_AT_A_TIME)
        )

    def _sorted(self) -> Iterator[tuple[_Key, tuple[float, ...]]]:
        """All rings in order, cell by cell: sorting them at once would take milliseconds."""
        with self._lock:
            keys = list(self._rings)
        cells: dict[tuple[int, int], list[_Key]] = defaultdict(list)
        for key in in_pieces(keys, 8 * ROWS_AT_A_TIME):
            cells[key[0].batch_size, key[0].context].append(key)
        for cell in sorted(cells):
            for key in sorted(cells[cell], key=lambda of: (of[0].positions, *of[1:])):
                with self._lock:
                    ring = tuple(self._rings[key])
                yield key, ring

    def histograms(self) -> tuple[LayerHistogram, ...]:
        """Cumulative counts of each layer's modules; empty unless asked for."""
        return tuple(
            LayerHistogram(
                layer, module, BOUNDS_SECONDS, tuple(itertools.accumulate(counts)), total
            )
            for (layer, module), (counts, total) in sorted(self._counts.items())
        )
