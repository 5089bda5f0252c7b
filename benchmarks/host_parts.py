"""How long a server's host takes for the parts of a step, in vLLM's V2 runner.

:mod:`benchmarks.verification_extension` puts it in with ``--time-host``. Times are those of calls
on the serving thread, with all that they call: a part may hold others, and waits. Each call costs
half a microsecond more. The parts that only adaptive verification has are those of its manager, the
estimator's, and the drafter's first pass outside its full CUDA graph: ``draft in a graph`` has
fewer calls than there are steps, and ``draft without`` the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Part:
    """Calls since the last look."""

    calls: int = 0
    seconds: float = 0.0


class HostParts:
    """Times calls on single objects."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._parts: dict[str, Part] = {}

    def follow(self, owner: Any, attribute: str, name: str) -> None:
        """Time each call from now on; nothing where the object has no such method."""
        original = getattr(owner, attribute, None)
        if original is None:
            return
        part, now = self._parts.setdefault(name, Part()), self._now

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = now()
            try:
                return original(*args, **kwargs)
            finally:
                part.calls += 1
                part.seconds += now() - begun

        setattr(owner, attribute, timed)

    def take(self) -> dict[str, dict[str, float]]:
        """Calls and milliseconds by part since the last look, and begin anew."""
        told = {
            name: {"calls": part.calls, "ms": 1e3 * part.seconds}
            for name, part in self._parts.items()
        }
        for part in self._parts.values():
            part.calls, part.seconds = 0, 0.0
        return told


def follow_runner(runner: Any) -> HostParts:
    """The parts of a V2 runner's step (vLLM 0.33)."""
    parts = HostParts()
    for attribute in ("execute_model", "sample_tokens", "prepare_inputs", "prepare_attn", "sample"):
        parts.follow(runner, attribute, attribute)
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
