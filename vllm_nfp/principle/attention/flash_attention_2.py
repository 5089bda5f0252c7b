"""FlashAttention 2, vLLM's default on NVIDIA GPUs before and beside Hopper."""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.attention.tiling import (
    AttentionBackend,
    AttentionStep,
    Tiles,
    efficient_splits,
    tiles_of,
)
from vllm_nfp.principle.terms import FloatArray


def flash_attention_2_tiles(step: AttentionStep) -> Tiles:
    """FlashAttention 2 packs the query heads of a group at N=1 alone.

    run_mha_fwd_splitkv_dispatch in csrc/flash_attn/src/flash_fwd_launch_template.h (64 rows), and
    seqlenq_ngroups_swapped in csrc/flash_attn/flash_api.cpp: above one position each query head
    walks the cache by itself.
    """
    head_dim = step.heads.score_dim
    tokens = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    one = (step.positions == 1) & (not step.windowed)
    return tiles_of(
        step,
        64,
        tokens,
        rows=np.where(one, step.packed_rows, step.positions),
        units=step.heads.kv_heads * np.where(one, 1, step.heads.group),
    )


def flash_attention_2_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """The heuristic for two blocks on each SM at N=1, and no splits above.

    mha_varlen_fwd in csrc/flash_attn/flash_api.cpp refuses splits of a paged cache there.
    """
    chosen = efficient_splits(
        step.batch_size * tiles.units * tiles.query_blocks,
        tiles.kv_blocks(step.cached_tokens),
        2 * step.num_sms,
    )
    return np.where((step.positions == 1) & (not step.windowed), chosen, 1.0)


FLASH_ATTN_2 = AttentionBackend(
    "FLASH_ATTN_2",
    flash_attention_2_tiles,
    flash_attention_2_splits,
    source="vLLM's FlashAttention: csrc/flash_attn/flash_api.cpp and its launch template",
)
