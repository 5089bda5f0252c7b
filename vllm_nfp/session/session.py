"""The life of the probe in one worker: attach, serve, and, on any fault, step aside."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vllm_nfp.adapter import support
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.environment import attention_backends, describe_environment, describe_model
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.layers import UnsupportedModelError
from vllm_nfp.adapter.predictions import predict_rows
from vllm_nfp.adapter.ranks import LARGE_BUDGET, Alone, Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.runners import UnknownRunnerError, view_of
from vllm_nfp.adapter.steps import StepLimits, limits_of, requests_wait, step_of
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.faults import maybe_fail, maybe_no_space
from vllm_nfp.probe.batch import CellDoesNotFitError
from vllm_nfp.probe.engine import VllmProbeEngine
from vllm_nfp.probe.memory import host_bytes, is_out_of_memory
from vllm_nfp.results.profile import Environment, profile_file, profile_of, save_profile
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.results.snapshot import (
    LiveStep,
    PredictionRow,
    Snapshot,
    State,
    engine_file,
    write_snapshot,
)
from vllm_nfp.schedule import Budget, Planner, Prober
from vllm_nfp.session.publisher import Counters, Publisher
from vllm_nfp.timing import Clock, CudaClock, HostClock, Sampler, StepTimer
from vllm_nfp.typed_json import encode, open_to_append, write_whole
from vllm_nfp.types import EngineStep, PairResult

logger = logging.getLogger("vllm.nfp")

PASSIVE_IDLE_SECONDS = 60.0
"""Time between two looks at an idle server where there is nothing to do."""
LONGEST_WRITE_SECONDS = 1.0
"""A write that takes longer hangs; nobody waits for it any more."""
MOST_LOG_BYTES = 256 << 20
"""Size at which the log of raw samples ends: at the default budget, after days of full load."""


class NothingToProbeError(RuntimeError):
    """No cell of the settings can be probed here; the message says why of one."""


def cannot_probe(error: Exception) -> bool:
    """Whether it says that this model or machine cannot be probed, which is no fault."""
    known = (
        NothingToProbeError,
        UnsupportedModelError,
        CellDoesNotFitError,
        UnknownVllmError,
    )
    return isinstance(error, known) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


class Session:
    """One worker's probe.

    Every entry point contains its own faults: a fault disables the probe, says why in the log
    and in the metrics, and never reaches the server.

    Args:
        config: the probe's settings.
        vllm_config: the engine's configuration.
        now: seconds of a monotonic clock.
        ranks: those that probe together.
    """

    def __init__(
        self,
        config: ProbeConfig,
        vllm_config: Any,
        now: Callable[[], float] = time.monotonic,
        ranks: int = 1,
    ) -> None:
        self._config = config
        self._graphs = config.graph_limits(ranks)
        self._now = now
        self._identity = Snapshot(
            model_name=support.served_name(vllm_config),
            engine=str(vllm_config.parallel_config.data_parallel_index),
            state=State.WARMING,
            overhead_budget=0.0 if config.passive else config.overhead_budget,
        )
        self._vllm_config = vllm_config
        self._view: RunnerView | None = None
        self._engine: VllmProbeEngine | None = None
        self._prober: Prober | None = None
        self._timer: StepTimer | None = None
        self._limits: StepLimits | None = None
        # Where much is to be measured each step may have a pair ahead of it.
        generous = config.overhead_budget > LARGE_BUDGET and not config.passive
        self._sampler = Sampler(one_in=1) if generous else Sampler()
        self._stands_for = 0
        """Steps that the step which runs now stands for as it is timed; 0: it is not timed."""
        self._waits = False
        """There was a sign at the last look that requests wait."""
        self._handing_on = threading.Lock()
        self._ended = False
        self._last_step: EngineStep | None = None
        self._unwritten: set[str] = set()
        self._run_folder = None if config.run_dir is None else RunFolder(config.run_dir)
        self._publisher: Publisher | None = None
        self._log: Any = None
        self._log_path: Path | None = None
        self._environment: Environment | None = None
        self._profile_fails = False
        self._ranks: Ranks = Alone()
        self._resident = 0
        self._begun: float | None = None
        """When attach() began; None before it and once it has ended."""
        self.spent_seconds = 0.0
        """Time that the start had waited for the probe before attach(), such as for its imports."""
        self.on_disable: Callable[[], None] = lambda: None
        """Removes the hooks; set by whoever put them in place."""
        self.on_snapshot: Callable[[Snapshot], None] = lambda _: None
        """Given all that /metrics is to show, where no file carries it."""

    @property
    def active(self) -> bool:
        """Whether steps are timed, and probes may run."""
        return self._timer is not None

    def attach(self, runner: Any, place: GraphPlace | None = None) -> None:
        """Take up the runner after its warm-up, before the server takes requests.

        Args:
            place: memory pool and stream of vLLM's own CUDA graphs, if there are any.
        """
        self._begun = begun = self._now()
        try:
            decision = support.decide(self._vllm_config, self._config.passive)
            if decision.mode is Mode.ACTIVE:
                self._attach(runner, begun, place)
            elif not support.reports(self._vllm_config.parallel_config):
                return  # one rank of the engine tells of all
            elif decision.mode is Mode.OFF:
                self.disable(decision.reason, expected=True)
            elif self._turn_passive(runner, decision.reason):
                self._attach(runner, begun, place)
        except UnknownRunnerError as error:
            self.disable(str(error), expected=True)
        except Exception as error:
            if not cannot_probe(error):
                self._fault("attach", error)
            elif support.reports(self._vllm_config.parallel_config):
                self._fall_back(runner, begun, str(error))
        finally:
            self._begun = None

    def _fall_back(self, runner: Any, begun: float, reason: str) -> None:
        """This model or machine cannot be probed: give up what a probe needs, and time steps."""
        try:
            engine, self._engine, self._prober = self._engine, None, None
            if engine is not None:
                engine.close()
            if self._turn_passive(runner, reason):
                self._attach(runner, begun, None)
        except Exception as error:
            self._fault("attach", error)

    def _turn_passive(self, runner: Any, reason: str) -> bool:
        """Settle for timing real steps, and say why; False where even that cannot be done."""
        try:
            view = view_of(runner)
        except UnknownRunnerError as error:
            self.disable(f"{reason}, and even that is off: {error}", expected=True)
            return False
        tell = logger.info if self._config.passive else logger.warning
        tell("vllm-nfp: passive mode on the %s runner: %s", view.name, reason)
        self._config = replace(self._config, passive=True)
        self._sampler = Sampler()  # a pair ahead of every step is not to come
        self._identity = replace(
            self._identity, state=State.PASSIVE, reason=reason, overhead_budget=0.0
        )
        return True

    def _attach(self, runner: Any, begun: float, place: GraphPlace | None) -> None:
        maybe_fail("attach")
        if not self._graphs.shared_pool:
            place = None
        view, self._resident = view_of(runner), host_bytes()
        clock: Clock = CudaClock() if view.device.type == "cuda" else HostClock()
        self._view, self._limits = view, limits_of(self._vllm_config)
        if self._config.passive:
            publisher = self._publisher_of(view, list(self._configured_cells()), {})
            self._publish(view, publisher, StepTimer(clock))
            return
        with torch.inference_mode():
            engine = VllmProbeEngine(view, clock, self._config, self._graphs, place, self._ranks)
            checking = self._now()
            engine.check_kv_cache_untouched()
            took = self._now() - checking  # as long as the second check will
            engine.prepare(lambda: self._now() + took >= begun + self._graphs.capture_seconds)
            seconds = self._graphs.capture_seconds + self._config.startup_seconds
            if self._ranks.all(2 * took <= seconds, "is there time for the proof"):
                engine.check_kv_cache_untouched()
            else:
                logger.warning(
                    "vllm-nfp: the KV cache is too large to sum it up again within capture_seconds "
                    "+ startup_seconds (%.1f s each time): of what was captured, single runs are "
                    "proven alone",
                    took,
                )
            self._engine = engine
            self._begin(view, engine, clock, begun)

    def _begin(self, view: RunnerView, engine: VllmProbeEngine, clock: Clock, begun: float) -> None:
        """Scan within the time that the settings allow in all, and begin to publish."""
        config = self._config
        prober, publisher = self._assemble(view, engine, clock)
        maybe_fail("startup_scan")
        end = begun + self._graphs.capture_seconds + config.startup_seconds
        self._scan(prober, publisher, max(0.0, min(config.startup_seconds, end - self._now())))
        engine.give_back_cache()
        self._prober = prober
        self._publish(view, publisher, prober.timer)

    def _publish(self, view: RunnerView, publisher: Publisher, timer: StepTimer) -> None:
        publisher.predict()
        self._note_start(publisher)
        self._publisher, self._timer = publisher, timer
        publisher.start()
        self._note_start(publisher)  # now with the time of the first write
        self._tell_start(view)

    def _note_start(self, publisher: Publisher) -> None:
        """Tell what the start has cost until now, from the next snapshot on."""
        self._identity = replace(
            publisher.identity,
            startup_seconds=self._startup_seconds(),
            host_bytes=max(0, host_bytes() - self._resident),
        )
        publisher.identity = self._identity

    def _startup_seconds(self) -> float:
        """Time that the start has waited for the probe until now."""
        return self.spent_seconds + (0.0 if self._begun is None else self._now() - self._begun)

    def _tell_start(self, view: RunnerView) -> None:
        identity, engine, prober = self._identity, self._engine, self._prober
        if engine is None or prober is None:
            logger.info(
                "vllm-nfp: timing the steps of %s on the %s runner, without probes",
                identity.model_name,
                view.name,
            )
            return
        logger.info(
            "vllm-nfp: probing %s on the %s runner within %g of its time and %g of its steps; "
            "%d cells, %d of %d layers timed, ready after %.1f s with %.0f MiB of GPU memory%s",
            identity.model_name,
            view.name,
            self._config.overhead_budget,
            self._config.delayed_steps,
            len(prober.planner.cells),
            len(engine.timed_layers),
            engine.num_layers,
            identity.startup_seconds,
            engine.graph_bytes / (1 << 20),
            " beside vLLM's own CUDA graphs" if engine.shares_graph_memory else "",
        )

    def _configured_cells(self) -> Iterator[tuple[int, int]]:
        for batch_size in self._config.batch_sizes:
            for context in self._config.contexts:
                yield batch_size, context

    def _scan(self, prober: Prober, publisher: Publisher, seconds: float) -> None:
        def on_progress() -> None:
            publisher.report_progress()
            prober.planner.feedback = publisher.feedback

        self._prober = prober  # whose counters the reports of progress read
        try:
            prober.scan(seconds, on_progress)
        finally:
            self._prober = None

    def _assemble(
        self, view: RunnerView, engine: VllmProbeEngine, clock: Clock
    ) -> tuple[Prober, Publisher]:
        grids, skipped = self._cells(engine)
        if not grids:
            raise NothingToProbeError(f"no cell can be probed: {next(iter(skipped.values()))}")
        for cell, reason in skipped.items():
            logger.info("vllm-nfp: cell %s is left out: %s", cell, reason)
        config = self._config
        wanted = max(config.min_samples, config.wanted_samples)
        planner = Planner(grids, wanted, config.seed)
        budget = Budget(config.overhead_budget, config.delayed_steps)
        publisher = self._publisher_of(view, list(grids), skipped)
        return self._prober_of(engine, clock, planner, budget, publisher.put), publisher

    def _prober_of(
        self,
        engine: VllmProbeEngine,
        clock: Clock,
        planner: Planner,
        budget: Budget,
        sink: Callable[[PairResult], None],
    ) -> Prober:
        return Prober(engine, clock, planner, budget, sink, self._config, self._now)

    def _publisher_of(
        self, view: RunnerView, cells: list[tuple[int, int]], skipped: dict[str, str]
    ) -> Publisher:
        self._open_output(view)
        sender = CurveSender(self._config, self._identity.engine)
        return Publisher(
            self._config,
            replace(self._identity, runner=view.name, skipped_cells=skipped),
            self._counters,
            lambda: self._predict(view, cells),
            self._write,
            self._record,
            None if self._config.output_dir is None else self._keep_profile,
            sender.send if self._config.draft_control else None,
        )

    def _predict(self, view: RunnerView, cells: list[tuple[int, int]]) -> tuple[PredictionRow, ...]:
        epsilons = self._config.epsilons
        try:
            unknown = support.unpredicted(self._vllm_config)
            if unknown is not None:
                logger.info("vllm-nfp: no prediction: the predictor knows nothing of %s", unknown)
                return ()
            backends = attention_backends(view.runner)
            return predict_rows(self._vllm_config, view.device, backends, cells, epsilons)
        except Exception as error:
            if not self._config.passive:
                raise
            # An unknown vLLM may keep its configuration elsewhere; timing needs none of it.
            logger.info("vllm-nfp: no prediction: %r", error)
            return ()

    def _cells(
        self, engine: VllmProbeEngine
    ) -> tuple[dict[tuple[int, int], tuple[int, ...]], dict[str, str]]:
        grids: dict[tuple[int, int], tuple[int, ...]] = {}
        skipped: dict[str, str] = {}
        for batch_size, context in self._configured_cells():
            reason = engine.refusal(batch_size, context)
            beyond_one = engine.positions(batch_size, context)[1:] if reason is None else ()
            if beyond_one:
                grids[batch_size, context] = beyond_one
            else:
                skipped[f"B={batch_size} L={context}"] = reason or "no shape has a CUDA graph"
        return grids, skipped

    def step(self, scheduler_output: Any) -> None:
        """Before a real step: say what it is, and maybe run a pair of probes."""
        timer, prober = self._timer, self._prober
        if timer is None:
            return
        try:
            self._stands_for = self._looks(scheduler_output)
            if self._stands_for:
                self._look(timer, prober, scheduler_output)
            elif prober is not None:
                prober.serving()
        except Exception as error:
            self._fault("probe", error)

    def _looks(self, scheduler_output: Any) -> int:
        """Steps that a look at this one stands for; 0 if it is not looked at.

        A step in which requests may wait is always looked at. It stands for itself, and the sampler
        does not count it: chance alone chooses among the others, so that these stand for all of
        them. This runs before every step.
        """
        if not scheduler_output.num_scheduled_tokens:
            return 0
        limits = self._limits
        if limits is not None and requests_wait(scheduler_output, limits):
            self._waits = True
            return 1
        if self._sampler.look():
            self._waits = False
            return self._sampler.stands_for
        return 0

    def _look(self, timer: StepTimer, prober: Prober | None, scheduler_output: Any) -> None:
        view, limits, publisher = self._view, self._limits, self._publisher
        if view is None or limits is None or publisher is None:
            return
        if publisher.fault is not None:
            self.disable(publisher.fault)
            return
        step = step_of(scheduler_output, view.decode_positions, limits, self._waits)
        if step is None:
            return
        if prober is None:
            self._only_time(timer, step)
            return
        self._take_tokens(scheduler_output)
        prober.planner.feedback = publisher.feedback
        prober.before_step(step, self._stands_for)

    def _only_time(self, timer: StepTimer, step: EngineStep) -> None:
        timer.settle()
        timer.describe(step.batch_size, step.context, step.positions, step.decode, self._stands_for)
        if step.decode:
            self._last_step = step

    def _take_tokens(self, scheduler_output: Any) -> None:
        new = scheduler_output.scheduled_new_reqs
        if not new or self._engine is None:
            return
        with torch.inference_mode():  # the bag was made in it
            for request in new:
                if request.prompt_token_ids:
                    self._engine.bag.add(request.prompt_token_ids[:512])

    def idle(self) -> float:
        """No request is there: maybe run a pair of probes; seconds until the next call."""
        prober, publisher = self._prober, self._publisher
        if prober is None or publisher is None:
            return PASSIVE_IDLE_SECONDS
        try:
            prober.planner.feedback = publisher.feedback
            return prober.idle()
        except Exception as error:
            self._fault("idle probe", error)
            return PASSIVE_IDLE_SECONDS

    def mark(self, begin: bool) -> None:
        """Around a real step's launch."""
        timer = self._timer
        if timer is None or not self._stands_for:
            return
        try:
            if begin:
                timer.begin()
            else:
                timer.end()
        except Exception as error:
            self._fault("timing", error)

    def _counters(self) -> Counters:
        prober, engine, timer = self._prober, self._engine, self._timer
        if prober is None:
            times = None if timer is None else timer.times
            return Counters({}, 0.0, 0.0, _live(self._last_step), 0, step_times=times)
        return Counters(
            prober.outcomes,
            prober.budget.probe_seconds,
            prober.budget.overhead_ratio,
            _live(prober.last_step),
            prober.planner.missing_pairs,
            prober.idle_seconds,
            prober.budget.step_ratio,
            prober.budget.slack,
            0 if engine is None else engine.graph_bytes,
            prober.timer.times,
        )

    def _write(self, snapshot: Snapshot) -> None:
        """Hand the results on; a full disk leaves the old ones, whose age /metrics tells."""
        with self._turn_of(snapshot) as granted:
            if granted:
                self._hand_on(snapshot)

    @contextmanager
    def _turn_of(self, snapshot: Snapshot) -> Iterator[bool]:
        """One thread hands on at a time, and none what is older than the news of the end.

        While a write hangs, the news of the end waits for it, in a thread that nobody waits for.
        """
        last = snapshot.state is State.DISABLED
        granted = self._handing_on.acquire(timeout=-1 if last else LONGEST_WRITE_SECONDS)
        try:
            yield granted and (last or not self._ended)
        finally:
            if granted:
                self._handing_on.release()

    def _hand_on(self, snapshot: Snapshot) -> None:
        self.on_snapshot(snapshot)
        for folder in (self._config.run_dir, self._config.output_dir):
            if folder is None:
                continue
            try:
                self._write_to(folder, snapshot)
            except OSError as error:
                if folder not in self._unwritten:
                    logger.warning("vllm-nfp: results are not written for now: %s", error)
                    self._unwritten.add(folder)
            else:
                if folder in self._unwritten:
                    logger.info("vllm-nfp: results are written to %s again", folder)
                    self._unwritten.remove(folder)

    def _write_to(self, folder: str, snapshot: Snapshot) -> None:
        path = engine_file(folder, snapshot.engine)
        if folder != self._config.output_dir and self._run_folder is not None:
            self._run_folder.write(path.name, encode(snapshot))
            return
        maybe_no_space()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_snapshot(path, snapshot)

    def _open_output(self, view: RunnerView) -> None:
        if self._config.output_dir is None:
            return
        self._environment = describe_environment(self._vllm_config, attention_backends(view.runner))
        try:
            self._open_log(Path(self._config.output_dir), self._environment)
        except OSError as error:  # the disk is full, say: results and /metrics do without it
            logger.warning("vllm-nfp: no raw samples are written: %s", error)

    def _open_log(self, folder: Path, environment: Environment | None) -> None:
        """Open the log of raw samples, beside what they are measured on."""
        folder.mkdir(parents=True, exist_ok=True)
        engine = self._identity.engine
        if environment is not None:
            text = json.dumps(asdict(environment), indent=1)
            write_whole(folder / f"environment-{engine}.json", text)
        self._log_path = folder / f"samples-{engine}.jsonl"
        self._log = open_to_append(self._log_path)

    def _begin_removed_log_again(self) -> None:
        """Where the log, or the whole output folder, was removed, samples would go nowhere."""
        if self._log_path is None or self._log_path.exists():
            return
        self._log.close()
        self._open_log(self._log_path.parent, self._environment)
        logger.warning("vllm-nfp: %s was removed; it has been begun again", self._log_path)

    def _keep_profile(self, snapshot: Snapshot) -> None:
        """Write the output folder's profile; where that fails it is tried again the next time."""
        if self._config.output_dir is None or self._environment is None:
            return
        try:
            model = describe_model(snapshot.model_name, self._vllm_config)
            profile = profile_of(snapshot, self._environment, model, self._config)
            with self._turn_of(snapshot) as granted:
                if granted:
                    Path(self._config.output_dir).mkdir(parents=True, exist_ok=True)
                    save_profile(profile_file(self._config.output_dir, snapshot.engine), profile)
                    self._profile_fails = False
        except (OSError, ValueError) as error:
            if not self._profile_fails:
                logger.warning("vllm-nfp: the profile is not kept for now: %s", error)
            self._profile_fails = True

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
        line = f'{{"unix_seconds": {time.time()!r}, {encode(result)[1:]}\n'
        try:
            maybe_no_space()
            self._begin_removed_log_again()
            self._log.write(line)
            self._log.flush()
        except OSError as error:
            logger.warning("vllm-nfp: no more raw samples are written: %s", error)
            log, self._log = self._log, None
            with suppress(OSError):  # closing writes what is left
                log.close()

    def _tell_end(self, last: Snapshot) -> None:
        """Write the last news from another thread: the serving one waits a moment at most."""

        def write() -> None:
            try:
                self._write(replace(last, layer_times=()))
                self._keep_profile(last)
            except Exception:
                logger.exception("vllm-nfp: the probe could not tell /metrics that it is disabled")

        thread = threading.Thread(target=write, name="nfp-end", daemon=True)
        thread.start()
        thread.join(LONGEST_WRITE_SECONDS)

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
        if self._begun is not None:
            last = replace(last, startup_seconds=self._startup_seconds())
        self._ended = True
        try:
            self.on_disable()
            if publisher is not None:
                publisher.stop()
                last = publisher.full_snapshot()
            last = replace(last, state=State.DISABLED, reason=reason)
            self._tell_end(last)
            if engine is not None:
                engine.close()
            if self._log is not None:
                with suppress(OSError):
                    self._log.close()
        except Exception:
            logger.exception("vllm-nfp: the probe could not tell /metrics that it is disabled")
        finally:
            self._identity = replace(last, state=State.DISABLED, reason=reason)
            self._prober = self._publisher = self._engine = self._log = self._timer = None


def _live(step: EngineStep | None) -> LiveStep | None:
    return None if step is None else LiveStep(step.batch_size, step.context, step.positions)
