"""vLLM's Triton kernel for latent attention."""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.attention.tiling import AttentionBackend, AttentionStep, Tiles, tiles_of
from vllm_nfp.principle.terms import FloatArray


def triton_mla_tiles(step: AttentionStep) -> Tiles:
    """vLLM's triton_mla.py: each position walks the cache by itself, 16 heads in a block."""
    units = step.heads.kv_heads * step.positions
    return tiles_of(step, 16, 32, rows=np.full_like(step.positions, step.heads.group), units=units)


def triton_mla_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """_compute_num_kv_splits in v1/attention/backends/mla/triton_mla.py: 512 tokens or more."""
    ideal = np.maximum(1.0, step.cached_tokens // 512)
    splits: FloatArray = np.minimum(2.0 ** np.ceil(np.log2(ideal)), 2.0 * step.num_sms)
    return splits


TRITON_MLA = AttentionBackend(
    "TRITON_MLA",
    triton_mla_tiles,
    triton_mla_splits,
    source="vLLM 0.32: v1/attention/backends/mla/triton_mla.py",
)
