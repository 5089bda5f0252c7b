"""Entries and names that several families have in common."""

from __future__ import annotations

from dataclasses import replace

from vllm_nfp.principle.family import Family

LLAMA = Family()
TIED = Family(defaults={"tie_word_embeddings": True})
WIDTH_IS_EXPERT_WIDTH = {"moe_intermediate_size": ("intermediate_size",)}
SHARED_WIDTH = {
    **WIDTH_IS_EXPERT_WIDTH,
    "shared_expert_intermediate_size": ("shared_intermediate_size",),
}
ROUTED = Family(experts=True)
"""Experts under Llama-like names, and dense first layers if the config says so."""
WINDOWS = Family(window="all")
"""Every layer slides if the config has a window and no list of layers."""
EVERY_FOURTH = Family(window="pattern", pattern=4, defaults={"sliding_window": 4096})
QWEN2 = Family(
    window="upper",
    window_switch=True,
    defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
)
QWEN3 = replace(QWEN2, defaults={**QWEN2.defaults, "head_dim": 128})
QWEN3_MOE = Family(
    experts=True,
    window="all",
    window_switch=True,
    defaults={"num_key_value_heads": 4, "sliding_window": 4096},
)
DEEPSEEK = Family(experts=True, latent=True)
DEEPSEEK_V3 = replace(
    DEEPSEEK,
    defaults={"first_k_dense_replace": 3},
    # The model's code is the same: this field decides (vLLM, models/deepseek_v2.py).
    variant=("index_topk", "deepseek_v3_indexed"),
)
GLM_MOE = Family(experts=True, defaults={"first_k_dense_replace": 1})
