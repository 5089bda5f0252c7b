"""vLLM's extension point for observers of steps, where this vLLM has it.

It is the one that ``patches/`` adds (see patches/README.md): observers of a worker's real steps,
and numbers that travel from workers to every API server's /metrics. Where it is missing, the
modules beside this one hook vLLM instead.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_nfp.adapter import idle
from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.acceptance import constant
from vllm_nfp.metrics.families import families_of
from vllm_nfp.metrics.outbox import Outbox
from vllm_nfp.results.snapshot import Snapshot

logger = logging.getLogger("vllm.nfp")

_FILES = ("v1/worker/step_observer.py", "v1/metrics/worker_metrics.py")


def present() -> bool:
    """Whether the installed vLLM has the extension point; imports nothing of it."""
    spec = importlib.util.find_spec("vllm")
    places = () if spec is None else spec.submodule_search_locations or ()
    return any(all(Path(place, name).is_file() for name in _FILES) for place in places)


def why_not_values(config: ProbeConfig, speculative: bool, log_stats: bool) -> str | None:
    """Why the results must reach /metrics through files all the same; None if vLLM carries them.

    Args:
        speculative: the server decodes speculatively.
        log_stats: the server keeps statistics, with which the values travel.
    """
    if not log_stats:
        return "--disable-log-stats turns off what would carry them"
    if config.draft_control:
        return "the controller of draft lengths reports through a file"
    if config.layer_histograms:
        return "vLLM carries numbers, and layer_histograms asks for histograms"
    if speculative and config.draft_acceptance is None:
        return "recommended draft lengths need the API server's own counters of drafts"
    return None


class Observer:
    """What vLLM calls around a worker's steps: a ``StepObserver`` in all but name.

    Args:
        session: the worker's probe, not attached yet.
        worker: vLLM's.
        outbox: results for /metrics; None if they go through files.
        captures: open since before the warm-up; notes where vLLM's CUDA graphs lie.
    """

    def __init__(
        self,
        session: Any,
        worker: Any,
        outbox: Outbox | None,
        captures: Any = None,
    ) -> None:
        self._session = session
        self._worker = worker
        self._outbox = outbox
        self._captures = captures
        self._warm = False

    def after_warm_up(self) -> None:
        """Attach, once; a session that is off still reports why."""
        if self._warm:
            return
        self._warm = True
        place = None
        if self._captures is not None:
            self._captures.close()
            place = self._captures.place
        self._session.attach(self._worker.model_runner, place)
        if self._session.active:
            idle.install(self._session)

    def before_step(self, scheduler_output: Any) -> None:
        """Maybe probe, then note the start of the real step."""
        if self._session.active:
            self._session.step(scheduler_output)
            self._session.mark(begin=True)

    def after_step(self, scheduler_output: Any) -> None:
        """Note that the real step has been launched."""
        if self._session.active:
            self._session.mark(begin=False)

    def take_metrics(self) -> list[Any] | None:
        """Changes since the last call, as vLLM's ``WorkerMetric``."""
        changes = [] if self._outbox is None else self._outbox.take()
        if not changes:
            return None
        from vllm.v1.metrics.worker_metrics import WorkerMetric

        return [
            WorkerMetric(
                name=change.name,
                value=change.value,
                kind="counter" if change.is_counter else "gauge",
                labels=dict(change.labels),
                documentation=change.documentation,
            )
            for change in changes
        ]


_registered = False
_config: ProbeConfig | None = None
"""The settings in force; None: workers that warm up get no observer."""


def register(config: ProbeConfig) -> None:
    """Have vLLM create an observer for every worker of this process that warms up."""
    global _registered, _config  # noqa: PLW0603 - vLLM's own list of factories is global as well
    _config = config
    if _registered:
        return
    from vllm.v1.worker.step_observer import register_step_observer

    register_step_observer(_observer_in_force)
    _registered = True
    logger.info("vllm-nfp: steps are observed through vLLM's extension point")


def unregister() -> None:
    """Let workers that warm up from now on be without an observer."""
    global _config  # noqa: PLW0603 - as above
    _config = None


def _observer_in_force(worker: Any) -> Observer | None:
    return None if _config is None else observer_of(worker, _config)


def observer_of(worker: Any, config: ProbeConfig) -> Observer:
    """The observer of a worker that is about to warm up."""
    begun = time.monotonic()
    from vllm_nfp.adapter.graph_place import CaptureWatch
    from vllm_nfp.session.rank_session import session_for

    session = session_for(config, worker.vllm_config)
    session.spent_seconds = time.monotonic() - begun
    outbox = None if config.run_dir is not None else Outbox()
    if outbox is not None:
        box = outbox
        session.on_snapshot = lambda snapshot: box.put(_families(snapshot, config))
    return Observer(session, worker, outbox, CaptureWatch().open())


def _families(snapshot: Snapshot, config: ProbeConfig) -> Iterator[Any]:
    given = config.draft_acceptance
    # An age is told by whoever is asked for it; a worker that hangs tells nothing.
    ageless = replace(snapshot, updated_monotonic_seconds=0.0)
    return families_of([ageless], lambda _: None if given is None else constant(given))
