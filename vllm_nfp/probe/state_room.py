"""How many recurrent states a probe keeps, and which shapes they suffice for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ALIGNMENT = 256
"""Bytes: where CUDA's allocator begins a block, so that a state is placed like the first one."""
_LIMIT = "state_memory_mib"


@dataclass(frozen=True, slots=True)
class StateRoom:
    """Memory for the states of probes, shared by all layers and shapes.

    N positions keep N states, as in a server that verifies N - 1 drafts: it goes back to the state
    after the last accepted one. Each layer has states of its own as long as the memory suffices;
    beyond that, layers take turns with the same ones.
    """

    limit_mib: int
    layers: int
    """With a recurrent state."""
    state_bytes: int
    """Bytes of one state of one layer, in a step of one position."""
    position_bytes: int
    """What each further position adds to every state: the input that a convolution goes back to."""

    def page_bytes(self, positions: int) -> int:
        """Bytes from one state to the next."""
        size = self.state_bytes + (positions - 1) * self.position_bytes
        return -(-size // ALIGNMENT) * ALIGNMENT

    def layer_bytes(self, batch_size: int, positions: int) -> int:
        """Bytes of one layer's states; the first is the null block, where padding goes."""
        return (1 + batch_size * positions) * self.page_bytes(positions)

    def missing(self, batch_size: int, positions: int) -> str | None:
        """Why the shape cannot be probed; None if the states of one layer fit."""
        size = self.layer_bytes(batch_size, positions)
        if size <= self.limit_mib << 20:
            return None
        return (
            f"the recurrent states of {batch_size} sequences x {positions} positions, "
            f"{-(-size >> 20)} MiB for each layer, exceed {_LIMIT} {self.limit_mib}"
        )

    def layers_apart(self, batch_size: int, positions: int, held_bytes: int) -> int:
        """Layers that have states of their own in memory of so many bytes."""
        return min(self.layers, held_bytes // self.layer_bytes(batch_size, positions))

    def wanted_bytes(self, shapes: Iterable[tuple[int, int]]) -> int:
        """What to hold: the limit, or less if states of all layers of all shapes fit into less."""
        sizes = (self.layer_bytes(*s) for s in shapes if self.missing(*s) is None)
        return min(self.limit_mib << 20, self.layers * max(sizes, default=0))
