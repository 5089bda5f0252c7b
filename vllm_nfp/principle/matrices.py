"""The weight matrices of a shape, as one rank holds them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vllm_nfp.principle.layer_parts import AttentionPart, Gemm

if TYPE_CHECKING:
    from vllm_nfp.principle.shape import ModelShape

Counted = tuple[int, tuple[Gemm, ...]]
"""How many layers have the matrices, and these."""


def projections(shape: ModelShape) -> tuple[Counted, ...]:
    """Query, key, value and output projections, by kind of layer."""
    if not shape.attention_kinds:
        return ((shape.attention_layers, latent_or_plain(shape)),)
    return tuple(
        (layers, _of_part(shape, part, shared))
        for part in shape.attention_kinds
        for layers, shared in ((part.caches, False), (part.shared, True))
        if layers
    )


def _of_part(shape: ModelShape, part: AttentionPart, shared: bool) -> tuple[Gemm, ...]:
    sizes = part.rank_matrices(shape.tensor_parallel_size, shape.hidden_size, shared)
    return tuple(_linear(shape, inputs, outputs) for inputs, outputs in sizes)


def latent_or_plain(shape: ModelShape) -> tuple[Gemm, ...]:
    """Projections of one layer of the first kind.

    For latent attention the two absorbed per-head products are one matrix of the same size.
    """
    heads = shape.num_attention_heads // shape.tensor_parallel_size
    if shape.attention_kinds:
        return _of_part(shape, shape.attention_kinds[0], False)
    if shape.mla is None:
        queries = 2 * heads if shape.attention_gate else heads
        columns = (queries + 2 * shape.attention.kv_heads) * shape.head_dim
        return (
            _linear(shape, shape.hidden_size, columns),
            _linear(shape, heads * shape.head_dim, shape.hidden_size),
        )
    mla = shape.mla
    query = heads * (mla.nope_dim + mla.rope_dim)
    first = mla.q_rank or query
    gate = (_linear(shape, shape.hidden_size, heads * mla.value_dim),)
    return (
        _linear(shape, shape.hidden_size, first + mla.kv_rank + mla.rope_dim),
        *(gate if shape.attention_gate else ()),
        *((_linear(shape, mla.q_rank, query),) if mla.q_rank else ()),
        _linear(shape, mla.kv_rank, heads * (mla.nope_dim + mla.value_dim)),
        _linear(shape, heads * mla.value_dim, shape.hidden_size),
    )


def dense_blocks(shape: ModelShape) -> tuple[Counted, ...]:
    """Gate-up (or up alone) and down matrices of dense blocks, by width."""
    widths = shape.dense_widths or ((shape.num_dense_layers, shape.intermediate_size),)
    return tuple((layers, dense_block(shape, width)) for layers, width in widths if layers)


def dense_block(shape: ModelShape, width: int) -> tuple[Gemm, ...]:
    """One rank's part of a dense block of this width."""
    share = width // shape.tensor_parallel_size
    return _feed_forward(shape, share, _or_common(shape, shape.dense_weight_bytes))


def expert(shape: ModelShape) -> tuple[Gemm, ...]:
    """One rank's matrices of one routed expert."""
    share = shape.moe_intermediate_size // shape.expert_tensor_parallel_size
    inputs = shape.expert_hidden_size or shape.hidden_size
    return _feed_forward(shape, share, shape.expert_weight_bytes, inputs)


def to_experts(shape: ModelShape) -> tuple[Gemm, ...]:
    """Projections to and from the routed experts' width, whole on every rank."""
    if not shape.expert_hidden_size:
        return ()
    stored = _or_common(shape, shape.shared_weight_bytes)
    return (
        _gemm(shape, shape.hidden_size, shape.expert_hidden_size, stored),
        _gemm(shape, shape.expert_hidden_size, shape.hidden_size, stored),
    )


def router_and_shared(shape: ModelShape) -> tuple[Gemm, ...]:
    """Router, whole on every rank, and shared experts of a layer with experts."""
    columns = shape.num_experts + shape.idle_experts
    router = Gemm(shape.hidden_size, columns, shape.router_weight_bytes)
    if not shape.shared_intermediate_size:
        return (router,)
    share = shape.shared_intermediate_size // shape.tensor_parallel_size
    gate = Gemm(shape.hidden_size, 1, shape.router_weight_bytes)
    stored = _or_common(shape, shape.shared_weight_bytes)
    return (
        router,
        *_feed_forward(shape, share, stored),
        *((gate,) if shape.shared_expert_gate else ()),
    )


def indexer(shape: ModelShape) -> tuple[Gemm, ...]:
    """Queries, and key with head weights, of one layer's indexer; the latter in 16 bits."""
    if shape.indexer is None:
        return ()
    heads, width = shape.indexer.heads, shape.indexer.head_dim
    return (
        _linear(shape, shape.indexer.query_inputs, heads * width),
        Gemm(shape.hidden_size, shape.indexer.hidden_columns, 2.0),
    )


def recurrent(shape: ModelShape) -> tuple[Gemm, ...]:
    """Projections of one layer with a state."""
    if shape.linear_attention is None:
        return ()
    shares = (m.per_rank(shape.tensor_parallel_size) for m in shape.linear_attention.matrices)
    stored = _or_common(shape, shape.recurrent_weight_bytes)
    return tuple(_gemm(shape, inputs, outputs, stored) for inputs, outputs in shares)


def beside(shape: ModelShape) -> tuple[Counted, ...]:
    """Matrices that are part of no module, in 16 bits."""
    return tuple(
        (count, (Gemm(*matrix.per_rank(shape.tensor_parallel_size), 2.0),))
        for count, matrix in shape.side_matrices
    )


def lm_head(shape: ModelShape) -> Gemm:
    """One rank's LM head."""
    columns = math.ceil(shape.vocab_size / shape.tensor_parallel_size)
    return Gemm(shape.hidden_size, columns, shape.lm_head_weight_bytes)


def all_matrices(shape: ModelShape, experts: int) -> list[tuple[int, Gemm]]:
    """One rank's matrices with how often it has each, so many experts in each layer with any."""
    indexers = 0 if shape.indexer is None else shape.indexer.layers
    linear = 0 if shape.linear_attention is None else shape.linear_attention.layers
    moe = shape.num_moe_layers
    counted: list[Counted] = [
        *projections(shape),
        (indexers, indexer(shape)),
        (linear, recurrent(shape)),
        *dense_blocks(shape),
        (moe, (*router_and_shared(shape), *to_experts(shape))),
        (moe * experts, expert(shape) if moe else ()),
        *beside(shape),
        (1, (lm_head(shape),)),
    ]
    return [(count, gemm) for count, gemms in counted for gemm in gemms]


def _or_common(shape: ModelShape, part: float | None) -> float:
    return shape.weight_bytes if part is None else part


def _linear(shape: ModelShape, inputs: int, outputs: int) -> Gemm:
    return _gemm(shape, inputs, outputs, shape.weight_bytes)


def _feed_forward(
    shape: ModelShape, width: int, weight_bytes: float, inputs: int = 0
) -> tuple[Gemm, ...]:
    columns = 2 * width if shape.gated_ffn else width
    hidden = inputs or shape.hidden_size
    return (
        _gemm(shape, hidden, columns, weight_bytes),
        _gemm(shape, width, hidden, weight_bytes),
    )


def _gemm(shape: ModelShape, inputs: int, outputs: int, weight_bytes: float) -> Gemm:
    """A matrix that multiplies in FP8 if the model does and most of it is not left out."""
    return Gemm(inputs, outputs, weight_bytes, shape.fp8 and weight_bytes < 1.5)
