"""The live controller of draft lengths in vLLM's engine core.

It watches the scheduler's steps and writes ``Scheduler.dynamic_sd_lookup``, the list by batch size
that ``schedule()`` reads for the number of drafts to propose. A length reaches the workers within
the scheduler's output, so that all ranks follow it alike, and a draft length of 0 goes the same
way as any other: the proposer still takes the step in, and the drafts of the step before are
verified or dropped by vLLM itself.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.draft_lengths import METHODS, candidate_lengths
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.support import served_name
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import ConfigError, ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveReceiver
from vllm_nfp.draft.curve_set import CurveSet
from vllm_nfp.draft.live import Controller, Settings, StepObservation
from vllm_nfp.draft.live.steps import context_cell
from vllm_nfp.faults import maybe_fail
from vllm_nfp.results.control import (
    MOST_CELLS,
    ControlSnapshot,
    ControlState,
    DraftChoice,
    DraftStepLatency,
    control_file,
)
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.strict_json import encode

logger = logging.getLogger("vllm.nfp")

CELLS_AT_A_TIME = 8
"""Cells that one step adds to a report: some 0.1 ms."""
MOST_UNDER_WAY = 256
"""Steps that are planned and not finished; vLLM has one or two. Bounds the memory."""
LONGEST_WRITE_SECONDS = 1.0
"""A write that takes longer hangs; the last news is then written beside it."""


def install(patches: PatchSet, config: ProbeConfig) -> None:
    """Give every scheduler that this process makes a controller."""
    from vllm.v1.core.sched.scheduler import Scheduler

    def init(original: Any) -> Any:
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            original(self, *args, **kwargs)
            attach(self, config)

        return wrapped

    patches.wrap(Scheduler, "__init__", init)


def attach(scheduler: Any, config: ProbeConfig) -> DraftControl | None:
    """Put a scheduler under control; None, with the reason in log and metrics, if it cannot be."""
    try:
        control = DraftControl(scheduler, config)
    except Exception:  # a vLLM that keeps its settings elsewhere: without them nothing is reported
        logger.exception("vllm-nfp: the draft control is disabled: fault before it began")
        return None
    try:
        maybe_fail("draft_control")
        reason = _unknown_release() or refusal(scheduler)
        if reason is None:
            control.begin()
            return control
        control.disable(reason, expected=True)
    except ConfigError as error:
        control.disable(str(error), expected=True)
    except Exception as error:
        control.fault(error)
    return None


def _unknown_release() -> str | None:
    release = versions.decide(versions.installed_version())
    known = release.mode is Mode.ACTIVE
    return None if known else f"{release.reason}; nor are draft lengths controlled there"


def refusal(scheduler: Any) -> str | None:
    """Why this scheduler's draft lengths cannot be controlled; None if they can."""
    config = scheduler.vllm_config
    speculation = config.speculative_config
    if speculation is None:
        return "the server drafts nothing: add --speculative-config"
    if not hasattr(scheduler, "dynamic_sd_lookup"):
        return "this vLLM takes no draft lengths by batch size: upgrade it"
    if scheduler.dynamic_sd_lookup is None:
        return (
            "no table of draft lengths is configured, or vLLM has dropped it (as under data "
            "parallelism): give num_speculative_tokens_per_batch_size in --speculative-config"
        )
    if speculation.method not in METHODS:
        return (
            f"the draft method {speculation.method!r} is not known to follow a length that "
            f"changes: known are {', '.join(METHODS)}"
        )
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline parallelism is not supported: several steps are under way at once"
    return None


def _known_method(speculation: Any) -> str:
    """How drafts are made; empty where it is not known, so that it makes no strange label."""
    method = getattr(speculation, "method", None)
    return method if method in METHODS else ""


def widest_graph(vllm_config: Any) -> int | None:
    """Tokens of the widest step that vLLM has captured; None if it captures none."""
    compilation = getattr(vllm_config, "compilation_config", None)
    sizes = getattr(compilation, "cudagraph_capture_sizes", None)
    return max(sizes) if sizes and getattr(compilation, "cudagraph_mode", None) else None


