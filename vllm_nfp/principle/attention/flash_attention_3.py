"""FlashAttention 3, vLLM's default on Hopper. The time constants were fitted to it."""

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

MAX_GRAPH_SPLITS = 32
"""vLLM 0.32's flash_attn_max_num_splits_for_cuda_graph, the bound inside CUDA graphs."""


def flash_attention_3_tiles(step: AttentionStep) -> Tiles:
    """Tiles on Hopper for a paged cache whose pages are smaller than a block.

    tile_size_fwd_sm90 in hopper/tile_size.h and use_one_mma_wg in hopper/heuristics.h of vLLM's
    FlashAttention: one warpgroup runs a tile of 64 rows if they hold all rows, at head sizes 64
    and 128 without a window. 192 cached tokens of the 8-bit tile of 128 rows are those of a build
    with two-level accumulation.
    """
    heads = step.heads
    alone = (
        (step.packed_rows <= 64)
        & (heads.score_dim in (64, 128) and heads.score_dim == heads.value_dim)
        & (not step.windowed)
    )
    if heads.fp8:
        small = (64, 128 if heads.score_dim <= 96 else 96)
        large = _first_fit(
            heads.score_dim,
            ((64, (192, 128)), (96, (128, 128)), (128, (128, 192)), (192, (128, 96))),
        ) or (128, 64 if step.windowed else 128)
    elif heads.score_dim <= 64 and heads.value_dim > 64:
        small = large = (64, 64) if heads.value_dim > 256 else (128, 96)
    else:
        small = (64, 192 if heads.score_dim <= 64 else 128)
        large = _first_fit(
            heads.score_dim,
            (
                (64, (192, 128 if step.causal and not step.windowed else 160)),
                (96, (192, 128)),
                (128, (128, 128)),
                (192, (128, 96)),
            ),
        ) or (128, 64 if step.windowed else 80)
    return tiles_of(
        step,
        np.where(alone, small[0], large[0]),
        np.where(alone, small[1], large[1]),
        one_warpgroup=alone,
    )


def _first_fit(
    head_dim: int, table: tuple[tuple[int, tuple[int, int]], ...]
) -> tuple[int, int] | None:
    return next((tile for largest, tile in table if head_dim <= largest), None)


def flash_attention_3_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """Splits that FlashAttention 3 picks on the device for sequences of one length.

    prepare_varlen_num_blocks_kernel in hopper/flash_prepare_scheduler.cu: as many as give each SM
    its share of all blocks and a tenth more. The bound is vLLM's in CUDA graphs, and
    num_splits_heuristic for one sequence beyond them.
    """
    kv_blocks = tiles.kv_blocks(step.cached_tokens)
    heads_blocks = tiles.units * tiles.query_blocks
    # FP32, in the kernel's order: a product that is whole must not be rounded up.
    total = np.float32(1.1) * (step.batch_size * tiles.query_blocks * kv_blocks).astype(np.float32)
    shared = total * tiles.units.astype(np.float32) / np.float32(step.num_sms)
    blocks_per_sm = np.ceil(shared).astype(np.float64)
    captured = step.batch_size * step.positions <= step.max_graph_tokens
    most = np.where(
        captured,
        MAX_GRAPH_SPLITS,
        efficient_splits(heads_blocks, kv_blocks, step.num_sms, least_blocks=4),
    )
    splits: FloatArray = np.clip(np.ceil(kv_blocks / blocks_per_sm), 1.0, most)
    return splits


FLASH_ATTN_3 = AttentionBackend(
    "FLASH_ATTN_3",
    flash_attention_3_tiles,
    flash_attention_3_splits,
    source="vLLM's FlashAttention: hopper/tile_size.h, flash_prepare_scheduler.cu, heuristics.h",
    assumed=False,
)
