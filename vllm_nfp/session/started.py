"""What serves once the start has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.schedule.consent import Consent
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.session.expert_choices import ExpertChoices
from vllm_nfp.session.looks import Looks
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.session.timing_only import TimingOnly
from vllm_nfp.types import EngineStep, Shape


class PublishingError(RuntimeError):
    """The publisher's thread has given up; the message says why."""


@dataclass(frozen=True, slots=True)
class Lead:
    """What only the rank that leads has: it times steps, chooses pairs, and publishes."""

    watcher: Prober | TimingOnly
    publisher: Publisher
    experts: ExpertChoices | None = None
    """Reads which experts steps choose; None where there are none to read."""

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
            self.watcher.before_step(step, stands_for)
            self.count(graph_bytes)

    def idle(self, graph_bytes: int) -> float:
        """No request is there; returns the seconds until the next call."""
        seconds = self.watcher.idle()
        self.count(graph_bytes)
        return seconds

    def count(self, graph_bytes: int) -> None:
        """Hand what has been counted to the publisher."""
        self.publisher.count(self.watcher.counters(graph_bytes))


def follows() -> None:
    """The scan of a rank that does not lead: it plans nothing."""


class Agreement(Protocol):
    """What the ranks that probe together agree on.

    Implemented by :class:`vllm_nfp.session.agreement.Alone`,
    :class:`vllm_nfp.session.in_lockstep.InLockstep` and
    :class:`vllm_nfp.session.in_waves.InWaves`.
    """

    @property
    def leads(self) -> bool:
        """Whether this rank times steps, plans pairs between them, publishes and writes."""
        ...

    @property
    def ranks(self) -> Ranks:
        """Those that probe together, as the probe engine sees them."""
        ...

    def consent(self, engine: ProbeEngine) -> Consent:
        """Who has to agree to a pair that this rank has chosen."""
        ...

    def scan(
        self,
        engine: ProbeEngine,
        scan: Callable[[], None] = follows,
        prober: Prober | None = None,
    ) -> None:
        """Scan with all ranks.

        Args:
            scan: the leader's scan; the others launch what it launches.
            prober: times pairs on a rank that publishes.
        """
        ...

    def leave(self) -> None:
        """The start has failed on this rank: let no other rank wait for it."""
        ...

    def before_step(self, started: Started, scheduler_output: Any) -> None:
        """Before a real step: look at it, and maybe launch a pair.

        Raises:
            Exception: anything; :meth:`fault` judges it.
        """
        ...

    def before_dummy(self, started: Started) -> None:
        """Before a dummy batch, which runs where other engines run a step."""
        ...

    def idle(self, started: Started) -> float:
        """No request is there: maybe launch a pair; returns the seconds until the next call."""
        ...

    def timed(self, started: Started) -> bool:
        """Whether the step that runs now is timed."""
        ...

    def fault(self, stage: str, error: Exception) -> str | None:
        """Why the probe ends now, after this fault; None if all ranks will end it together."""
        ...


class FirstScan(Protocol):
    """The last part of a start, on all ranks of the agreement."""

    def __call__(self, note: str = "") -> None:
        """Scan, and begin to publish on the rank that leads.

        Args:
            note: what the results should say of the scan; empty: nothing.

        Raises:
            Exception: anything, such as a fault of another rank.
        """
        ...


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


@dataclass(frozen=True, slots=True)
class Waiting:
    """The parts of a session that has put its first scan off, until real steps have filled the KV
    cache."""

    started: Started
    """What serves after the scan."""
    scan: FirstScan
    to_fill: Shape | None
    """What the scan reads at most; None on a rank that follows."""
