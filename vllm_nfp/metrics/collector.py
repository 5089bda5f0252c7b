"""The Prometheus collector that every API server's registry carries."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.samples import Sample

from vllm_nfp.draft.server_drafts import COUNTERS
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import in_pieces
from vllm_nfp.metrics.families import families_of, of_files
from vllm_nfp.metrics.families.control import control_families
from vllm_nfp.metrics.families.curves import CurvesOf, step_curves
from vllm_nfp.metrics.families.gain import gains, told_running
from vllm_nfp.metrics.families.recommendation import (
    Schedules,
    live_curves,
    recommended,
    settled_lengths,
    told_demand,
)
from vllm_nfp.metrics.families.state import ages
from vllm_nfp.metrics.families.steps import steps
from vllm_nfp.metrics.hand_over import EngineFiles, Engines, HandOverFiles, Warnings
from vllm_nfp.results import control

SAMPLES_AT_A_TIME = 32
"""Samples that become text before a pause: some 0.3 ms."""


class _Paced(list[Sample]):
    """Samples with pauses in between: vLLM's server makes their text in a thread beside its own."""

    def __iter__(self) -> Iterator[Sample]:
        return in_pieces(super().__iter__(), SAMPLES_AT_A_TIME)


@dataclass(frozen=True, slots=True)
class _Built:
    """Families that the files alone decide, and the files that they were built of."""

    engines: Engines
    families: list[Metric]
    curves: CurvesOf
    live: CurvesOf
    steps: list[Metric]
    """Times of real steps, as they are among the families."""


class NfpCollector:
    """Reads the engines' hand-over files at each scrape and turns them into metrics.

    An engine whose file cannot be read any more keeps its last state and age, with the reason.

    Args:
        run_dir: the folder that the engines write to.
        draft_acceptance: chance that a draft is accepted; None: what the server has counted.
        registry: holds vLLM's own counters of drafts; None: there are none.
    """

    def __init__(
        self,
        run_dir: str,
        draft_acceptance: float | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        folder = Path(run_dir)
        self._draft_acceptance = draft_acceptance
        self._registry = registry
        self._warnings = Warnings()
        self._engines = EngineFiles(folder, self._warnings)
        self._controls = HandOverFiles(
            folder, control.FILE_PATTERN, control.read_control, control.control_file, self._warnings
        )
        self._built: _Built | None = None
        self._schedules = Schedules()
        # Scrapes come in threads of their own; one at a time reads and builds.
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """The metrics without values: registering the collector reads no file.

        A collector that names nothing would be asked for vLLM's counters as well, by itself.
        """
        return list(families_of([]))

    def collect(self) -> Iterator[Metric]:
        """The metrics of all engines; a fault gives fewer metrics, never a failed scrape."""
        if self._registry is None:
            return self.collect_beside(())
        return self.collect_beside(self._registry.restricted_registry(COUNTERS).collect())

    def collect_beside(self, others: Iterable[Metric]) -> Iterator[Metric]:
        """The same, with vLLM's counters of drafts taken from these metrics."""
        try:
            maybe_fail("collect")
            with self._lock:
                snapshots = self._controls.read()
            controls, counters = list(control_families(snapshots)), list(others)
            families = [*self._of_engines(controls, counters), *controls]
        except Exception as error:
            self._warnings.once(f"the probe's metrics could not be collected: {error!r}")
            families = []
        yield from families

    def _of_engines(self, controls: list[Metric], others: list[Metric]) -> list[Metric]:
        """All families of the probes; those that only the files decide are built once a file.

        So the cost of a scrape does not depend on how much is measured or how often one asks.
        """
        with self._lock:
            engines = self._engines.read()
            built = self._built
            if built is None or (built.engines.states, built.engines.lost) != (
                engines.states,
                engines.lost,
            ):
                curves, live = step_curves(engines.snapshots), live_curves(engines.snapshots)
                families = list(of_files(engines.snapshots, curves, live, engines.lost))
                for family in families:
                    family.samples = _Paced(family.samples)
                timed = list(steps(engines.snapshots))
                built = self._built = _Built(engines, families, curves, live, timed)
        demand_of = told_demand(controls, [*others, *built.steps], self._draft_acceptance)
        found, live = engines.snapshots, built.live
        settled = settled_lengths(controls)
        lengths = list(recommended(found, built.curves, live, demand_of, settled, self._schedules))
        gained = gains(found, live, lengths, demand_of, told_running(controls, others))
        return [*built.families, *ages([*found, *engines.lost]), *lengths, *gained]
