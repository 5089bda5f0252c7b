"""Parts of a layer: what kinds of attention, states, indexers and matrices a model has.

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
class Gemm:
    """One weight matrix as a rank holds it: tokens x ``inputs`` times ``inputs`` x ``outputs``."""

    inputs: int
    outputs: int
    weight_bytes: float
    """Bytes per parameter."""
    fp8: bool = False
    """The multiplication runs in FP8 where the hardware can."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs

    @property
    def weight_traffic(self) -> float:
        """Bytes of one reading of the weights."""
        return self.parameters * self.weight_bytes


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Sizes of multi-head latent attention (DeepSeek V2 and V3)."""

    q_rank: int
    """Rank of the query compression; 0: queries are not compressed."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    absorbed: bool = True
    """The cache holds the latent; else keys and values of every head, as of other models."""


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """What one rank's attention kernel sees in one layer.

    Latent attention counts as one KV head that all query heads share: its key is latent and rope
    part, its value the latent part of the same bytes.
    """

    kv_heads: int
    group: int
    """Query heads per KV head, g in docs/theory.md."""
    score_dim: int
    value_dim: int
    token_bytes: float
    """KV bytes per token and KV head."""
    fp8: bool

    @property
    def flops_per_pair(self) -> float:
        """FLOPs for one query row and one cached token: score and value product."""
        return 2.0 * (self.score_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class AttentionPart:
    """Attention to a cache of keys and values, alike in so many layers.

    Attributes:
        layers: how many layers have it.
        heads, kv_heads, head_dim, value_dim: its sizes.
        window: tokens that it attends to at most; None: all.
        shared: how many of these layers read the cache of another layer. They have no key and
            value projections.
        tied_values: values are the keys. vLLM keeps their projection and their cache twice.
        gate: columns of a gate for each head, from one more projection; 0: none.
        compress: beside the window, the cache has one entry for so many tokens; 0: none.
        top_k: entries, outside the window if there is one, that each position picks; 0: all.
        entry_bytes: bytes of a cached entry of a KV head; 0: those of its key and value.
        matrices: projections that do not follow from the sizes.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    shared: int = 0
    tied_values: bool = False
    gate: int = 0
    compress: int = 0
    top_k: int = 0
    entry_bytes: float = 0.0
    matrices: tuple[Matrix, ...] = ()

    @property
    def caches(self) -> int:
        """Layers with a cache of their own."""
        return self.layers - self.shared

    @property
    def sparse(self) -> bool:
        """It reads some entries of what is cached, and others not."""
        return self.top_k > 0 or self.compress > 0

    def stored(self, cached: float) -> float:
        """Entries of one layer's cache for a sequence of so many tokens."""
        local = cached if self.window is None else min(cached, self.window)
        return local + (cached / self.compress if self.compress else 0.0)

    def read(self, cached: float) -> float:
        """Entries that one position reads."""
        if self.compress:
            pool = cached / self.compress
            return min(cached, self.window or 0) + min(pool, self.top_k or pool)
        local = cached if self.window is None else min(cached, self.window)
        return min(local, self.top_k or local)

    def rank_heads(self, ranks: int, kv_bytes: float) -> AttentionHeads:
        """What one rank's kernel sees; KV heads are copied where ranks outnumber them."""
        heads = self.heads // ranks
        kv_heads = max(1, self.kv_heads // ranks)
        token_bytes = self.entry_bytes or (self.head_dim + self.value_dim) * kv_bytes
        group = max(1, heads // kv_heads)
        return AttentionHeads(
            kv_heads, group, self.head_dim, self.value_dim, token_bytes, kv_bytes <= 1
        )

    def rank_matrices(self, ranks: int, hidden: int, shared: bool) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a rank's projections in one layer, with its own cache or not."""
        if self.matrices:
            return tuple(matrix.per_rank(ranks) for matrix in self.matrices)
        heads, kv_heads = self.heads // ranks, max(1, self.kv_heads // ranks)
        columns = heads * (self.head_dim + self.gate)
        if not shared:
            columns += kv_heads * (self.head_dim + self.value_dim)
        return (hidden, columns), (heads * self.value_dim, hidden)

    def repeated_parameters(self, hidden: int) -> int:
        """Weights of all layers that a server holds twice and the checkpoint once."""
        return self.caches * self.kv_heads * self.value_dim * hidden if self.tied_values else 0


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
        heads, head_dim: of its queries; it has one key for each entry of its cache.
        query_inputs: width of the compressed queries that its own are made of.
        columns: outputs of its matrices on the hidden states; 0: a key and a weight for each head.
        compress: tokens for each entry of its cache.
        entry_bytes: bytes of such an entry; 0: an FP8 key and a 32-bit scale.
    """

    layers: int
    top_k: int
    heads: int
    head_dim: int
    query_inputs: int
    columns: int = 0
    compress: int = 1
    entry_bytes: float = 0.0

    @property
    def token_bytes(self) -> float:
        """Bytes of a token in the cache of one layer."""
        return (self.entry_bytes or self.head_dim + 4) / self.compress

    @property
    def hidden_columns(self) -> int:
        """Outputs of its matrices on the hidden states."""
        return self.columns or self.head_dim + self.heads
