"""What serves once the start has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.session.looks import Looks
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.session.timing_only import TimingOnly
from vllm_nfp.types import EngineStep

if TYPE_CHECKING:
    from vllm_nfp.session.agreement import Agreement


class PublishingError(RuntimeError):
    """The publisher's thread has given up; the message says why."""


@dataclass(frozen=True, slots=True)
class Lead:
    """What only the rank that leads has: it times steps, chooses pairs, and publishes."""

    watcher: Prober | TimingOnly
    publisher: Publisher

    def look(self, step: EngineStep | None, stands_for: int, graph_bytes: int) -> None:
        """Look at a real step that comes next; may choose a pair.

        Args:
            step: None if it runs nothing.
            stands_for: steps that it stands for, its own among them.

        Raises:
            PublishingError: if the publisher has given up.
        """
        if self.publisher.fault is not None:
            raise PublishingError(self.publisher.fault)
        if step is not None:
            self.watcher.before_step(step, stands_for, self.publisher.feedback)
            self.count(graph_bytes)

    def idle(self, graph_bytes: int) -> float:
        """No request is there; returns the seconds until the next call."""
        seconds = self.watcher.idle(self.publisher.feedback)
        self.count(graph_bytes)
        return seconds

    def count(self, graph_bytes: int) -> None:
        """Hand what has been counted to the publisher."""
        self.publisher.count(self.watcher.counters(graph_bytes, self.publisher.feedback))


@dataclass(frozen=True, slots=True)
class Started:
    """The parts of a session that serves."""

    agreement: Agreement
    looks: Looks
    engine: ProbeEngine | None
    """None in passive mode."""
    lead: Lead | None
    """None on a rank that follows."""

    @property
    def graph_bytes(self) -> int:
        """GPU memory that the probe takes."""
        return 0 if self.engine is None else self.engine.graph_bytes
