"""The reported table: its cells, the positions of each, and how steps of each shape run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vllm_nfp.config import ProbeConfig
from vllm_nfp.types import CellKey, Shape


def always(batch_size: int, context: int) -> bool:
    """A server whose KV cache holds everything, as far as is known."""
    return True


@dataclass(frozen=True, slots=True)
class Table:
    """What is reported of a server."""

    cells: Mapping[CellKey, tuple[int, ...]]
    """Positions of each reported cell, ascending from 1."""
    probed: Mapping[CellKey, tuple[int, ...]]
    """Positions of the cells that can be probed, ascending from 1; they are reported as well."""
    grid: tuple[int, ...]
    """All positions, ascending from 1."""
    most_context: int
    """--max-model-len."""
    most_tokens: int
    """--max-num-batched-tokens."""
    execution: Callable[[int, int], str]
    """(batch size, positions) -> full, piecewise or none: how such a step runs."""
    holds: Callable[[int, int], bool]
    """(batch size, context) -> whether the server can have such a step: its KV cache holds it."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Reported ones, ascending."""
        return tuple(sorted({batch_size for batch_size, _ in self.cells}))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All probed shapes of more than one position."""
        return tuple(Shape(*cell, n) for cell, counts in self.probed.items() for n in counts[1:])

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
    holds: Callable[[int, int], bool] = always,
) -> Table:
    """Every cell that the server can have with more than one position; each may be probed."""
    free = Table({}, {}, grid, most_context, most_tokens, execution, holds)
    fitting = {(b, c): free.fitting(b, c) for b in batch_sizes for c in contexts if holds(b, c)}
    cells = {cell: counts for cell, counts in fitting.items() if len(counts) > 1}
    return replace(free, cells=cells, probed=cells)


def reported_table(
    config: ProbeConfig, server: Table, probed: Mapping[CellKey, tuple[int, ...]]
) -> Table:
    """The table of a server of which some cells can be probed.

    The others have answers too, from what is probed, and so have positions that cannot be probed. A
    measurement, which takes pairs of every point, reports what it probes alone.

    Args:
        server: every cell that the server can have.
        probed: positions of each cell that can be probed, ascending from 1.
    """
    cells = probed if config.wanted_samples else {**probed, **server.cells}
    return replace(server, cells=cells, probed=probed)
