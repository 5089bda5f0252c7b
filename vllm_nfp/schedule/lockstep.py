"""Exchanges between ranks, so that all run the same probes before the same steps, or none does.

With tensor parallelism a step's kernels wait for one another across ranks. If one rank launched a
probe and another did not, the server would hang. So no rank decides alone. One, the leader, plans
as a single rank would, from its own clock and budget. Its pairs become actions of all ranks through
exchanges.

An exchange is an element-wise maximum over all ranks of a few integers. Every rank gets the same
numbers, and decides by these alone. In serving there is an exchange at every
:data:`STEPS_PER_EXCHANGE`-th step. All ranks are given the same steps, so that they count alike.
An exchange begins at one such step, and its outcome is used at the next. So it has a few steps'
time, and nobody waits for it: a rank's host thread is never that far behind, since the steps
themselves need all ranks. A pair takes three of them:

1. *proposed*: the leader's exchange carries the pair;
2. *checked*: each rank has done all of the launch that can fail, and says whether it could;
3. *committed*: all could. Every rank launches it before the first decode step from here on.

Engines that take their steps together count those, dummy batches among them. There several ranks
have plans, so that a pair takes a fourth exchange before these, in which they bid for the turn to
propose (:mod:`vllm_nfp.schedule.turns`).

A rank that has a fault takes part until the others know, and launches what is committed. Its next
exchange carries the fault, and all ranks end their probes at the same step. Each exchange also
carries its number and a digest of the steps so far, as a value and its negative. If the maxima of
the two differ, the ranks disagree, and end their probes as well.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from vllm_nfp.schedule.message import VALUES, Outcome, Part, outcome_of
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.turns import LEADER, LeadersTurn, Turns

STEPS_PER_EXCHANGE = 8
"""Some 50 ms of serving. At 1 % of the time a pair comes every few hundred steps."""
_DIGEST_MODULUS = (1 << 31) - 1


class PeerFaultError(RuntimeError):
    """A rank has a fault, and all ranks know."""


class DivergedError(RuntimeError):
    """The ranks are not at the same step or have not seen the same ones; all ranks know."""


class WireError(RuntimeError):
    """An exchange has failed: a rank is gone."""


@contextmanager
def wire_errors() -> Iterator[None]:
    """Name what a wire raises."""
    try:
        yield
    except WireError:
        raise
    except RuntimeError as error:
        raise WireError(f"another rank cannot be reached: {error}") from error


class Wire(Protocol):
    """Carries the exchanges; both methods raise RuntimeError if they cannot."""

    rank: int
    size: int

    def begin(self, values: Sequence[int]) -> Any:
        """Put in this rank's values; waits for nothing."""
        ...

    def finish(self, handle: Any) -> Sequence[int]:
        """The maximum over all ranks of each value, once all have put theirs in."""
        ...


def largest_of_all(wire: Wire, value: int) -> int:
    """The largest of all ranks' values; each asks at the same point of its start.

    Raises:
        WireError: if another rank cannot be reached.
    """
    with wire_errors():
        largest, *_ = wire.finish(wire.begin([value] + [0] * (VALUES - 1)))
    return largest


def done_by_all(wire: Wire, here: bool) -> bool:
    """Whether each rank has done it; see :func:`largest_of_all`."""
    return not largest_of_all(wire, int(not here))


