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
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import Table, reported_table
from vllm_nfp.schedule.budget import LARGE_BUDGET, Budget
from vllm_nfp.schedule.flights import Flights
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.queue import Queue
from vllm_nfp.schedule.scan import scan
from vllm_nfp.session.cells import Cells, cells_of, log_skipped
from vllm_nfp.session.expert_choices import expert_choices
from vllm_nfp.session.looks import Looks
from vllm_nfp.session.output import Output
from vllm_nfp.session.publication import EVERY_RANK_READY, open_publication
from vllm_nfp.session.served_table import served_table
from vllm_nfp.session.started import Agreement, Lead, Started
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
) -> Started:
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
    with torch.inference_mode():
        engine = ProbeEngine(view, clock, worker.config, limits, place, agreement.ranks)
        try:
            prepare(worker, engine, limits.capture_seconds, agreement.ranks)
            lead = None
            if agreement.leads:
                seconds_left = _seconds_to_scan(worker, limits.capture_seconds)
                lead = _lead(worker, view, engine, clock, agreement, output, seconds_left)
            else:
                _follow(engine, agreement)
        except Exception:
            engine.close()
            raise
    # With a large budget each step may have a pair ahead of it.
    generous = worker.config.overhead_budget > LARGE_BUDGET
    sampler = Sampler(one_in=1) if generous else Sampler()
    steps = limits_of(worker.vllm_config, cached_tokens_of(view.runner.kv_cache_config))
    periods = Periods() if lead is None else lead.watcher.timer.periods
    return Started(agreement, Looks(sampler, steps, view, periods), engine, lead)


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


def _lead(
    worker: Worker,
    view: RunnerView,
    engine: ProbeEngine,
    clock: Clock,
    agreement: Agreement,
    output: Output,
    scan_seconds: float,
) -> Lead:
    """Scan with all ranks, and begin to publish."""
    config, now = worker.config, worker.cost.now
    cells = cells_of(worker, engine)
    if not agreement.ranks.all(bool(cells.grids), A_CELL):
        raise NothingToProbeError(f"no cell can be probed: {next(iter(cells.skipped.values()))}")
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
        engine.rules.capture_sizes,
        output,
    )
    publisher = publication.publisher
    flights, consent = Flights(engine, clock, now), agreement.consent(engine)
    queue = Queue(lambda: publisher.agenda)
    prober = Prober(flights, consent, timer, queue, budget, publisher.put, config, now)
    lead = Lead(prober, publisher, expert_choices(view, clock, publisher.experts.put))

    def report() -> None:
        lead.count(engine.graph_bytes)
        publisher.report_progress()

    _warn_of_fusion(worker, agreement.ranks)
    maybe_fail("startup_scan")
    agreement.scan(engine, lambda: scan(prober, scan_seconds, report, now), prober)
    engine.give_back_cache()
    publisher.process()
    lead.count(engine.graph_bytes)
    identity = publication.first(worker, table, agreement.ranks)
    _log_start(worker, engine, identity, len(table.cells))
    return lead


def _table_of(worker: Worker, view: RunnerView, engine: ProbeEngine, cells: Cells) -> Table:
    probed = {cell: (1, *beyond_one) for cell, beyond_one in cells.grids.items()}
    server = served_table(
        worker, cached_tokens_of(view.runner.kv_cache_config), execution_of(engine.rules)
    )
    return reported_table(worker.config, server, probed)


def _follow(engine: ProbeEngine, agreement: Agreement) -> None:
    """Launch what the leader's scan launches."""
    if not agreement.ranks.all(True, A_CELL):
        raise NothingToProbeError("no cell can be probed on the first rank")
    maybe_fail("startup_scan")
    agreement.scan(engine)
    engine.give_back_cache()
    agreement.ranks.all(True, EVERY_RANK_READY)


def _log_start(worker: Worker, engine: ProbeEngine, identity: Snapshot, cells: int) -> None:
    logger.info(
        "vllm-nfp: probe active on the %s runner: at most %g %% of GPU time and %g %% of steps; "
        "%d cells; %d of %d layers timed; startup +%.1f s; %.0f MiB of GPU memory%s",
        identity.runner,
        100 * worker.config.overhead_budget,
        100 * worker.config.delayed_steps,
        cells,
        engine.timed_layers,
        engine.num_layers,
        identity.startup_seconds,
        engine.graph_bytes / (1 << 20),
        " beside vLLM's own CUDA graphs" if engine.shares_graph_memory else "",
    )


def _warn_of_fusion(worker: Worker, ranks: Ranks) -> None:
    if ranks.alone:
        return
    passes = worker.vllm_config.compilation_config.pass_config
    if getattr(passes, "fuse_allreduce_rms", False):
        logger.info(
            "vllm-nfp: this server fuses all-reduces with norms; the module communication times "
            "the plain all-reduce, which may take longer"
        )
