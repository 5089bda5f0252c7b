"""The start of the probe in one worker: decide what to do, and do as much of it as can be done."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from vllm_nfp.adapter import bindings, support
from vllm_nfp.adapter.attention_groups import CellDoesNotFitError
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.dispatch import NO_GRAPHS, execution_of
from vllm_nfp.adapter.dummies import steps_together
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.graph_rules import graph_rules
from vllm_nfp.adapter.layers import UnsupportedModelError
from vllm_nfp.adapter.out_of_memory import is_out_of_memory
from vllm_nfp.adapter.presence import RanksDifferError
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.runners import UnknownRunnerError, view_of
from vllm_nfp.adapter.steps import cached_tokens_of, limits_of
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.faults import maybe_fail
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.results.table import Table
from vllm_nfp.schedule.lockstep import DivergedError, PeerFaultError, WireError
from vllm_nfp.session import in_waves
from vllm_nfp.session.agreement import Alone
from vllm_nfp.session.expert_choices import expert_choices
from vllm_nfp.session.in_lockstep import InLockstep, join
from vllm_nfp.session.in_waves import InWaves
from vllm_nfp.session.looks import Looks
from vllm_nfp.session.output import Output
from vllm_nfp.session.publication import open_publication
from vllm_nfp.session.served_table import served_table
from vllm_nfp.session.start_probing import NothingToProbeError, clock_of, start_probing
from vllm_nfp.session.started import Agreement, Lead, Started, Waiting
from vllm_nfp.session.timing_only import TimingOnly
from vllm_nfp.session.worker import Worker
from vllm_nfp.timing import Sampler, StepTimer
from vllm_nfp.types import Module, ShapeRefusedError, State

logger = logging.getLogger("vllm.nfp")

USUAL_MODULES = (Module.ATTENTION, Module.DENSE_FFN)
"""Modules of a model that is not known and not taken apart."""


class StaysOffError(RuntimeError):
    """Nothing is probed or timed in this worker; the message says why.

    Args:
        reason: the message.
        expected: the reason is a setting or feature, and no fault.
    """

    def __init__(self, reason: str, expected: bool) -> None:
        super().__init__(reason)
        self.expected = expected


def start(
    worker: Worker, runner: Any, place: GraphPlace | None, output: Output
) -> Started | Waiting | None:
    """Start on a runner that has warmed up; None on a rank that takes no part.

    Args:
        place: memory pool and stream of vLLM's own CUDA graphs, if there are any.

    Raises:
        StaysOffError: if nothing can be done here.
        Exception: anything, which is a fault.
    """
    leads = support.reports(worker.vllm_config.parallel_config)
    if not leads:
        output.silence()
    decision = support.decide(worker.vllm_config, worker.config.passive)
    if decision.mode is Mode.ACTIVE:
        return _try_to_probe(worker, runner, place, output, leads)
    if not leads:
        return None
    if decision.mode is Mode.OFF:
        raise StaysOffError(decision.reason, expected=True)
    return _time_only(worker, runner, decision.reason, output)


def _try_to_probe(
    worker: Worker, runner: Any, place: GraphPlace | None, output: Output, leads: bool
) -> Started | Waiting | None:
    """Probe; where this model or machine cannot be probed, time steps."""
    try:
        view = view_of(runner)  # one that is unknown is unknown on every rank, and none waits
        agreement = _agreement_of(worker, leads)
    except RanksDifferError as error:
        return _without_probe(worker, runner, str(error), output, leads)
    except UnknownRunnerError as error:
        raise StaysOffError(str(error), expected=True) from error
    except WireError as error:
        raise StaysOffError(str(error), expected=False) from error
    try:
        return start_probing(worker, view, place, agreement, output)
    except (PeerFaultError, DivergedError, WireError) as error:
        raise StaysOffError(str(error), expected=False) from error
    except Exception as error:
        agreement.leave()
        if not cannot_probe(error):
            raise
        reason = str(error)
    return _without_probe(worker, runner, reason, output, agreement.leads)


def scan_at_last(waiting: Waiting, note: str) -> Started:
    """The first scan of a session that has put it off; returns what serves then.

    Args:
        note: what the results should say of the scan; empty: nothing.

    Raises:
        StaysOffError: if nothing can be probed, or another rank has a fault.
        Exception: anything else, which is a fault.
    """
    try:
        waiting.scan(note)
    except (PeerFaultError, DivergedError, WireError) as error:
        raise StaysOffError(str(error), expected=False) from error
    except Exception as error:
        waiting.started.agreement.leave()
        if not cannot_probe(error):
            raise
        raise StaysOffError(str(error), expected=True) from error
    return waiting.started


def _without_probe(
    worker: Worker, runner: Any, reason: str, output: Output, leads: bool
) -> Started | None:
    """Time steps on the rank that leads; the others take no part."""
    if leads:
        return _time_only(worker, runner, reason, output)
    logger.warning("vllm-nfp: this rank takes no part: %s", reason)
    return None


def _agreement_of(worker: Worker, leads: bool) -> Agreement:
    """All ranks choose alike, so that none waits for a rank that only times its own steps.

    Raises:
        RanksDifferError: on all ranks that have a probe, if one has none or another.
    """
    config = worker.vllm_config
    # On an unknown vLLM each rank finds out for itself that it cannot probe.
    if not bindings.is_known(config):
        return Alone(leads)
    if steps_together(config):
        return InWaves(*in_waves.join(worker.config), leads)
    if config.parallel_config.tensor_parallel_size > 1:
        return InLockstep(join(worker.config))
    return Alone(leads)


def cannot_probe(error: Exception) -> bool:
    """Whether it says that this model or machine cannot be probed, which is no fault."""
    known = (
        NothingToProbeError,
        ShapeRefusedError,
        UnsupportedModelError,
        CellDoesNotFitError,
        UnknownVllmError,
    )
    return isinstance(error, known) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


def _time_only(worker: Worker, runner: Any, reason: str, output: Output) -> Started:
    """Time real steps, and say why nothing is probed."""
    view = _view_without_probe(runner, reason)
    log = logger.info if worker.config.passive else logger.warning
    log("vllm-nfp: passive mode on the %s runner: %s", view.name, reason)
    maybe_fail("attach")
    worker = replace(worker, config=replace(worker.config, passive=True))
    identity = replace(worker.identity, state=State.PASSIVE, reason=reason, runner=view.name)
    clock = clock_of(view)
    watcher = TimingOnly(StepTimer(clock))
    table, graphs = _passive_table(worker, view)
    times = watcher.timer.times
    publication = open_publication(
        worker, view, identity, times, table, USUAL_MODULES, graphs, output
    )
    agreement = Alone()
    publication.first(worker, table, agreement.ranks)
    logger.info(
        "vllm-nfp: timing the steps of %s on the %s runner, without probes",
        identity.model_name,
        view.name,
    )
    looks = Looks(Sampler(), limits_of(worker.vllm_config), view, watcher.timer.periods)
    publisher = publication.publisher
    experts = expert_choices(view, clock, publisher.experts.put)
    return Started(agreement, looks, None, Lead(watcher, publisher, experts))


def _passive_table(worker: Worker, view: RunnerView) -> tuple[Table, CapturedGraphs]:
    """What is reported without a probe, and vLLM's CUDA graphs."""
    rules, cached_tokens = NO_GRAPHS, math.inf
    try:
        rules = graph_rules(worker.vllm_config, view.runner.attn_groups, view.device)
        cached_tokens = cached_tokens_of(view.runner.kv_cache_config)
    except Exception as error:  # an unknown vLLM may keep its settings elsewhere
        logger.info("vllm-nfp: how steps are launched and cached is not known: %r", error)
    return served_table(worker, cached_tokens, execution_of(rules)), rules.graphs


def _view_without_probe(runner: Any, reason: str) -> RunnerView:
    try:
        return view_of(runner)
    except UnknownRunnerError as error:
        message = f"{reason}, and even that is off: {error}"
        raise StaysOffError(message, expected=True) from error
