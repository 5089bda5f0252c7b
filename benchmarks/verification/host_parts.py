"""How long a server's host takes for the parts of a step, in vLLM's V2 runner.

:mod:`benchmarks.verification.extension` puts it in with ``--time-host``. Times are those of calls
on the serving thread, with all that they call: a part may hold others, and waits. Each call costs
half a microsecond more. The parts that only adaptive verification has are those of its manager, the
estimator's, and the drafter's first pass outside its full CUDA graph: ``draft in a graph`` has
fewer calls than there are steps, and ``draft without`` the others. ``step`` is from one begin of
``execute_model`` to the next, and ``processor time of a step`` what the serving thread works of it:
while it waits for the device, or for another thread or process, it takes none. A mean hides slow
calls: the host may be early at most steps, and the device still wait for it at some.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from statistics import quantiles
from typing import Any

STEP, WORK = "step", "processor time of a step"
CUTS = {"median_ms": 50, "p90_ms": 90, "p99_ms": 99}
"""Percentiles that are told."""


class HostParts:
    """Times calls on single objects."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._parts: dict[str, array[float]] = {}
        """Seconds of each call since the last look."""

    def follow(self, owner: Any, attribute: str, name: str) -> None:
        """Time each call from now on; nothing where the object has no such method."""
        original = getattr(owner, attribute, None)
        if original is None:
            return
        seconds, now = self._parts.setdefault(name, array("d")), self._now

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = now()
            try:
                return original(*args, **kwargs)
            finally:
                seconds.append(now() - begun)

        setattr(owner, attribute, timed)

    def follow_begins(
        self, owner: Any, attribute: str, name: str, now: Callable[[], float]
    ) -> None:
        """Time from each call's begin to the next one's; an idle time counts as one of them."""
        original, seconds = getattr(owner, attribute), array("d")
        self._parts[name] = seconds
        last: float | None = None

        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal last
            begun = now()
            if last is not None:
                seconds.append(begun - last)
            last = begun
            return original(*args, **kwargs)

        setattr(owner, attribute, timed)

    def take(self) -> dict[str, dict[str, float]]:
        """Calls and milliseconds by part since the last look, and begin anew.

        ``ms`` is the sum of all calls; percentiles are those of single calls.
        """
        told = {name: _told(seconds) for name, seconds in self._parts.items()}
        for seconds in self._parts.values():
            del seconds[:]
        return told


def _told(seconds: array[float]) -> dict[str, float]:
    told = {"calls": len(seconds), "ms": 1e3 * sum(seconds)}
    if len(seconds) > 1:
        cuts = quantiles(seconds, n=100, method="inclusive")
        told |= {name: 1e3 * cuts[percent - 1] for name, percent in CUTS.items()}
        told["most_ms"] = 1e3 * max(seconds)
    return told


def follow_runner(runner: Any) -> HostParts:
    """The parts of a V2 runner's step (vLLM 0.33)."""
    parts = HostParts()
    for attribute in ("execute_model", "sample_tokens", "prepare_inputs", "prepare_attn", "sample"):
        parts.follow(runner, attribute, attribute)
    parts.follow_begins(runner, "execute_model", STEP, time.perf_counter)
    parts.follow_begins(runner, "execute_model", WORK, time.thread_time)
    speculator, manager = runner.speculator, runner.adaptive_verification
    if speculator is not None:
        parts.follow(speculator, "propose", "propose")
        parts.follow(speculator, "observe_verification", "learn")
        parts.follow(speculator, "_prefill", "draft without")
        graphs = getattr(speculator, "prefill_cudagraph_manager", None)
        parts.follow(graphs, "run_fullgraph", "draft in a graph")
    if manager is not None:
        parts.follow(manager, "get_num_tokens", "choose")
        parts.follow(manager, "reallocate_drafts", "give out")
        parts.follow(manager, "record_confidences", "confidences")
        for event in manager._copy_events:
            parts.follow(event, "synchronize", "wait for confidences")
    return parts
