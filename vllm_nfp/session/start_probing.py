"""The start of a worker that is probed: build the engine, prove, prepare, scan, publish."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from vllm_nfp.adapter.dispatch import execution_of
from vllm_nfp.adapter.dummies import engines_together
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.steps import cached_tokens_of, limits_of
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.results.table import Table, reported_table
from vllm_nfp.schedule.budget import LARGE_BUDGET, Budget
from vllm_nfp.schedule.flights import Flights
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.queue import Queue
from vllm_nfp.session.cells import Cells, cells_of, log_skipped
from vllm_nfp.session.expert_choices import expert_choices
from vllm_nfp.session.first_scan import FollowersScan, LeadersScan
from vllm_nfp.session.looks import Looks
from vllm_nfp.session.output import Output
from vllm_nfp.session.publication import open_publication
from vllm_nfp.session.served_table import served_table
from vllm_nfp.session.started import Agreement, FirstScan, Lead, Started, Waiting
from vllm_nfp.session.worker import Worker
from vllm_nfp.timing import Clock, CudaClock, HostClock, Periods, Sampler, StepTimer
from vllm_nfp.types import cell_name

logger = logging.getLogger("vllm.nfp")

A_CELL = "is there a cell to probe"
"""What the ranks are asked before they scan."""


class NothingToProbeError(RuntimeError):
    """No cell of the settings can be probed here; the message says why."""


def clock_of(view: RunnerView) -> Clock:
    """The clock of the serving stream."""
    return CudaClock() if view.device.type == "cuda" else HostClock()


def _ranks_of(config: Any) -> int:
    """Ranks that run each shape together."""
    return int(config.parallel_config.tensor_parallel_size) * engines_together(config)


def start_probing(
    worker: Worker, view: RunnerView, place: GraphPlace | None, agreement: Agreement, output: Output
) -> Started | Waiting:
    """Start to probe, on all ranks of the agreement or on none.

    Args:
        place: memory pool and stream of vLLM's own CUDA graphs, if there are any.

    Raises:
        NothingToProbeError: if no cell can be probed.
        Exception: anything, such as a fault of another rank.
    """
    maybe_fail("attach")
    limits = worker.config.graph_limits(_ranks_of(worker.vllm_config))
    clock, place = clock_of(view), place if limits.shared_pool else None
    lead, to_fill = None, None
    waits = worker.config.fill_first and worker.vllm_config.model_config.is_moe
    with torch.inference_mode():
        engine = ProbeEngine(view, clock, worker.config, limits, place, agreement.ranks)
        try:
            prepare(worker, engine, limits.capture_seconds, agreement.ranks)
            scan: FirstScan = FollowersScan(engine, agreement)
            if agreement.leads:
                seconds_left = _seconds_to_scan(worker, limits.capture_seconds)
                cells = _cells_to_probe(worker, engine, agreement)
                scan = _leaders_scan(
                    worker, view, engine, clock, agreement, output, cells, seconds_left
                )
                lead, to_fill = scan.lead, cells.largest
                if waits:
                    scan.tell_that_it_waits()
            elif not agreement.ranks.all(True, A_CELL):
                raise NothingToProbeError("no cell can be probed on the first rank")
            if not waits:
                scan()
        except Exception:
            engine.close()
            raise
    # With a large budget each step may have a pair ahead of it.
    generous = worker.config.overhead_budget > LARGE_BUDGET
    sampler = Sampler(one_in=1) if generous else Sampler()
    steps = limits_of(worker.vllm_config, cached_tokens_of(view.runner.kv_cache_config))
    periods = Periods() if lead is None else lead.watcher.timer.periods
    started = Started(agreement, Looks(sampler, steps, view, periods), engine, lead)
    return Waiting(started, scan, to_fill) if waits else started


def prepare(worker: Worker, engine: ProbeEngine, capture_seconds: float, ranks: Ranks) -> None:
    """Prove that probes keep the KV cache, make the shapes ready, and prove it once more."""
    cost = worker.cost
    checking = cost.now()
    engine.check_kv_cache_untouched()
    took = cost.now() - checking  # as long as the second check will
    engine.prepare(lambda: cost.now() + took >= cost.begun + capture_seconds)
    seconds = capture_seconds + worker.config.startup_seconds
    if ranks.all(2 * took <= seconds, "is there time for the proof"):
        engine.check_kv_cache_untouched()
    else:
        logger.warning(
            "vllm-nfp: the KV cache is too large to check all of it twice within capture_seconds + "
            "startup_seconds (%.1f s each time); captured graphs are checked run by run",
            took,
        )


def _seconds_to_scan(worker: Worker, capture_seconds: float) -> float:
    """What the proof and the preparation have left of the time that the settings allow in all."""
    cost, most = worker.cost, worker.config.startup_seconds
    return max(0.0, min(most, cost.begun + capture_seconds + most - cost.now()))


def _cells_to_probe(worker: Worker, engine: ProbeEngine, agreement: Agreement) -> Cells:
    """Those of the settings, on the rank that leads.

    Raises:
        NothingToProbeError: if there is none.
    """
    cells = cells_of(worker, engine)
    if not agreement.ranks.all(bool(cells.grids), A_CELL):
        raise NothingToProbeError(f"no cell can be probed: {next(iter(cells.skipped.values()))}")
    return cells


def _leaders_scan(
    worker: Worker,
    view: RunnerView,
    engine: ProbeEngine,
    clock: Clock,
    agreement: Agreement,
    output: Output,
    cells: Cells,
    seconds: float,
) -> LeadersScan:
    """What times steps, chooses pairs and publishes, with nothing measured yet."""
    config, now = worker.config, worker.cost.now
    skipped = {cell_name(cell): reason for cell, reason in cells.skipped.items()}
    identity = replace(worker.identity, runner=view.name, skipped_cells=skipped)
    budget = Budget(config.overhead_budget, config.delayed_steps)
    timer = StepTimer(clock, budget.earn)
    table = _table_of(worker, view, engine, cells)
    log_skipped(cells.skipped, table)
    publication = open_publication(
        worker,
        view,
        identity,
        timer.times,
        table,
        engine.modules,
        engine.rules.graphs,
        output,
    )
    publisher = publication.publisher
    flights, consent = Flights(engine, clock, now), agreement.consent(engine)
    queue = Queue(lambda: publisher.agenda)
    prober = Prober(flights, consent, timer, queue, budget, publisher.put, config, now)
    lead = Lead(prober, publisher, expert_choices(view, clock, publisher.experts.put))
    _warn_of_fusion(worker, agreement.ranks)
    return LeadersScan(worker, engine, agreement, prober, lead, publication, table, output, seconds)


def _table_of(worker: Worker, view: RunnerView, engine: ProbeEngine, cells: Cells) -> Table:
    probed = {cell: (1, *beyond_one) for cell, beyond_one in cells.grids.items()}
    server = served_table(
        worker, cached_tokens_of(view.runner.kv_cache_config), execution_of(engine.rules)
    )
    return reported_table(worker.config, server, probed)


def _warn_of_fusion(worker: Worker, ranks: Ranks) -> None:
    if ranks.alone:
        return
    passes = worker.vllm_config.compilation_config.pass_config
    if getattr(passes, "fuse_allreduce_rms", False):
        logger.info(
            "vllm-nfp: this server fuses all-reduces with norms; the module communication times "
            "the plain all-reduce, which may take longer"
        )
