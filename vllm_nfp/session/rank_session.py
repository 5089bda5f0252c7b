"""The probe's life in each worker of a tensor-parallel engine: together, or not at all.

The first rank leads: it plans, publishes and writes, and the others launch what it launches. See
:mod:`vllm_nfp.schedule.lockstep` for how they agree.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from vllm_nfp import faults
from vllm_nfp.adapter import bindings, ranks, support
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.runners import UnknownRunnerError, view_of
from vllm_nfp.adapter.steps import step_of
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.engine import VllmProbeEngine
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule import Budget, Planner, Prober
from vllm_nfp.schedule.lockstep import DivergedError, Lockstep, Pair, PeerFaultError, WireError
from vllm_nfp.schedule.ranks import LeadingProber, can_launch, follow, follow_scan
from vllm_nfp.session.session import PASSIVE_IDLE_SECONDS, Session, cannot_probe
from vllm_nfp.timing import Clock
from vllm_nfp.types import EngineStep, PairResult

logger = logging.getLogger("vllm.nfp")


def session_for(config: ProbeConfig, vllm_config: Any) -> Session:
    """A session that fits the engine's ranks.

    All of them decide alike: whoever only times its own steps waits for no other rank.
    """
    several = vllm_config.parallel_config.tensor_parallel_size > 1
    together = (
        several
        and support.decide(vllm_config, config.passive).mode is Mode.ACTIVE
        # Else each rank finds that out for itself.
        and bindings.is_known(vllm_config)
    )
    return RankSession(config, vllm_config) if together else Session(config, vllm_config)


class RankSession(Session):
    """One tensor-parallel rank's probe.

    A fault on one rank switches the probe off on all, at the same step; until then every rank
    goes on taking part, so that none waits for another.

    Args:
        config: the probe's settings.
        vllm_config: the engine's configuration.
    """

    def __init__(self, config: ProbeConfig, vllm_config: Any) -> None:
        ranks = vllm_config.parallel_config.tensor_parallel_size
        super().__init__(config, vllm_config, ranks=ranks)
        self._lockstep: Lockstep | None = None
        self._committed: Pair | None = None
        self._own_fault: str | None = None
        self._leads = True

    @property
    def active(self) -> bool:
        """Whether this rank takes part, or times its steps alone."""
        return self._lockstep is not None or super().active

    def attach(self, runner: Any, place: GraphPlace | None = None) -> None:
        """Take up the runner, on all ranks or on none."""
        self._begun = time.monotonic()
        try:
            self._attach_together(runner, place, self._begun)
        finally:
            self._begun = None

    def _attach_together(self, runner: Any, place: GraphPlace | None, begun: float) -> None:
        lockstep: Lockstep | None = None
        try:
            view_of(runner)  # an unknown one is unknown on every rank, and none waits for another
            lockstep = ranks.join(self._config)
            self._leads = lockstep.leads
            faults.set_rank(lockstep.rank)
            self._lockstep = lockstep
            self._ranks = ranks.TensorRanks(lockstep)
            self._attach(runner, begun, place)
        except UnknownRunnerError as error:
            self._leads = torch.distributed.get_rank() == 0
            self.disable(str(error), expected=True)
        except (PeerFaultError, DivergedError, WireError) as error:
            self.disable(str(error))
        except Exception as error:
            self._tell_others(lockstep)
            if cannot_probe(error):
                self._fall_back(runner, begun, str(error))
            else:
                self._fault("attach", error)

    def _tell_others(self, lockstep: Lockstep | None) -> None:
        """That this rank takes part no more, so that none waits for it."""
        if lockstep is None:
            return
        try:
            lockstep.fail_now()
        except Exception:
            logger.exception("vllm-nfp: the other ranks could not be told of the fault")

    def _fall_back(self, runner: Any, begun: float, reason: str) -> None:
        """The leader alone goes on, with timing its own steps."""
        self._lockstep = self._committed = None
        self._ranks = ranks.Alone()
        if self._leads:
            super()._fall_back(runner, begun, reason)
            return
        logger.warning("vllm-nfp: this rank takes no part: %s", reason)
        engine, self._engine, self._prober = self._engine, None, None
        if engine is not None:
            engine.close()

    def _begin(self, view: RunnerView, engine: VllmProbeEngine, clock: Clock, begun: float) -> None:
        lockstep = self._lockstep
        assert lockstep is not None, "attach() has set it"
        if self._leads:
            passes = self._vllm_config.compilation_config.pass_config
            if getattr(passes, "fuse_allreduce_rms", False):
                logger.info(
                    "vllm-nfp: this server fuses all-reduces with norms; the module communication "
                    "times the plain all-reduce, which may take longer"
                )
            super()._begin(view, engine, clock, begun)
        else:
            faults.maybe_fail("startup_scan")
            follow_scan(engine, lockstep)
            engine.give_back_cache()
        lockstep.agree(True, "does every rank publish or follow")
        if self._publisher is not None:
            self._note_start(self._publisher)  # the others have been waited for

    def _prober_of(
        self,
        engine: VllmProbeEngine,
        clock: Clock,
        planner: Planner,
        budget: Budget,
        sink: Callable[[PairResult], None],
    ) -> Prober:
        assert self._lockstep is not None, "attach() has set it"
        return LeadingProber(engine, clock, planner, budget, sink, self._config, self._lockstep)

    def idle(self) -> float:
        """Nothing: the other ranks take part at steps alone."""
        return PASSIVE_IDLE_SECONDS

    def step(self, scheduler_output: Any) -> None:
        """Before a real step: take part in what all ranks decide; maybe run a pair."""
        lockstep = self._lockstep
        if lockstep is None:
            super().step(scheduler_output)
            return
        try:
            due = lockstep.count(_digest(scheduler_output))
            self._stands_for = 0 if self._prober is None else self._looks(scheduler_output)
            if not (due or self._stands_for) and self._committed is None:
                return
            step = self._plan(scheduler_output, due)
            if due:
                self._exchange(lockstep)
            if self._committed is not None and step is not None and step.decode:
                pair, self._committed = self._committed, None
                self._launch(pair)
        except (PeerFaultError, DivergedError) as error:
            own = "" if self._own_fault is None else f" ({self._own_fault})"
            self.disable(f"{error}{own}")
        except WireError as error:
            self._fault("lockstep", error)
        except Exception as error:
            self._tell("lockstep", error)

    def _exchange(self, lockstep: Lockstep) -> None:
        begun = time.perf_counter()
        pair = lockstep.exchange(self._propose, self._can_launch, self._refused)
        if self._prober is not None:
            # It may have delayed the step by as much.
            self._prober.budget.spend(time.perf_counter() - begun)
        self._committed = pair or self._committed

    def _plan(self, scheduler_output: Any, due: bool) -> EngineStep | None:
        """The step; the leader may want a pair after it.

        Args:
            due: all ranks take the same tokens from this step. Whether the leader times it is left
                to chance all the same: what comes at every eighth step would follow a rhythm.
        """
        step: EngineStep | None = None
        try:
            assert self._view is not None and self._limits is not None, "attach() has set them"
            step = step_of(scheduler_output, self._view.decode_positions, self._limits)
            if self._own_fault is not None:
                return step
            if due:
                self._take_tokens(scheduler_output)
                if self._engine is not None:
                    self._engine.check_proofs()  # a follower reads no tickets
            if self._publisher is not None and self._prober is not None and self._stands_for:
                if self._publisher.fault is not None:
                    raise RuntimeError(self._publisher.fault)
                self._prober.planner.feedback = self._publisher.feedback
                if step is not None:
                    self._prober.before_step(step, self._stands_for)
        except Exception as error:
            self._tell("probe", error)
        return step

    def _propose(self) -> Pair | None:
        if self._committed is not None or not isinstance(self._prober, LeadingProber):
            return None
        return self._prober.propose()

    def _can_launch(self, pair: Pair) -> bool:
        try:
            return self._engine is not None and can_launch(self._engine, pair)
        except Exception as error:
            self._tell("probe", error)
            return False

    def _refused(self, pair: Pair) -> None:
        if isinstance(self._prober, LeadingProber):
            self._prober.refused(pair)

    def _launch(self, pair: Pair) -> None:
        try:
            assert self._engine is not None, "attach() has set it"
            if isinstance(self._prober, LeadingProber) and self._own_fault is None:
                self._prober.launch(pair)
            else:
                follow(self._engine, pair)
        except Exception as error:
            self._tell("probe", error)

    def mark(self, begin: bool) -> None:
        """Around a real step's launch; the leader's steps alone are timed."""
        if self._lockstep is None:
            super().mark(begin)
            return
        if self._prober is None or not self._stands_for or self._own_fault is not None:
            return
        try:
            if begin:
                self._prober.begin_step()
            else:
                self._prober.end_step()
        except Exception as error:
            self._tell("timing", error)

    def _tell(self, stage: str, error: Exception) -> None:
        """Have all ranks end their probes; this one takes part until they do."""
        if self._own_fault is None:
            logger.error("vllm-nfp: fault in stage %s", stage, exc_info=error)
            self._own_fault = f"stage {stage}: {error!r}"
        if self._lockstep is not None:
            self._lockstep.fail()

    def _write(self, snapshot: Snapshot) -> None:
        if self._leads:
            super()._write(snapshot)

    def disable(self, reason: str, expected: bool = False) -> None:
        """Switch this rank's probe off; the others must be at the same point."""
        super().disable(reason, expected)
        self._lockstep = self._committed = None


def _digest(scheduler_output: Any) -> int:
    """Of what the scheduler plans, alike on all ranks."""
    tokens: int = scheduler_output.total_num_scheduled_tokens
    return 8191 * len(scheduler_output.num_scheduled_tokens) + tokens
