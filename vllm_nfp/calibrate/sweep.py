"""Times series of kernel calls: all N of a series ready first, then passes in random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from vllm_nfp.calibrate.points import Curve, Series

Call = Callable[[], float]
"""Runs the kernel once or more and gives the seconds of one call."""


class PointRefusedError(RuntimeError):
    """The kernel cannot run at this N here: memory, KV cache or the model's limits."""


class Bench(Protocol):
    """Prepares kernel calls on a device."""

    def sizes(self, series: Series) -> tuple[int, int, int]:
        """Inputs, outputs and bytes of the kernel's weights; 0 where it has none."""
        ...

    def ready(self, series: Series, positions: int) -> Call:
        """A call at N positions, warmed up.

        Raises:
            PointRefusedError: if it cannot run.
        """
        ...

    def release(self) -> None:
        """Free all prepared calls."""
        ...


def time_series(
    bench: Bench, series: Series, positions: Sequence[int], passes: int, rng: random.Random
) -> Curve | None:
    """Time one series; None if it cannot run at N = 1.

    Each pass runs all N once in a new random order, so that clock drift affects all N equally.
    """
    try:
        calls = _ready(bench, series, positions)
        if not calls or calls[0][0] != 1:
            return None
        taken: dict[int, list[float]] = {n: [] for n, _ in calls}
        for _, call in calls:
            call()
        for _ in range(passes):
            for n, call in rng.sample(calls, len(calls)):
                taken[n].append(call())
        inputs, outputs, weight_bytes = bench.sizes(series)
        return Curve(
            series,
            tuple(taken),
            tuple(tuple(values) for values in taken.values()),
            inputs,
            outputs,
            weight_bytes,
        )
    finally:
        bench.release()


def _ready(bench: Bench, series: Series, positions: Sequence[int]) -> list[tuple[int, Call]]:
    """The calls that the bench can prepare, by ascending N.

    Largest first, so that smaller calls live in memory that larger ones have used.
    """
    calls: list[tuple[int, Call]] = []
    for n in sorted(positions, reverse=True):
        try:
            calls.append((n, bench.ready(series, n)))
        except PointRefusedError:
            continue
    return calls[::-1]
