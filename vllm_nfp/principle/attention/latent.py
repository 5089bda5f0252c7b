"""Kernels for latent attention (MLA) that pack all heads and positions into query blocks."""

from __future__ import annotations

from vllm_nfp.principle.attention.flash_attention_3 import flash_attention_3_splits
from vllm_nfp.principle.attention.tiling import (
    AttentionBackend,
    TileRule,
    filling_splits,
    tiles_of,
)


def mla_tiles(tile_rows: int, tile_tokens: int = 64) -> TileRule:
    """All heads and positions of a sequence packed into blocks of ``tile_rows``."""
    return lambda step: tiles_of(step, tile_rows, tile_tokens)


FLASH_ATTN_MLA = AttentionBackend(
    "FLASH_ATTN_MLA",
    mla_tiles(64),
    flash_attention_3_splits,
    source="hopper/tile_size.h for head sizes 64 and 512; bound on splits assumed",
)
FLASHMLA = AttentionBackend(
    "FLASHMLA",
    mla_tiles(64),
    filling_splits,
    source="FlashMLA's blocks of 64 rows and 64 tokens; its scheduler assumed to fill",
)
CUTLASS_MLA = AttentionBackend(
    "CUTLASS_MLA", mla_tiles(128, 128), filling_splits, source="assumed: 128 rows"
)
FLASHINFER_MLA = AttentionBackend(
    "FLASHINFER_MLA", mla_tiles(128, 128), filling_splits, source="assumed: 128 rows"
)
