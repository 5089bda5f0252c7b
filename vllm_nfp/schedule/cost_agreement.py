"""Which costs are in force at a step, the same on all ranks.

Every rank trims drafts by itself, so that all must use the same costs from the same step on. The
leader announces a version in one exchange; in the next, each rank says whether it holds that
version; once all do, all take it up at the same step. The leader withdraws costs by announcing
none, which holds from the exchange's outcome on. An exchange begins at every
:data:`~vllm_nfp.schedule.lockstep.STEPS_PER_EXCHANGE`-th step, and its outcome is used at the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from vllm_nfp.schedule.lockstep import STEPS_PER_EXCHANGE, Wire, wire_errors
from vllm_nfp.schedule.message import VALUES

NONE = 0
"""Announced where no costs are to be in force."""


class Versioned(Protocol):
    """What is agreed on."""

    @property
    def version(self) -> int:
        """Above 0; another one for other costs."""
        ...


C = TypeVar("C", bound=Versioned)


class CostAgreement(Generic[C]):
    """One rank's part.

    Args:
        load: the costs of a version, if this rank has them; must not raise.
        wire: to the other ranks; None if this one is alone.
        wanted: the version that is to be in force, asked of the leader at each exchange.
    """

    def __init__(
        self,
        load: Callable[[int], C | None],
        wire: Wire | None = None,
        wanted: Callable[[], int] = lambda: NONE,
    ) -> None:
        self._load = load
        self._wire = wire
        self._wanted = wanted
        self._steps = 0
        self._under_way: Any = None
        self._announced = NONE
        self._held: C | None = None
        """Of the announced version; None if this rank has it not."""
        self._in_force: C | None = None

    def at_step(self) -> C | None:
        """The costs of the step that comes next; None: vLLM's own. Every rank asks at every step.

        Raises:
            WireError: if another rank cannot be reached.
        """
        self._steps += 1
        if self._steps % STEPS_PER_EXCHANGE == 0:
            if self._wire is None:
                self._take(self._wanted(), lacking=False)
                self._in_force = self._held
            else:
                with wire_errors():
                    self._exchange(self._wire)
        return self._in_force

    def _exchange(self, wire: Wire) -> None:
        if self._under_way is not None:
            announced, lacking, *_ = wire.finish(self._under_way)
            self._take(announced, bool(lacking))
        lacks = self._announced != NONE and self._held is None
        rest = (0,) * (VALUES - 2)
        self._under_way = wire.begin((self._wanted(), int(lacks), *rest))

    def _take(self, announced: int, lacking: bool) -> None:
        """Take in an exchange.

        Args:
            lacking: some rank lacks what was announced before.
        """
        if announced == NONE:
            self._announced, self._held, self._in_force = NONE, None, None
            return
        if not lacking and self._held is not None:
            self._in_force = self._held
        if self._held is None or announced != self._announced:
            self._announced, self._held = announced, self._load(announced)
