"""Keeps the most recent pairs of each point, in bounded memory."""

from __future__ import annotations

from collections import deque

from vllm_nfp.estimate.types import Cell, Pair


class PairStore:
    """A ring of pairs for each (cell, positions). Not thread safe.

    Args:
        capacity: pairs kept for a point; older ones are dropped.
    """

    def __init__(self, capacity: int = 32) -> None:
        self._capacity = capacity
        self._rings: dict[Cell, dict[int, deque[Pair]]] = {}

    def add(self, cell: Cell, pair: Pair) -> None:
        """Keep the pair."""
        rings = self._rings.setdefault(cell, {})
        rings.setdefault(pair.positions, deque(maxlen=self._capacity)).append(pair)

    def pairs(self, cell: Cell) -> list[Pair]:
        """All pairs of the cell, oldest first within a point."""
        return [pair for ring in self._rings.get(cell, {}).values() for pair in ring]

    def cells(self) -> tuple[Cell, ...]:
        """Cells that have pairs, in order."""
        return tuple(sorted(self._rings))

    def count(self, cell: Cell, positions: int) -> int:
        """Pairs kept for one point."""
        return len(self._rings.get(cell, {}).get(positions, ()))
