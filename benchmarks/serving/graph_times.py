"""How long the device takes for the CUDA graphs of steps, in vLLM's V2 runner.

A step whose batch has a FULL graph replays it through ``run_fullgraph`` of the runner's graph
manager (vLLM 0.33). An event before and one after each replay time it on the device. The stream is
kept busy while the replay is launched, so that the launch is not in its time; where it was not busy
for long enough, the replay counts as one that waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vllm_nfp.probe.launcher import (
    HEAD_START_SECONDS,
    HEAD_START_SHARE,
    hold_stream,
)
from vllm_nfp.timing import Clock
from vllm_nfp.timing.clock import Mark


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay of a FULL graph.

    Attributes:
        tokens: of the graph, padding included.
        adapters: LoRA adapters that the graph was captured for; 0: it runs none.
        seconds: from its begin to its end, on the device.
        waited: the device had reached it before the launch was over.
    """

    tokens: int
    adapters: int
    seconds: float
    waited: bool


class GraphTimes:
    """Times the replays of one graph manager; off at first, and then it adds a call to each.

    Args:
        manager: the runner's ``cudagraph_manager``.
        clock: of the stream that steps run on.
        hold: keeps that stream busy for so many seconds.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        manager: Any,
        clock: Clock,
        hold: Callable[[float], None] = hold_stream,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.on = False
        self._clock, self._hold, self._now = clock, hold, now
        self._longest_launch = 0.0
        self._launched: list[tuple[Any, Mark, Mark, bool]] = []
        self._replay = manager.run_fullgraph
        manager.run_fullgraph = self._timed

    def _timed(self, graph: Any) -> Any:
        if not self.on:
            return self._replay(graph)
        self._hold(max(HEAD_START_SECONDS, HEAD_START_SHARE * self._longest_launch))
        start = self._clock.mark()
        begun = self._now()
        output = self._replay(graph)
        self._longest_launch = max(self._longest_launch, self._now() - begun)
        waited = self._clock.reached(start)
        self._launched.append((graph, start, self._clock.mark(), waited))
        return output

    def take(self) -> list[Replay]:
        """Replays since the last call; the device must have finished them."""
        found = []
        for graph, start, end, waited in self._launched:
            seconds = self._clock.seconds(start, end)
            found.append(Replay(graph.num_tokens, graph.num_active_loras, seconds, waited))
            self._clock.release(start)
            self._clock.release(end)
        self._launched.clear()
        return found


def steady(
    replays: Iterable[Replay], tokens: int, adapted: bool, first: int, last: int
) -> list[Replay]:
    """Those between the first and the last steps of a request that ran on the wanted graph.

    Args:
        tokens: of the wanted graph.
        adapted: it runs LoRA adapters.
        first, last: so many replays at either end do not count.
    """
    every = list(replays)
    return [
        replay
        for replay in every[first : len(every) - last]
        if replay.tokens == tokens and (replay.adapters > 0) is adapted and not replay.waited
    ]
