"""Families whose layers differ from one another in their heads, caches or widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.family import Family

_GEMMA3N = Family(
    special="gemma",
    window="pattern",
    pattern=5,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 15,
        "sliding_window": 512,
        "laurel_rank": 64,
        "altup_num_inputs": 4,
        "tie_word_embeddings": True,
    },
)
_GEMMA4 = Family(
    special="gemma",
    window="pattern",
    pattern=6,
    # One KV head count for all where values are no keys (models/gemma4.py).
    full={
        "head_dim": ("global_head_dim",),
        "num_key_value_heads": ("num_global_key_value_heads",),
    },
    names={"num_experts_per_tok": ("top_k_experts",)},
    defaults={
        "global_head_dim": 512,
        "head_dim": 256,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "sliding_window": 512,
        "tie_word_embeddings": True,
    },
    variant=("enable_moe_block", "gemma4_moe"),
)
_OTHER_KIND = "attention_other_setting.attention_type"
_STEP3 = Family(
    experts=True,
    window="pattern",
    pattern=4,
    gate="heads",
    names={
        "num_experts": ("moe_num_experts", "num_experts"),
        "num_experts_per_tok": ("moe_top_k", "num_experts_per_tok"),
        "num_key_value_heads": ("num_attention_groups", "num_key_value_heads"),
        "shared_expert_intermediate_size": ("share_expert_dim", "share_expert_dims"),
        "attn_output_gate": ("use_head_wise_attn_gate",),
        "moe_layers": ("moe_layers_enum", "moe_layers"),
        _OTHER_KIND: (_OTHER_KIND,),
        "other_heads": ("attention_other_setting.num_attention_heads",),
        "other_kv_heads": ("attention_other_setting.num_attention_groups",),
        "other_head_dim": ("attention_other_setting.head_dim",),
    },
    sliding={
        "num_attention_heads": ("other_heads",),
        "num_key_value_heads": ("other_kv_heads",),
        "head_dim": ("other_head_dim",),
    },
    defaults={"attn_output_gate": False},
    only={_OTHER_KIND: "sliding_attention"},
)
_MIMO_V2 = Family(
    experts=True,
    names={
        "sliding_window": ("sliding_window_size", "sliding_window"),
        "sliding_layers": ("hybrid_layer_pattern",),
    },
    sliding={
        "num_attention_heads": ("swa_num_attention_heads",),
        "num_key_value_heads": ("swa_num_key_value_heads",),
        "head_dim": ("swa_head_dim",),
        "v_head_dim": ("swa_v_head_dim",),
    },
)
_LONGCAT = Family(
    experts=True,
    special="ngram",
    latent=True,
    doubled=True,
    names={
        "num_hidden_layers": ("num_layers", "num_hidden_layers"),
        "intermediate_size": ("ffn_hidden_size", "intermediate_size"),
        "moe_intermediate_size": ("expert_ffn_hidden_size",),
        "num_experts_per_tok": ("moe_topk",),
    },
)

_DEEPSEEK_V4 = Family(
    experts=True,
    special="deepseek_v4",
    names={"mlp_layer_types": (), "sliding_window": ("sliding_window", "window_size")},
    defaults={"sliding_window": 128, "num_key_value_heads": 1, "head_dim": 512},
)
_MINIMAX_M3 = Family(
    experts=True,
    special="minimax_m3",
    names={
        "intermediate_size": ("dense_intermediate_size",),
        "moe_intermediate_size": ("moe_intermediate_size", "intermediate_size"),
        "shared_expert_intermediate_size": ("shared_intermediate_size",),
        "sparse_layers": ("sparse_attention_config.sparse_attention_freq",),
        "index_head_dim": ("index_head_dim", "sparse_attention_config.sparse_index_dim"),
        "index_n_heads": ("index_n_heads", "sparse_attention_config.sparse_num_index_heads"),
        "index_topk_blocks": (
            "index_topk_blocks",
            "sparse_attention_config.sparse_topk_blocks",
        ),
        "index_block_size": ("index_block_size", "sparse_attention_config.sparse_block_size"),
    },
    defaults={"head_dim": 128, "num_key_value_heads": 4},
    only={"attention_output_gate": False},
)
_INKLING = Family(
    experts=True,
    special="inkling",
    names={
        "sliding_window": ("sliding_window_size",),
        "sliding_layer_ids": ("local_layer_ids",),
    },
    sliding={
        "num_attention_heads": ("swa_num_attention_heads",),
        "num_key_value_heads": ("swa_num_key_value_heads",),
        "head_dim": ("swa_head_dim",),
    },
    defaults={"head_dim": 128, "num_key_value_heads": 8, "d_rel": 16},
)
_STEP3_TEXT = Family(
    experts=True,
    special="step3",
    names={
        "num_experts": ("moe_num_experts",),
        "num_experts_per_tok": ("moe_top_k",),
        "shared_expert_intermediate_size": ("share_expert_dim",),
        "moe_layers": ("moe_layers_enum",),
    },
    # The first four layers and the last are dense (transformers_utils/configs/step3_vl.py).
    defaults={
        "num_key_value_heads": 1,
        "head_dim": 256,
        "share_q_dim": 2048,
        "moe_layers": list(range(4, 60)),
    },
)
_STEP5 = replace(
    _STEP3,
    special="step5",
    names={
        **_STEP3.names,
        "moe_layers": ("moe_layers_enum", "moe_layer_list"),
        # All layers with the drafting ones after them, in configs that the class has written.
        "layer_types": ("layer_types", "layer_types_with_mtp"),
        "index_head_dim": ("sparse_config.proxy_dim",),
        "index_n_heads": ("sparse_config.sparse_indexer_num_heads",),
        "index_topk_blocks": ("sparse_config.topk",),
        "index_block_size": ("sparse_config.region_block_size",),
        "sparse_config.enabled": ("sparse_config.enabled",),
        "first_k_dense_replace": (),
    },
    sliding={**_STEP3.sliding, "num_attention_heads": ("other_heads", "swa_num_attention_heads")},
    # The class has no such gate by default, and vLLM 0.33 serves no model without it.
    defaults={"attn_output_gate": True, "num_key_value_heads": 8, "first_k_dense_replace": 1},
    only={**_STEP3.only, "use_head_wise_attn_gate": True},
    assumed=(
        "Each rank is taken to have the whole indexer; vLLM shares its heads out among ranks.",
    ),
)
_DOMYN_EDGE = Family(
    special="domyn_edge",
    defaults={"num_key_value_heads": 8, "tie_word_embeddings": True},
)

UNLIKE: Mapping[str, Family] = {
    "deepseek_v4": _DEEPSEEK_V4,
    "minimax_m3": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "inkling_text": _INKLING,
    "inkling_model": _INKLING,
    "step3_text": _STEP3_TEXT,
    "hy_v4": Family(
        experts=True,
        latent=True,
        indexed=True,
        special="hy_v4",
        gate="elements",
        names={"layer_types": ()},
        defaults={"first_k_dense_replace": 1},
    ),
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_moe": replace(_GEMMA4, experts=True, beside_experts=True, variant=None),
    "gemma4_unified_text": replace(
        _GEMMA4, defaults={**_GEMMA4.defaults, "hidden_size_per_layer_input": 0}
    ),
    "diffusion_gemma_text": replace(
        _GEMMA4, diffusion=True, variant=("enable_moe_block", "diffusion_gemma_moe")
    ),
    "diffusion_gemma_moe": replace(
        _GEMMA4, diffusion=True, experts=True, beside_experts=True, variant=None
    ),
    "step3p5": _STEP3,
    "step3p7": _STEP3,
    "step5": _STEP5,
    "domynedge": _DOMYN_EDGE,
    "mimo_v2_flash": _MIMO_V2,
    "mimo_v2": _MIMO_V2,
    "mimo_v2_omni": _MIMO_V2,
    "longcat_flash": _LONGCAT,
    "laguna": Family(
        experts=True,
        gate="heads",
        window="all",
        names={"attn_output_gate": ("gating",)},
        defaults={"head_dim": 128, "num_key_value_heads": 8},
    ),
}