@dataclass(slots=True)
class _Scheduled:
    """A step under way."""

    output: Any
    asked: int
    """Drafts that were asked for when the drafts of this step were made."""
    asks: int
    """Drafts that this step asks for, to be verified in the next."""


class DraftControl:
    """One scheduler's draft lengths.

    Every entry point contains its own faults: a fault puts the configured table back, takes the
    hooks out, says why, and never reaches the server.

    Args:
        scheduler: vLLM's, with its configured table in ``dynamic_sd_lookup``.
        config: the settings.
    """

    def __init__(self, scheduler: Any, config: ProbeConfig) -> None:
        self._scheduler = scheduler
        self._config = config
        self._static = getattr(scheduler, "dynamic_sd_lookup", None)
        vllm_config = scheduler.vllm_config
        self._identity = ControlSnapshot(
            model_name=served_name(vllm_config),
            engine=str(vllm_config.parallel_config.data_parallel_index),
            state=ControlState.LEARNING,
            method=_known_method(vllm_config.speculative_config),
        )
        self._patches = PatchSet()
        self._controller: Controller | None = None
        self._reporter: _Reporter | None = None
        self._under_way: deque[_Scheduled] = deque(maxlen=MOST_UNDER_WAY)
        self._asked_before: int | None = None
        self._last_output: float | None = None
        self._last_length: int | None = None
        self._applied: tuple[int, int] | None = None
        self._next_report = 0.0
        self._report_under_way: Iterator[ControlSnapshot | None] | None = None

    @property
    def controller(self) -> Controller | None:
        """The controller; None once it is disabled."""
        return self._controller

    @property
    def last_length(self) -> int | None:
        """Draft length of the last decode step; None before the first."""
        return self._last_length

    def pause(self) -> None:
        """Hand back to the configured table, keeping what was learned."""
        self._patches.restore()
        self._under_way.clear()
        self._last_output = self._applied = self._asked_before = None
        self._scheduler.dynamic_sd_lookup = self._static

    def resume(self) -> None:
        """Take over again, unless disabled."""
        if self._controller is not None:
            self._hook()

    def begin(self) -> None:
        """Take over.

        Raises:
            ConfigError: if draft_lengths does not fit the server, or vLLM's scheduler is another.
        """
        assert self._static is not None, "refusal() has looked"
        longest = int(self._scheduler.num_spec_tokens)
        lengths = candidate_lengths(self._config, longest, self._static[1:])
        settings = Settings(
            lengths,
            self._config.draft_min_gain,
            self._config.draft_trial_loss,
            widest_graph(self._scheduler.vllm_config),
        )
        self._controller = Controller(self._static, settings)
        self._reporter = _Reporter(self._config, self._identity.engine)
        self._hook()
        self._report(time.perf_counter())
        logger.info(
            "vllm-nfp: draft lengths are chosen live from %s; the configured ones stay in force "
            "until others are measured to be faster",
            list(lengths),
        )

    def _hook(self) -> None:
        def schedule(original: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                try:
                    self.scheduled(output)
                except Exception as error:
                    self.fault(error)
                return output

            return wrapped

        def update_from_output(original: Any) -> Any:
            def wrapped(output: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
                try:
                    # Before vLLM cuts the tokens at a stop.
                    self.finished(output, model_output, time.perf_counter())
                except Exception as error:
                    self.fault(error)
                return original(output, model_output, *args, **kwargs)

            return wrapped

        hooks = {"schedule": schedule, "update_from_output": update_from_output}
        for name, make in hooks.items():
            if not self._patches.wrap(self._scheduler, name, make):
                raise ConfigError(f"this vLLM's scheduler has no {name} to follow its steps by")

    def scheduled(self, output: Any) -> None:
        """A step was planned: the drafts that it verifies were asked for by the one before."""
        if self._controller is None or not output.num_scheduled_tokens:
            return
        before, asks = self._asked_before, int(output.num_spec_tokens_to_schedule)
        self._asked_before = asks
        if before is not None:  # who planned the step before is not known otherwise
            self._under_way.append(_Scheduled(output, before, asks))

    def finished(self, output: Any, model_output: Any, now: float) -> None:
        """A step's tokens are there."""
        if self._controller is None or not output.num_scheduled_tokens:
            return
        step = self._take(output)
        before, self._last_output = self._last_output, now
        observed = None if step is None else observe(step, model_output, before, now)
        if observed is not None:
            self._last_length = observed.draft_length
            if self._controller.observe(observed, now):
                self._controller.decide(observed.batch_size, observed.context, now)
            self._apply(context_cell(observed.context))
        elif step is not None and self._applied is not None:
            _, context = self._applied
            self._controller.passed(len(output.num_scheduled_tokens), context, step.asked)
            self._apply(context)
        if not self._scheduler.running:
            self._last_output = None  # what follows is no step after a step
        if self._report_under_way is not None or now >= self._next_report:
            self._report(now)

    def _take(self, output: Any) -> _Scheduled | None:
        if not any(step.output is output for step in self._under_way):
            return None  # planned before the hooks were in place
        while (step := self._under_way.popleft()).output is not output:
            pass
        return step

    def _apply(self, context: int) -> None:
        """Write the table of a context's cell where it has changed."""
        assert self._controller is not None
        key = (self._controller.version, context)
        if key != self._applied:
            self._applied = key
            self._scheduler.dynamic_sd_lookup = self._controller.table(context)

    def _report(self, now: float) -> None:
        """Begin a report, or add a piece to it: each step of a busy server does a little."""
        controller, reporter = self._controller, self._reporter
        if controller is None or reporter is None:
            return
        if self._report_under_way is None:
            self._next_report = now + self._config.publish_seconds
            if reporter.curves is not None:
                controller.set_curves(reporter.curves)
            self._report_under_way = self._pieces(controller)
        for snapshot in self._report_under_way:
            if snapshot is not None:
                self._report_under_way = None
                reporter.put(snapshot)
                return
            if self._scheduler.running:
                return

    def _pieces(self, controller: Controller) -> Iterator[ControlSnapshot | None]:
        """A report, after a None for each piece of it."""
        rows: list[DraftChoice] = []
        times: list[DraftStepLatency] = []
        for number, key in enumerate(controller.latest_cells(MOST_CELLS), 1):
            row = controller.row(key)
            if row is not None:
                rows.append(
                    DraftChoice(
                        row.batch_size,
                        row.context,
                        row.draft_length,
                        row.static_length,
                        str(row.reason),
                        row.gain,
                    )
                )
                times += (
                    DraftStepLatency(*key, length, samples, median)
                    for length, samples, median in controller.times(key)
                )
            if number % CELLS_AT_A_TIME == 0:
                yield None
        yield self._snapshot(controller, tuple(rows), tuple(times))

    def _snapshot(
        self,
        controller: Controller,
        rows: tuple[DraftChoice, ...],
        times: tuple[DraftStepLatency, ...],
    ) -> ControlSnapshot:
        acceptance = controller.acceptance
        return replace(
            self._identity,
            state=ControlState.LEARNING if acceptance is None else ControlState.DECIDING,
            live_draft_length=self._last_length,
            lengths=controller.lengths,
            rows=rows,
            times=times,
            acceptance=() if acceptance is None else acceptance.per_position,
            decisions={str(reason): count for reason, count in controller.decisions.items()},
            draft_seconds={str(b): s for b, s in controller.draft_seconds.items()},
            steps=controller.steps,
            trial_steps=controller.trial_steps,
        )

    def fault(self, error: Exception) -> None:
        """Step aside after an exception."""
        logger.error("vllm-nfp: fault in the draft control", exc_info=error)
        self.disable(f"fault: {error!r}")

    def disable(self, reason: str, expected: bool = False) -> None:
        """Hand back to the configured table, for good.

        Args:
            expected: the reason is a setting or feature, known at the start, and no fault.
        """
        log = logger.warning if expected else logger.error
        log(
            "vllm-nfp: the draft control is disabled: %s; the configured draft lengths are in "
            "force",
            reason,
        )
        controller, self._controller = self._controller, None
        try:
            if controller is not None:
                self._scheduler.dynamic_sd_lookup = self._static
            self._patches.restore()
            if self._reporter is None:
                self._reporter = _Reporter(self._config, self._identity.engine)
            self._reporter.end(replace(self._identity, state=ControlState.DISABLED, reason=reason))
        except Exception:
            logger.exception("vllm-nfp: /metrics will not tell that the draft control is disabled")


def observe(
    step: _Scheduled, model_output: Any, before: float | None, now: float
) -> StepObservation | None:
    """A step as the controller takes it in; None if it is no pure decode step.

    A draft that the proposer did not find counts as not accepted, so that the tokens and the time
    of the steps in which K were asked for are what K gives.
    """
    output, length = step.output, step.asked
    drafts = output.scheduled_spec_decode_tokens
    counts = output.num_scheduled_tokens
    sampled = model_output.sampled_token_ids
    batch_size = len(counts)
    drafted = sum(map(len, drafts.values())) if drafts else 0
    if output.scheduled_new_reqs or output.total_num_scheduled_tokens != batch_size + drafted:
        return None
    if not sampled or len(sampled) != batch_size:
        return None
    tokens = Counter(map(len, sampled))
    if tokens.get(0) or (drafts and max(map(len, drafts.values())) > length):
        return None  # a prompt's chunk, or drafts from before the last change
    computed = output.scheduled_cached_reqs.num_computed_tokens
    accepted = tuple(
        sum(count for n, count in tokens.items() if n > place) for place in range(1, length + 1)
    )
    # A step that makes another number of drafts than it verifies belongs to neither length.
    timed = before is not None and step.asks == length
    return StepObservation(
        batch_size,
        round(sum(computed) / max(1, len(computed))),
        length,
        now - before if timed and before is not None else None,
        accepted,
    )


def hand_over(folder: RunFolder, name: str, snapshot: ControlSnapshot) -> None:
    """Replace the file whole, in a folder that is made again where it is gone.

    Raises:
        OSError: if it cannot be written.
    """
    folder.write(name, encode(snapshot))


class _Reporter:
    """Writes what is reported and looks for the probe's curves, in a thread of its own.

    Only the latest report waits to be written: while a write hangs, as on a dead disk, the ones
    before are forgotten. The last one always gets out: the thread writes it whenever it comes back,
    and another thread does beside it if that takes too long.
    """

    def __init__(self, config: ProbeConfig, engine: str) -> None:
        self._run_dir = config.run_dir
        self._folder = None if config.run_dir is None else RunFolder(config.run_dir)
        self._engine = engine
        self._receiver = CurveReceiver(config, engine)
        self._latest: ControlSnapshot | None = None
        self._ended = False
        self._warned = False
        # Holds two words at most. The serving thread takes no lock that this one may hold.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = self._start(self._run)

    @property
    def curves(self) -> CurveSet | None:
        """The probe's latest curves of the whole step; None before the first."""
        return self._receiver.latest

    def put(self, snapshot: ControlSnapshot) -> None:
        """Hand a report over, in place of one that was not written yet; returns at once."""
        if not self._ended:
            self._latest = snapshot
            if self._wake.empty():
                self._wake.put(None)

    def end(self, snapshot: ControlSnapshot) -> None:
        """Hand the last report over, and end the thread once it is written; returns at once."""
        self._latest, self._ended = snapshot, True
        self._wake.put(None)
        self._start(self._end_beside)

    def _start(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name="nfp-draft-control", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            self._wake.get()
            ended = self._ended  # the last report was there before
            self._write()
            if ended:
                return
            self._receiver.look()

    def _end_beside(self) -> None:
        self._thread.join(LONGEST_WRITE_SECONDS)
        if self._thread.is_alive():
            self._write()

    def _write(self) -> None:
        snapshot, run_dir, folder = self._latest, self._run_dir, self._folder
        if snapshot is None or run_dir is None or folder is None:
            return
        try:
            hand_over(folder, control_file(run_dir, self._engine).name, snapshot)
            self._warned = False
        except Exception as error:
            if not self._warned:
                self._warned = True
                logger.warning("vllm-nfp: the draft control cannot report for now: %s", error)
