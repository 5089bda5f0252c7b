"""vLLM's unified Triton kernel: the default on AMD, an option elsewhere."""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.attention.tiling import AttentionBackend, AttentionStep, Tiles, tiles_of
from vllm_nfp.principle.terms import FloatArray


def triton_tiles(step: AttentionStep) -> Tiles:
    """vLLM's v1/attention/ops/triton_unified_attention.py: whole positions in 16 rows or more."""
    group = step.heads.group
    tile_rows = max(16, 1 << (group - 1).bit_length())
    positions_per_block = tile_rows // group
    blocks = np.ceil(step.positions / positions_per_block)
    tokens = np.where(step.positions > 1, 32, 32 if step.heads.fp8 else 16)
    # A block holds whole positions: rows that do not divide the tile stay empty.
    return tiles_of(step, tile_rows, tokens, rows=blocks * tile_rows)


def triton_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """16 segments at N=1 while there are at most 128 sequences and KV heads; none above.

    use_3d in triton_unified_attention.py, constants of v1/attention/backends/triton_attn.py.
    """
    split = (step.positions == 1) & (step.batch_size <= 128 // step.heads.kv_heads)
    return np.where(split, 16.0, 1.0)


TRITON_ATTN = AttentionBackend(
    "TRITON_ATTN",
    triton_tiles,
    triton_splits,
    source="vLLM 0.32: v1/attention/ops/triton_unified_attention.py",
    tiles_per_sm=4,  # assumed: tiles of 16 rows in four warps (waves on AMD) leave room for more
)
