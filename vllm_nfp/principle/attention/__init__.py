"""Decode attention of one layer: a time model, and a file of tile and split rules per backend."""

from vllm_nfp.principle.attention.choice import (
    ATTENTION_BACKENDS,
    backend_by_name,
    check_backend,
    default_backend,
)
from vllm_nfp.principle.attention.flash_attention_3 import FLASH_ATTN_3
from vllm_nfp.principle.attention.seconds import (
    H100_ATTENTION,
    AttentionConstants,
    attention_terms,
    fixed_seconds,
    latent_cost,
)
from vllm_nfp.principle.attention.tiling import (
    MAX_GRAPH_TOKENS,
    AttentionBackend,
    AttentionStep,
    Schedule,
    Tiles,
    efficient_splits,
    granularity,
)

__all__ = [
    "ATTENTION_BACKENDS",
    "FLASH_ATTN_3",
    "H100_ATTENTION",
    "MAX_GRAPH_TOKENS",
    "AttentionBackend",
    "AttentionConstants",
    "AttentionStep",
    "Schedule",
    "Tiles",
    "attention_terms",
    "backend_by_name",
    "check_backend",
    "default_backend",
    "efficient_splits",
    "fixed_seconds",
    "granularity",
    "latent_cost",
]
