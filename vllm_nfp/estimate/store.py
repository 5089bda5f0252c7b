"""Keeps the most recent pairs of each point, in bounded memory."""

from __future__ import annotations

from collections import deque

from vllm_nfp.types import Cell, Pair

MOST_PAIRS = 100_000
"""Pairs kept in all, some 15 MiB; once there are so many, a new one takes the place of an old one
of its point, and a new point finds none."""


class PairStore:
    """A ring of pairs for each (cell, positions). Not thread safe.

    Args:
        capacity: pairs kept for a point; older ones are dropped.
        most: pairs kept in all.
    """

    def __init__(self, capacity: int = 32, most: int = MOST_PAIRS) -> None:
        self._capacity = capacity
        self._most = most
        self._kept = 0
        self._rings: dict[Cell, dict[int, deque[Pair]]] = {}

    def add(self, cell: Cell, pair: Pair) -> None:
        """Keep the pair, and drop the oldest of its point where there is no room for both."""
        ring = self._rings.get(cell, {}).get(pair.positions)
        if ring is None:
            if self._kept >= self._most:
                return
            ring = deque[Pair]()
            self._rings.setdefault(cell, {})[pair.positions] = ring
        if len(ring) >= self._capacity or (ring and self._kept >= self._most):
            ring.popleft()
        else:
            self._kept += 1
        ring.append(pair)

    def pairs(self, cell: Cell) -> list[Pair]:
        """All pairs of the cell, oldest first within a point."""
        return [pair for ring in self._rings.get(cell, {}).values() for pair in ring]

    def cells(self) -> tuple[Cell, ...]:
        """Cells that have pairs, in order."""
        return tuple(sorted(self._rings))

    def count(self, cell: Cell, positions: int) -> int:
        """Pairs kept for one point."""
        return len(self._rings.get(cell, {}).get(positions, ()))
