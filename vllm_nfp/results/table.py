"""The reported table: its cells, the positions of each, and how steps of each shape run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllm_nfp.types import CellKey, Shape


@dataclass(frozen=True, slots=True)
class Table:
    """What is reported of a server."""

    cells: Mapping[CellKey, tuple[int, ...]]
    """Positions of each reported cell, ascending from 1."""
    grid: tuple[int, ...]
    """All positions, ascending from 1."""
    most_context: int
    """--max-model-len."""
    most_tokens: int
    """--max-num-batched-tokens."""
    execution: Callable[[int, int], str]
    """(batch size, positions) -> full, piecewise or none: how such a step runs."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Reported ones, ascending."""
        return tuple(sorted({batch_size for batch_size, _ in self.cells}))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes of more than one position."""
        return tuple(Shape(*cell, n) for cell, counts in self.cells.items() for n in counts[1:])

    def fitting(self, batch_size: int, context: int) -> tuple[int, ...]:
        """Positions of the grid that a step may have at any batch size and context."""
        return tuple(
            n
            for n in self.grid
            if n == 1 or (context + n <= self.most_context and batch_size * n <= self.most_tokens)
        )


def plain_table(
    batch_sizes: tuple[int, ...],
    contexts: tuple[int, ...],
    grid: tuple[int, ...],
    most_context: int,
    most_tokens: int,
    execution: Callable[[int, int], str],
) -> Table:
    """The table of a server that is not probed: every cell that the scheduler's limits allow."""
    free = Table({}, grid, most_context, most_tokens, execution)
    cells = {(b, c): free.fitting(b, c) for b in batch_sizes for c in contexts}
    return Table(
        {cell: counts for cell, counts in cells.items() if len(counts) > 1},
        grid,
        most_context,
        most_tokens,
        execution,
    )
