"""Which cells and shapes can be probed at the moment, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_nfp.probe.graph_cache import GraphCache
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.shapes import ShapeKey, ShapeTable


class Availability:
    """Puts together what limits forbid and, with several ranks, what the start has left out.

    Args:
        limits: those of the server and of the settings.
        shapes: what was made.
        graphs: which shapes have graphs, and what they take.
        alone: there is one rank; several make all their graphs at the start.
    """

    def __init__(
        self, limits: ShapeLimits, shapes: ShapeTable, graphs: GraphCache[ShapeKey], alone: bool
    ) -> None:
        self.limits = limits
        self.shapes = shapes
        self.graphs = graphs
        self._alone = alone

    def refusal(self, batch_size: int, context: int) -> str | None:
        """Why the cell cannot be probed at all; None if at least two positions can be."""
        return self.limits.cell_refusal(batch_size, context)

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        """Position counts that can be probed in the cell, ascending."""
        return self.limits.positions(batch_size, context, self._can_probe)

    def _can_probe(self, batch_size: int, positions: int) -> bool:
        key = (batch_size, positions)
        if self.shapes.started and not self._alone:
            return self.shapes.is_complete(key)
        return self.memory_missing(key) is None

    def memory_missing(self, key: ShapeKey) -> str | None:
        """Why the memory limit forbids the shape; None if it does not, as far as is known."""
        return self.limits.memory_missing(*key, self.graphs.room)

    def holds(self, batch_size: int, context: int, positions: int) -> bool:
        """Whether the shape can be probed at this context."""
        possible = self.refusal(batch_size, context) is None
        return possible and positions in self.positions(batch_size, context)

    def keys(self, batch_sizes: Iterable[int], contexts: Iterable[int]) -> set[ShapeKey]:
        """All shapes that can be probed at one of the contexts at least."""
        lengths = list(contexts)
        return {
            (b, n)
            for b in batch_sizes
            for c in lengths
            if self.refusal(b, c) is None
            for n in self.positions(b, c)
        }
