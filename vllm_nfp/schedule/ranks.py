"""The probe loop of several ranks: the leader's, which asks the others first, and theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vllm_nfp.config import ProbeConfig
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.lockstep import Lockstep, Pair
from vllm_nfp.schedule.plan import Planner, Target
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.types import ProbeEngine
from vllm_nfp.timing import Clock
from vllm_nfp.types import EngineStep, PairResult, Shape, ShapeRefusedError


class RankedEngine(ProbeEngine, Protocol):
    """A probe engine whose shapes run on several ranks at once."""

    def can_launch(self, shape: Shape) -> bool:
        """Do all of a launch that can fail, without running anything; False if it is refused."""
        ...

    def discard(self, ticket: Any) -> None:
        """Give a ticket up unread."""
        ...


def can_launch(engine: RankedEngine, pair: Pair) -> bool:
    """Whether this rank can launch both runs of the pair."""
    possible = [engine.can_launch(shape) for shape in pair.shapes]
    return all(possible)


def follow(engine: RankedEngine, pair: Pair) -> None:
    """Launch a pair for the leader's sake; its times are read by nobody."""
    for shape in pair.shapes:
        engine.discard(engine.launch(shape, pair.draw))


def follow_scan(engine: RankedEngine, lockstep: Lockstep) -> None:
    """Take part in the leader's scan until it ends."""
    while (pair := lockstep.decide(None)) is not None:
        if lockstep.agree(can_launch(engine, pair), "can the pair run"):
            follow(engine, pair)


class LeadingProber(Prober):
    """Runs pairs as a single rank's prober does, after all ranks have agreed on each.

    The times are the leader's own. A step ends on all ranks with its last collective, so that
    the others' times differ from them by less than a collective takes.

    Args:
        lockstep: this rank's part.
    """

    def __init__(
        self,
        engine: RankedEngine,
        clock: Clock,
        planner: Planner,
        budget: Budget,
        sink: Callable[[PairResult], None],
        config: ProbeConfig,
        lockstep: Lockstep,
    ) -> None:
        super().__init__(engine, clock, planner, budget, sink, config)
        self._ranked = engine
        self._lockstep = lockstep
        self._scanning = False
        self._wanted: Pair | None = None
        self._asked = False

    def scan(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        """Scan with all ranks, and tell them of its end."""
        self._scanning = True
        try:
            super().scan(seconds, *args, **kwargs)
        finally:
            self._scanning = False
        self._lockstep.decide(None)

    def before_step(self, step: EngineStep, stands_for: int = 1) -> None:
        """Read what is ready; may want a pair, which the ranks then agree on."""
        if self._wanted is None and not self._asked:
            super().before_step(step, stands_for)
        else:
            self._look(step, stands_for)

    def propose(self) -> Pair | None:
        """The wanted pair, handed over to the ranks."""
        pair, self._wanted = self._wanted, None
        self._asked = pair is not None
        return pair

    def refused(self, pair: Pair) -> None:
        """Some rank cannot launch the pair: leave its target out for a while.

        What can never run is no target here: the start has left it out on all ranks.
        """
        self._asked = False
        self._put_off(Target(pair.batch_size, pair.context, pair.positions))

    def launch(self, pair: Pair) -> None:
        """Launch a pair that all ranks launch."""
        self._asked = False
        try:
            self._run(pair, "startup" if self._scanning else "measured")
        except ShapeRefusedError:
            self.refused(pair)

    def _is_ready(self, target: Target) -> bool:
        """All shapes of the plan have their graphs: between steps no rank makes any."""
        return True

    def _launch(self, target: Target, account: str) -> None:
        pair = self._next_pair(target)
        if not self._scanning:
            self._wanted = pair
            return
        self._lockstep.decide(pair)
        if self._lockstep.agree(can_launch(self._ranked, pair), "can the pair run"):
            self.launch(pair)
        else:
            self.refused(pair)
