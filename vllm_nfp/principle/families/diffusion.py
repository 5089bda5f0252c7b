"""Families that decode blocks whose positions all see each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.families.shared import QWEN2, QWEN3, QWEN3_MOE
from vllm_nfp.principle.family import Family

_LLADA = Family(
    diffusion=True,
    names={
        "hidden_size": ("d_model", "hidden_size"),
        "num_hidden_layers": ("n_layers", "num_hidden_layers"),
        "num_attention_heads": ("n_heads", "num_attention_heads"),
        "num_key_value_heads": ("n_kv_heads", "num_key_value_heads"),
        "intermediate_size": ("mlp_hidden_size", "intermediate_size"),
        # The embedding is padded; the vocabulary alone would be too small.
        "vocab_size": ("embedding_size", "vocab_size"),
        "tie_word_embeddings": ("weight_tying", "tie_word_embeddings"),
    },
    # The other layouts of this code have no gate; multi-query configs give no n_kv_heads.
    only={"block_type": "llama", "multi_query_attention": False},
    variant=("num_experts", "lladamoe"),
)
_LLADA_MOE = Family(
    experts=True,
    diffusion=True,
    names={
        "intermediate_size": ("dense_intermediate_size", "intermediate_size"),
        "moe_intermediate_size": ("expert_intermediate_size", "moe_intermediate_size"),
    },
)

DIFFUSION: Mapping[str, Family] = {
    "llada": _LLADA,
    "lladamoe": _LLADA_MOE,
    "llada_moe": _LLADA_MOE,
    "llada2_moe": replace(QWEN3_MOE, diffusion=True),
    "dream": replace(QWEN2, diffusion=True),
    "fast_dllm_qwen": replace(QWEN2, diffusion=True),
    "sdar": replace(QWEN3, diffusion=True),
    "sdar_moe": replace(QWEN3_MOE, diffusion=True),
}
