"""The life of the probe in one worker: start, serve, and end on any fault."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.lost_device import device_is_lost
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.verification import AdaptiveVerification
from vllm_nfp.give_way import serving
from vllm_nfp.session.agreement import keep_prompts, note_blocks
from vllm_nfp.session.end import end
from vllm_nfp.session.output import Output
from vllm_nfp.session.start import StaysOffError, scan_at_last, start
from vllm_nfp.session.started import Started, Waiting
from vllm_nfp.session.timing_only import NOTHING_TO_DO_SECONDS
from vllm_nfp.session.verification import follow_verification
from vllm_nfp.session.worker import Worker
from vllm_nfp.types import Shape

logger = logging.getLogger("vllm.nfp")

GOES_ON = "the server continues without it"
GPU_IS_LOST = (
    "the GPU refuses all further work of this process, so that the server ends: start it again "
    "without --nfp-probe, and report the lines above"
)
Starts: TypeAlias = Callable[[Worker, Any, GraphPlace | None, Output], Started | Waiting | None]


class Session:
    """One worker's probe; what vLLM's steps are observed by.

    Every method contains its own faults. A fault disables the probe, is named in the log and on
    /metrics, and never reaches the server.

    Args:
        worker: to be probed.
        output: where results go.
        starts: makes the parts that serve, from the worker, its runner, the place of vLLM's CUDA
            graphs and the output.
    """

    def __init__(self, worker: Worker, output: Output, starts: Starts = start) -> None:
        self._worker = worker
        self._output = output
        self._starts = starts
        self._identity = worker.identity
        self._started: Started | None = None
        self._waiting: Waiting | None = None
        """In place of what serves, until the first scan."""
        self._unhook: Callable[[], None] = lambda: None

    @property
    def active(self) -> bool:
        """Whether steps are timed, or probes may run, now or after the first scan."""
        return self._started is not None or self._waiting is not None

    @property
    def to_fill(self) -> Shape | None:
        """What the first scan reads at most, if it waits; None on a rank that follows."""
        return None if self._waiting is None else self._waiting.to_fill

    def after_warm_up(
        self,
        runner: Any,
        place: GraphPlace | None = None,
        unhook: Callable[[], None] = lambda: None,
    ) -> None:
        """Start on a runner that has warmed up, before the server takes requests.

        Args:
            place: memory pool and stream of vLLM's own CUDA graphs, if there are any.
            unhook: removes the hooks of this session.
        """
        self._unhook = unhook
        self._worker.cost.begin()
        self._begin(lambda: self._starts(self._worker, runner, place, self._output))

    def scan(self, note: str = "") -> None:
        """Run the first scan, if it was put off: real steps have filled the KV cache.

        Args:
            note: what the results should say of the scan; empty: nothing.
        """
        waiting = self._waiting
        if waiting is not None:
            self._begin(lambda: scan_at_last(waiting, note))

    def _begin(self, start: Callable[[], Started | Waiting | None]) -> None:
        """Start, up to a first scan that is put off, or up to the end."""
        try:
            made = start()
            if isinstance(made, Waiting):
                self._waiting = made
            else:
                self._started, self._waiting = made, None
        except StaysOffError as error:
            self.disable(str(error), error.expected)
        except Exception as error:
            logger.error("vllm-nfp: fault in stage attach", exc_info=error)
            self.disable(f"fault in stage attach: {error!r}")
        finally:
            if self._waiting is None:
                self._worker.cost.end()

    def before_step(self, scheduler_output: Any) -> None:
        """Before a real step: look at it, maybe run a pair of probes, and begin to time it."""
        started = self._started
        if started is None:
            self._fill(scheduler_output)
            return
        self._try(started, "probe", started.agreement.before_step, started, scheduler_output)
        self._listen(scheduler_output)  # only now: a pair is no real step
        self._mark(begin=True)
        serving.begin(started.looks.reads_prompts)

    def _fill(self, scheduler_output: Any) -> None:
        """Before a step that fills the KV cache for a scan that waits; all ranks see it alike."""
        if self._waiting is not None:
            started = self._waiting.started
            self._try(started, "probe", keep_prompts, started.engine, scheduler_output)
            self._try(started, "probe", note_blocks, started.engine, scheduler_output)

    def before_dummy(self) -> None:
        """Before a dummy batch, while other engines run a step; a pair may be due at it."""
        started = self._started
        if started is None:
            return
        self._try(started, "probe", started.agreement.before_dummy, started)

    def verifies(self, verification: AdaptiveVerification, patches: PatchSet) -> None:
        """vLLM verifies adaptively: follow it, and feed it if that is asked for.

        Args:
            patches: takes up what is hooked.
        """
        started = self._started
        if started is None:
            return
        follow = (started, self._worker, verification, patches, self.trimmed)
        self._try(started, "verification", follow_verification, *follow)

    def trimmed(self, tokens: int) -> None:
        """vLLM has cut drafts of the step that runs now: it has so many tokens."""
        started = self._started
        if started is None or started.lead is None:
            return
        try:
            step = started.looks.trimmed(tokens)
            if step is not None and started.agreement.timed(started):
                started.lead.watcher.trimmed(step, started.looks.stands_for)
        except Exception as error:
            self._fault(started, "timing", error)

    def after_step(self) -> None:
        """The real step has been launched."""
        serving.end()
        self._mark(begin=False)
        started = self._started
        if started is not None and started.lead is not None and started.lead.experts is not None:
            self._try(started, "experts", started.lead.experts.end)

    def _listen(self, scheduler_output: Any) -> None:
        """Read which experts the step that comes next chooses, if it is looked at."""
        started = self._started
        if started is None or started.lead is None or started.lead.experts is None:
            return
        if started.agreement.timed(started):
            tokens: int = scheduler_output.total_num_scheduled_tokens
            self._try(started, "experts", started.lead.experts.begin, tokens)

    def _try(
        self, started: Started, stage: str, call: Callable[..., object], *arguments: object
    ) -> None:
        """Make a call whose fault ends the probe and not the step."""
        try:
            call(*arguments)
        except Exception as error:
            self._fault(started, stage, error)

    def _mark(self, begin: bool) -> None:
        started = self._started
        if started is None or started.lead is None or not started.agreement.timed(started):
            return
        timer = started.lead.watcher.timer
        self._try(started, "timing", timer.begin if begin else timer.end)

    def idle(self) -> float:
        """No request is there: maybe run a pair of probes; seconds until the next call."""
        started = self._started
        if started is None:
            return NOTHING_TO_DO_SECONDS
        try:
            return started.agreement.idle(started)
        except Exception as error:
            self._fault(started, "idle probe", error)
            return NOTHING_TO_DO_SECONDS

    def _fault(self, started: Started, stage: str, error: Exception) -> None:
        reason = started.agreement.fault(stage, error)
        if reason is not None:
            self.disable(reason)

    def disable(self, reason: str, expected: bool = False) -> None:
        """Disable the probe permanently; the server goes on, unless the fault has cost it the GPU.

        Args:
            expected: the reason is a setting or feature, known at the start, and no fault.
        """
        log = logger.warning if expected else logger.error
        after = GPU_IS_LOST if not expected and device_is_lost() else GOES_ON
        log("vllm-nfp: the probe is disabled: %s; %s", reason, after)
        started = self._started if self._waiting is None else self._waiting.started
        self._started = self._waiting = None
        serving.end()
        identity = replace(self._identity, startup_seconds=self._worker.cost.seconds)
        end(started, identity, reason, self._output, self._unhook)
