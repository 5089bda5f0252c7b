"""The kinds of attention of a shape, as one rank has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_nfp.principle.layer_parts import AttentionHeads, AttentionPart

if TYPE_CHECKING:
    from vllm_nfp.principle.shape import ModelShape


def attention_parts(shape: ModelShape) -> tuple[AttentionPart, ...]:
    """Every kind of attention; at least one, even if no layer has it."""
    if shape.attention_kinds:
        return shape.attention_kinds
    sliding = shape.num_sliding_layers
    full = AttentionPart(
        shape.attention_layers - sliding,
        shape.num_attention_heads,
        shape.num_kv_heads,
        shape.head_dim,
        shape.head_dim,
        top_k=0 if shape.indexer is None else shape.indexer.top_k,
    )
    windowed = replace(full, layers=sliding, window=shape.sliding_window)
    return tuple(part for part in (full, windowed) if part.layers) or (full,)


def rank_heads(shape: ModelShape, part: AttentionPart) -> AttentionHeads:
    """What one rank's kernel sees; fp8 if the cache is, since the query is then cast too."""
    ranks = shape.tensor_parallel_size
    if shape.mla is None or not shape.mla.absorbed:
        return part.rank_heads(ranks, shape.kv_bytes)
    score, values = shape.mla.kv_rank + shape.mla.rope_dim, shape.mla.kv_rank
    token_bytes = score * shape.kv_bytes
    return AttentionHeads(1, part.heads // ranks, score, values, token_bytes, shape.kv_bytes <= 1)