class Lockstep:
    """One rank's part in what all ranks decide.

    Args:
        wire: to the other ranks.
        digest: of what all ranks must have alike from the start, such as the settings.
        steps_per_exchange: in serving.
        turns: which rank may propose.
    """

    def __init__(
        self,
        wire: Wire,
        digest: int = 0,
        steps_per_exchange: int = STEPS_PER_EXCHANGE,
        turns: Turns | None = None,
    ) -> None:
        self._wire = wire
        self._turns: Turns = turns or LeadersTurn()
        self._digest = digest % _DIGEST_MODULUS
        self._every = steps_per_exchange
        self._number = 0
        self._steps = 0
        self._faulty = False
        self._in_flight: Any = None
        self._to_check: Pair | None = None
        self._checking: Pair | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank plans the start, for all."""
        return self._wire.rank == LEADER

    @property
    def rank(self) -> int:
        """This one, from 0."""
        return self._wire.rank

    def fail(self) -> None:
        """Tell the others of a fault with the next exchange."""
        self._faulty = True

    def fail_now(self) -> None:
        """Take part in the exchange that the others are at, or will be, with a fault.

        For the start, where each exchange is waited for.
        """
        self._faulty = True
        self._finish(self._begin())

    def agree(self, possible: bool, topic: str = "") -> bool:
        """Whether all ranks can; each calls this at the same point of its start.

        Args:
            topic: what is asked, so that ranks at different questions are told apart.

        Raises:
            PeerFaultError: if a rank has a fault.
            DivergedError: if the ranks are not at the same point.
        """
        return not self._meet(topic, refused=not possible).refused

    def least(self, value: int, topic: str) -> int:
        """The smallest of all ranks' values; asked, and raising, as :meth:`agree`."""
        return -self._meet(topic, amount=-value).amount

    def decide(self, pair: Pair | None) -> Pair | None:
        """The leader's pair, on all ranks; what others give is not asked.

        Raises:
            PeerFaultError: if a rank has a fault.
            DivergedError: if the ranks are not at the same point.
        """
        return self._meet("which pair", pair=pair if self.leads else None).pair

    def count(self, step: int) -> bool:
        """Count a step; whether an exchange is due at it, on all ranks or on none.

        Args:
            step: digest of what the scheduler plans for it.
        """
        self._steps += 1
        self._digest = (31 * self._digest + step + 1) % _DIGEST_MODULUS
        return self._steps % self._every == 0

    def exchange(
        self,
        propose: Callable[[], Pair | None],
        can_launch: Callable[[Pair], bool],
        refused: Callable[[Pair], None],
        wants: bool = False,
        holds: bool = False,
    ) -> Pair | None:
        """Where one is due; returns a pair if all ranks are to launch it from this step on.

        Args:
            propose: the pair that the proposing rank wants next, taken; asked of that rank alone.
            can_launch: does all of the launch that can fail.
            refused: told of a pair that some rank cannot launch.
            wants: this rank has a pair to propose, and needs a turn.
            holds: no rank may be given a turn now.

        Raises:
            PeerFaultError: if a rank has a fault.
            DivergedError: if the ranks are not at the same step.
            WireError: if the others cannot be reached; they cannot reach this rank either.
            Exception: what an argument has raised, after this rank has put in its part.
        """
        committed = self._take_outcome(refused) if self._in_flight is not None else None
        checked, self._to_check = self._to_check, None
        possible, pair, failure = True, None, None
        free = checked is None and committed is None
        proposes = free and self._turns.proposer() == self._wire.rank
        try:
            if checked is not None:
                possible = can_launch(checked)
            elif proposes and not self._faulty:
                pair = propose()
        except Exception as error:
            # The others wait for this rank's part, whatever has happened here.
            self._faulty, failure = True, error
        self._checking = checked
        bid = self._turns.bid(self._wire.rank, wants and pair is None)
        self._in_flight = self._begin(refused=not possible, bid=bid, held=holds, pair=pair)
        if failure is not None:
            raise failure
        return committed

    def _take_outcome(self, refused: Callable[[Pair], None]) -> Pair | None:
        handle, self._in_flight = self._in_flight, None
        outcome = self._read(self._finish(handle))
        self._turns.heard(outcome.bid, outcome.held)
        checked, self._checking = self._checking, None
        self._to_check = outcome.pair
        if checked is None:
            return None
        if outcome.refused:
            refused(checked)
            return None
        return checked

    def _meet(self, topic: str, **said: Any) -> Outcome:
        return self._read(self._finish(self._begin(topic, **said)))

    def _begin(self, topic: str = "", **said: Any) -> Any:
        self._number += 1
        fault = self._wire.rank + 1 if self._faulty else 0
        digest = self._digest ^ zlib.crc32(topic.encode())
        with wire_errors():
            return self._wire.begin(Part(self._number, digest, fault, **said).values())

    def _finish(self, handle: Any) -> Sequence[int]:
        with wire_errors():
            return self._wire.finish(handle)

    def _read(self, values: Sequence[int]) -> Outcome:
        outcome = outcome_of(values)
        if outcome.fault:
            raise PeerFaultError(
                f"fault on rank {outcome.fault - 1} of {self._wire.size}: see its log"
            )
        least, most = outcome.numbers
        if least != most:
            raise DivergedError(f"the ranks are at exchanges {least} to {most}")
        if not outcome.alike:
            raise DivergedError("the ranks have not had the same settings and steps")
        return outcome
