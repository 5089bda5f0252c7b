"""The first scan: the last part of a start. It may wait until real steps filled the KV cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import Table
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.scan import scan
from vllm_nfp.session.output import Output
from vllm_nfp.session.publication import EVERY_RANK_READY, Publication
from vllm_nfp.session.started import Agreement, Lead
from vllm_nfp.session.worker import Worker

logger = logging.getLogger("vllm.nfp")

FILLING = "filling the KV cache with prompts: it decides which experts run"
"""What a scan that was put off waits for."""


@dataclass(frozen=True, slots=True)
class FollowersScan:
    """On a rank that follows: launches what the leader's scan launches."""

    engine: ProbeEngine
    agreement: Agreement

    def __call__(self, note: str = "") -> None:
        """Follow; see :class:`vllm_nfp.session.started.FirstScan`."""
        with torch.inference_mode():
            maybe_fail("startup_scan")
            self.agreement.scan(self.engine)
            self.engine.give_back_cache()
            self.agreement.ranks.all(True, EVERY_RANK_READY)


@dataclass(frozen=True, slots=True)
class LeadersScan:
    """On the rank that leads: scans with all ranks, and begins to publish."""

    worker: Worker
    engine: ProbeEngine
    agreement: Agreement
    prober: Prober
    lead: Lead
    publication: Publication
    table: Table
    output: Output
    seconds: float
    """Longest scan."""

    def tell_that_it_waits(self) -> None:
        """Hand over what the scan waits for, before there is any result."""
        self.output.write(replace(self.publication.identity, reason=FILLING))

    def __call__(self, note: str = "") -> None:
        """Scan and publish; see :class:`vllm_nfp.session.started.FirstScan`."""
        with torch.inference_mode():
            maybe_fail("startup_scan")
            self.agreement.scan(self.engine, self._scan, self.prober)
            self.engine.give_back_cache()
            self.lead.publisher.process()
            self.lead.count(self.engine.graph_bytes)
            noted = replace(self.publication.identity, reason=note)
            publication = replace(self.publication, identity=noted)
            identity = publication.first(self.worker, self.table, self.agreement.ranks)
            self._log_start(identity)

    def _scan(self) -> None:
        scan(self.prober, self.seconds, self._report, self.worker.cost.now)

    def _report(self) -> None:
        self.lead.count(self.engine.graph_bytes)
        self.lead.publisher.report_progress()

    def _log_start(self, identity: Snapshot) -> None:
        engine, config = self.engine, self.worker.config
        logger.info(
            "vllm-nfp: probe active on the %s runner: at most %g %% of %s time and %g %% of "
            "steps; %d cells; %d of %d layers timed; startup +%.1f s%s",
            identity.runner,
            100 * config.overhead_budget,
            "GPU" if engine.on_gpu else "the serving",
            100 * config.delayed_steps,
            len(self.table.cells),
            engine.timed_layers,
            engine.num_layers,
            identity.startup_seconds,
            self._memory() if engine.on_gpu else "",
        )

    def _memory(self) -> str:
        beside = " beside vLLM's own CUDA graphs" if self.engine.shares_graph_memory else ""
        return f"; {self.engine.graph_bytes / (1 << 20):.0f} MiB of GPU memory{beside}"
