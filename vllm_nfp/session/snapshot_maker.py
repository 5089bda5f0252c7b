"""Makes snapshots: what each part of the background side says, at the moment of the question."""

from __future__ import annotations

import time
from dataclasses import replace

from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.agenda import Agenda
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.cost_source import LeadingCosts
from vllm_nfp.session.counted_experts import CountedExperts
from vllm_nfp.session.latest_agenda import LatestAgenda
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import Prediction, State


class SnapshotMaker:
    """Any thread may ask it at any time; it waits for no update that is under way.

    For that, what an update makes is a finished value, which one assignment replaces: in the middle
    of an update a snapshot holds the value of before or of after, and never half of one. Times of
    steps and of layers may be read while they are written.

    Args:
        config: the probe's settings.
        identity: the fixed part of each snapshot, as far as it is known.
        times: of real steps.
        results: what is known.
        latest: what is probed next.
        experts: what is known of the experts that steps choose.
    """

    def __init__(
        self,
        config: ProbeConfig,
        identity: Snapshot,
        times: StepTimes,
        results: Results,
        latest: LatestAgenda,
        experts: CountedExperts,
    ) -> None:
        self._passive = config.passive
        self._times = times
        self._results = results
        self._latest = latest
        self._experts = experts
        self.identity = identity
        """The fixed part; replaced as a whole."""
        self.counters = Counters()
        """The serving side's latest; replaced as a whole."""
        self.costs: LeadingCosts | None = None
        """Those of adaptive verification; None where the server has none."""

    def predict(self, predictions: tuple[Prediction, ...]) -> None:
        """Show these predictions from now on; for the thread that updates the results."""
        self.identity = replace(self.identity, predictions=predictions)

    def full_snapshot(self) -> Snapshot:
        """All that is known now, the times of layers too."""
        return replace(self.snapshot(), layer_times=self._results.layer_times())

    def snapshot(self) -> Snapshot:
        """What is known now and fits into the metrics."""
        counters, found, agenda = self.counters, self._results.findings, self._latest.agenda
        return replace(
            self.identity,
            state=State.PASSIVE if self._passive else state_of(found.pairs, agenda),
            updated_unix_seconds=time.time(),
            updated_monotonic_seconds=time.monotonic(),
            idle_probe_seconds=counters.idle_probe_seconds,
            step_ratio=counters.step_ratio,
            budget_slack=counters.budget_slack,
            graph_bytes=counters.graph_bytes,
            steps=self._times.latencies(),
            probes=dict(counters.probes),
            probe_seconds=counters.probe_seconds,
            overhead_ratio=counters.overhead_ratio,
            boundaries=found.boundaries,
            curves=found.curves,
            layers=found.layers,
            live_boundaries=found.live_boundaries,
            live_curves=found.live_curves,
            jumps=found.jumps,
            missing_pairs=agenda.missing_pairs,
            live=found.live,
            experts=self._experts.report,
            verification=None if self.costs is None else self.costs.report(),
        )


def state_of(pairs: int, agenda: Agenda) -> State:
    """What a server that is probed is at.

    Args:
        pairs: that were taken in.
    """
    if not pairs:
        return State.WARMING
    return State.PROBING if agenda.missing_pairs else State.STEADY
