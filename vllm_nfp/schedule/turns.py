"""Which rank may propose the next pair.

Within one engine that is the leader: it alone times steps. Engines that take their steps together
(data parallelism with experts) each have a rank that times steps and has a plan. Each of these
bids in an exchange, one wins, and proposes in the next exchange.
"""

from __future__ import annotations

from typing import Protocol

LEADER = 0


class Turns(Protocol):
    """Alike on every rank, since it is told the outcome of exchanges alone."""

    def bid(self, rank: int, wants: bool) -> int:
        """What the rank puts into an exchange; 0: nothing."""
        ...

    def heard(self, bid: int, held: bool) -> None:
        """An exchange has ended.

        Args:
            bid: the highest.
            held: some rank holds pairs off.
        """
        ...

    def proposer(self) -> int | None:
        """The rank that proposes in the exchange that begins now, and so has had its turn."""
        ...


class LeadersTurn:
    """The leader's, always."""

    def bid(self, rank: int, wants: bool) -> int:
        """Nothing."""
        return 0

    def heard(self, bid: int, held: bool) -> None:
        """Nothing depends on it."""

    def proposer(self) -> int:
        """The leader."""
        return LEADER


class InTurn:
    """The bidder that comes next after the one that proposed last, if no rank holds pairs off.

    Args:
        size: number of ranks.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._last = size - 1
        self._winner: int | None = None

    def bid(self, rank: int, wants: bool) -> int:
        """The more, the sooner the rank's turn is."""
        return self._size - (rank - self._last - 1) % self._size if wants else 0

    def heard(self, bid: int, held: bool) -> None:
        """Find the winner."""
        won = bid > 0 and not held
        self._winner = (self._last + 1 + self._size - bid) % self._size if won else None

    def proposer(self) -> int | None:
        """The winner of the exchange before."""
        winner, self._winner = self._winner, None
        if winner is not None:
            self._last = winner
        return winner
