"""The life of the probe in one worker: attach, serve, and, on any fault, step aside."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vllm_nfp.config import ProbeConfig
from vllm_nfp.engine import support
from vllm_nfp.engine.engine import VllmProbeEngine
from vllm_nfp.engine.environment import (
    attention_backends,
    describe_environment,
    describe_model,
)
from vllm_nfp.engine.predictions import predict_rows
from vllm_nfp.engine.runners import RunnerView, step_of, view_of
from vllm_nfp.engine.versions import Mode
from vllm_nfp.faults import maybe_fail
from vllm_nfp.metrics.snapshot import LiveStep, Snapshot, State, engine_file, write_snapshot
from vllm_nfp.probe import Budget, EngineStep, PairResult, Planner, Prober
from vllm_nfp.probe.publisher import Counters, Publisher
from vllm_nfp.profile import Environment, profile_file, profile_of, save_profile
from vllm_nfp.timing import Clock, CudaClock, HostClock

logger = logging.getLogger("vllm.nfp")

MOST_LOG_BYTES = 256 << 20
"""Size at which the log of raw samples ends: at the default budget, after days of full load."""


class Session:
    """One worker's probe.

    Every entry point contains its own faults: a fault disables the probe, says why in the log
    and in the metrics, and never reaches the server.

    Args:
        config: the probe's settings.
        vllm_config: the engine's configuration.
    """

    def __init__(self, config: ProbeConfig, vllm_config: Any) -> None:
        self._config = config
        served = vllm_config.model_config.served_model_name
        self._identity = Snapshot(
            model_name=served[0] if isinstance(served, list) else str(served),
            engine=str(vllm_config.parallel_config.data_parallel_index),
            state=State.WARMING,
            overhead_budget=config.overhead_budget,
        )
        self._vllm_config = vllm_config
        self._view: RunnerView | None = None
        self._engine: VllmProbeEngine | None = None
        self._prober: Prober | None = None
        self._publisher: Publisher | None = None
        self._log: Any = None
        self._environment: Environment | None = None
        self.on_disable: Callable[[], None] = lambda: None
        """Removes the hooks; set by whoever put them in place."""
        self.on_snapshot: Callable[[Snapshot], None] = lambda _: None
        """Given all that /metrics is to show, where no file carries it."""

    @property
    def active(self) -> bool:
        """Whether probes may run."""
        return self._prober is not None

    @property
    def attached(self) -> bool:
        """Whether real steps are of interest: to probe between them, or to time them."""
        return self.active or self._identity.state is State.PASSIVE

    def attach(self, runner: Any) -> None:
        """Take up the runner after its warm-up, before the server takes requests."""
        begun = time.monotonic()
        try:
            decision = support.decide(self._vllm_config, self._config.passive)
            if decision.mode is Mode.OFF:
                self.disable(decision.reason, expected=True)
            elif decision.mode is Mode.PASSIVE:
                self._attach_passive(runner, decision.reason)
            else:
                self._attach(runner, begun)
        except Exception as error:
            self._fault("attach", error)

    def _attach_passive(self, runner: Any, reason: str) -> None:
        """Touch neither model nor KV cache; say so in the log and in the metrics."""
        maybe_fail("attach")
        self._config = replace(self._config, passive=True)
        try:
            self._view = view_of(runner)
        except TypeError as error:
            self.disable(f"{reason}, and even that is off: {error}", expected=True)
            return
        self._identity = replace(
            self._identity, state=State.PASSIVE, reason=reason, runner=self._view.name
        )
        self._write(self._identity)
        logger.warning("vllm-nfp: passive mode on the %s runner: %s", self._view.name, reason)

    def _attach(self, runner: Any, begun: float) -> None:
        maybe_fail("attach")
        view = view_of(runner)
        clock: Clock = CudaClock() if view.device.type == "cuda" else HostClock()
        with torch.inference_mode():
            engine = VllmProbeEngine(view, clock, self._config)
            engine.check_kv_cache_untouched()
            engine.prepare()
            self._view, self._engine = view, engine
            prober, publisher = self._assemble(view, engine, clock)
            maybe_fail("startup_scan")
            self._scan(prober, publisher)
        prober.outcomes["startup"] = prober.outcomes.pop("measured")
        prober.outcomes["measured"] = 0
        self._identity = replace(
            publisher.identity,
            startup_seconds=time.monotonic() - begun,
            graph_bytes=engine.graph_bytes,
        )
        publisher.identity = self._identity
        self._prober, self._publisher = prober, publisher
        publisher.start()
        logger.info(
            "vllm-nfp: probing %s on the %s runner within %g of its time; "
            "%d cells, %d of %d layers timed, ready after %.1f s with %.0f MiB of CUDA graphs",
            self._identity.model_name,
            view.name,
            self._config.overhead_budget,
            len(prober.planner.cells),
            len(engine.timed_layers),
            engine.num_layers,
            self._identity.startup_seconds,
            engine.graph_bytes / (1 << 20),
        )

    def _scan(self, prober: Prober, publisher: Publisher) -> None:
        def on_progress() -> None:
            publisher.report_progress()
            prober.planner.feedback = publisher.feedback

        self._prober = prober  # whose counters the reports of progress read
        try:
            prober.scan(self._config.startup_seconds, on_progress)
        finally:
            self._prober = None

    def _assemble(
        self, view: RunnerView, engine: VllmProbeEngine, clock: Clock
    ) -> tuple[Prober, Publisher]:
        grids, skipped = self._cells(engine)
        if not grids:
            raise RuntimeError(f"no cell can be probed: {next(iter(skipped.values()))}")
        for cell, reason in skipped.items():
            logger.info("vllm-nfp: cell %s is left out: %s", cell, reason)
        config = self._config
        wanted = max(config.min_samples, config.wanted_samples)
        planner = Planner(grids, wanted, config.seed)
        budget = Budget(config.overhead_budget)
        self._open_output(view)
        publisher = Publisher(
            config,
            replace(self._identity, runner=view.name, skipped_cells=skipped),
            self._counters,
            lambda: predict_rows(
                self._vllm_config,
                view.device,
                attention_backends(view.runner),
                list(grids),
                config.epsilons,
            ),
            self._write,
            self._record,
            None if self._config.output_dir is None else self._keep_profile,
        )
        return Prober(engine, clock, planner, budget, publisher.put, config), publisher

    def _cells(
        self, engine: VllmProbeEngine
    ) -> tuple[dict[tuple[int, int], tuple[int, ...]], dict[str, str]]:
        grids: dict[tuple[int, int], tuple[int, ...]] = {}
        skipped: dict[str, str] = {}
        for batch_size in self._config.batch_sizes:
            for context in self._config.contexts:
                reason = engine.refusal(batch_size, context)
                beyond_one = engine.positions(batch_size, context)[1:] if reason is None else ()
                if beyond_one:
                    grids[batch_size, context] = beyond_one
                else:
                    skipped[f"B={batch_size} L={context}"] = reason or "no shape has a CUDA graph"
        return grids, skipped

    def step(self, scheduler_output: Any) -> None:
        """Before a real step: maybe run a pair of probes."""
        if self._prober is None or self._view is None or self._publisher is None:
            return
        try:
            if self._publisher.fault is not None:
                self.disable(self._publisher.fault)
                return
            for request in scheduler_output.scheduled_new_reqs:
                if request.prompt_token_ids and self._engine is not None:
                    self._engine.bag.add(request.prompt_token_ids[:512])
            step = step_of(scheduler_output, self._view.decode_positions)
            if step is not None:
                self._prober.planner.feedback = self._publisher.feedback
                with torch.inference_mode():
                    self._prober.before_step(step)
        except Exception as error:
            self._fault("probe", error)

    def mark(self, begin: bool) -> None:
        """Around a real step's launch."""
        if self._prober is None:
            return
        try:
            if begin:
                self._prober.begin_step()
            else:
                self._prober.end_step()
        except Exception as error:
            self._fault("timing", error)

    def _counters(self) -> Counters:
        prober = self._prober
        if prober is None:
            return Counters({}, 0.0, 0.0, None, missing_pairs=0)
        return Counters(
            prober.outcomes,
            prober.budget.probe_seconds,
            prober.budget.overhead_ratio,
            _live(prober.last_step),
            prober.planner.missing_pairs,
        )

    def _write(self, snapshot: Snapshot) -> None:
        self.on_snapshot(snapshot)
        if self._config.run_dir is not None:
            write_snapshot(engine_file(self._config.run_dir, snapshot.engine), snapshot)
        if self._config.output_dir is not None:
            write_snapshot(engine_file(self._config.output_dir, snapshot.engine), snapshot)

    def _open_output(self, view: RunnerView) -> None:
        if self._config.output_dir is None:
            return
        folder = Path(self._config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        engine = self._identity.engine
        self._environment = describe_environment(self._vllm_config, attention_backends(view.runner))
        text = json.dumps(asdict(self._environment), indent=1)
        (folder / f"environment-{engine}.json").write_text(text, encoding="utf-8")
        self._log = (folder / f"samples-{engine}.jsonl").open("a", encoding="utf-8")

    def _keep_profile(self, snapshot: Snapshot) -> None:
        """Write the output folder's profile; where that fails the probe goes on without it."""
        if self._config.output_dir is None or self._environment is None:
            return
        try:
            model = describe_model(snapshot.model_name, self._vllm_config)
            profile = profile_of(snapshot, self._environment, model, self._config)
            save_profile(profile_file(self._config.output_dir, snapshot.engine), profile)
        except (OSError, ValueError) as error:
            logger.warning("vllm-nfp: no profile is kept any more: %s", error)
            self._environment = None

    def _record(self, result: PairResult) -> None:
        """Append a raw pair to the output folder's log, if there is one."""
        if self._log is None:
            return
        if self._log.tell() > MOST_LOG_BYTES:
            logger.warning(
                "vllm-nfp: %d MiB of raw samples are kept; no more are written",
                MOST_LOG_BYTES >> 20,
            )
            self._log.close()
            self._log = None
            return
        line = {"unix_seconds": time.time(), **asdict(result)}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def _fault(self, stage: str, error: Exception) -> None:
        logger.error("vllm-nfp: fault in stage %s", stage, exc_info=error)
        self.disable(f"fault in stage {stage}: {error!r}")

    def disable(self, reason: str, expected: bool = False) -> None:
        """Switch the probe off for good; the server goes on.

        Args:
            expected: the reason is a setting or feature, known at the start, and no fault.
        """
        log = logger.warning if expected else logger.error
        log("vllm-nfp: the probe is disabled: %s; the server goes on without it", reason)
        publisher, engine = self._publisher, self._engine
        last = self._identity
        try:
            self.on_disable()
            if publisher is not None:
                publisher.stop()
                last = publisher.full_snapshot()
            last = replace(last, state=State.DISABLED, reason=reason)
            self._write(replace(last, layer_times=()))
            self._keep_profile(last)
            if engine is not None:
                engine.close()
            if self._log is not None:
                self._log.close()
        except Exception:
            logger.exception("vllm-nfp: the probe could not tell /metrics that it is disabled")
        finally:
            self._identity = replace(last, state=State.DISABLED, reason=reason)
            self._prober = self._publisher = self._engine = self._log = None


def _live(step: EngineStep | None) -> LiveStep | None:
    return None if step is None else LiveStep(step.batch_size, step.context, step.positions)
