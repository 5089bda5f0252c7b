"""What a session knows of its worker before it starts, and what the start costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vllm_nfp.adapter import support
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.memory import host_bytes
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import CellKey, State


class StartCost:
    """What the start of the server gives to the probe: time, and memory of this process.

    Time counts until the session is made, and again while the session starts. Between the two the
    worker warms up.

    Args:
        begun: when the start began to wait.
        now: seconds of a monotonic clock.
    """

    def __init__(self, begun: float, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._counted = now() - begun
        self._resident = 0
        self._running = False
        self.begun = begun
        """When the session began to start."""

    def begin(self) -> None:
        """The session starts."""
        self.begun, self._resident, self._running = self.now(), host_bytes(), True

    def end(self) -> None:
        """The session has started, or its start has failed."""
        self._counted, self._running = self.seconds, False

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._counted + (self.now() - self.begun if self._running else 0.0)

    @property
    def host_bytes(self) -> int:
        """Memory of this process that the start has taken so far."""
        return max(0, host_bytes() - self._resident)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker to be probed."""

    config: ProbeConfig
    """The probe's settings."""
    vllm_config: Any
    cost: StartCost

    @property
    def cells(self) -> list[CellKey]:
        """Those of the settings."""
        return [(b, context) for b in self.config.batch_sizes for context in self.config.contexts]

    @property
    def identity(self) -> Snapshot:
        """The fixed part of each snapshot, as far as it is known."""
        config = self.config
        return Snapshot(
            model_name=support.served_name(self.vllm_config),
            engine=str(self.vllm_config.parallel_config.data_parallel_index),
            state=State.WARMING,
            overhead_budget=0.0 if config.passive else config.overhead_budget,
        )

    def with_cost(self, identity: Snapshot) -> Snapshot:
        """The identity, with what the start has cost so far."""
        cost = self.cost
        return replace(identity, startup_seconds=cost.seconds, host_bytes=cost.host_bytes)
