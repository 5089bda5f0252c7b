"""Parts of a layer that are no attention to a cache and no feed-forward block.

Sizes are those of the whole model; ``per_rank`` gives a rank's share, as vLLM splits it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Split = Literal["columns", "rows", "none"]
"""What tensor parallelism divides: the outputs, the inputs, or nothing."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix, and how ranks share it."""

    inputs: int
    outputs: int
    split: Split = "columns"

    def per_rank(self, ranks: int) -> tuple[int, int]:
        """Inputs and outputs of one rank's part."""
        if self.split == "rows":
            return math.ceil(self.inputs / ranks), self.outputs
        if self.split == "columns":
            return self.inputs, math.ceil(self.outputs / ranks)
        return self.inputs, self.outputs


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Layers that keep a state of fixed size for each sequence instead of a cache.

    Attributes:
        kind: as people call it.
        layers: how many layers have it.
        matrices: projections of one layer.
        state_elements: numbers of the recurrent state of a sequence in one layer.
        state_bytes: bytes of each.
        conv_elements: numbers of the convolution's state, of 2 bytes each.
        flops_per_element: FLOPs for each number of the state and position: decay, what the key
            finds, update, and what the query reads.
    """

    kind: str
    layers: int
    matrices: tuple[Matrix, ...]
    state_elements: int
    state_bytes: float = 2.0
    conv_elements: int = 0
    flops_per_element: float = 6.0

    @property
    def sequence_bytes(self) -> float:
        """Bytes of a sequence's states in one layer."""
        return self.state_elements * self.state_bytes + 2.0 * self.conv_elements


@dataclass(frozen=True, slots=True)
class Indexer:
    """Picks the cached tokens that attention reads; whole on every rank.

    Attributes:
        layers: how many layers have one of their own; others use that of a layer before.
        top_k: tokens that it picks for each position.
        heads, head_dim: of its queries; it has one key for each token.
        query_inputs: width of the compressed queries that its own are made of.
    """

    layers: int
    top_k: int
    heads: int
    head_dim: int
    query_inputs: int

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the cache of one layer: an FP8 key and a 32-bit scale."""
        return self.head_dim + 4
