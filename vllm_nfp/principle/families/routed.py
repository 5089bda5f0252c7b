"""Families with experts, whose layers are alike but for windows and dense layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.families.shared import (
    DEEPSEEK,
    DEEPSEEK_V3,
    EVERY_FOURTH,
    GLM_MOE,
    QWEN3_MOE,
    ROUTED,
    SHARED_WIDTH,
    WIDTH_IS_EXPERT_WIDTH,
)
from vllm_nfp.principle.family import Family

_MIXTRAL = Family(
    experts=True,
    names=WIDTH_IS_EXPERT_WIDTH,
    window="all",
    defaults={"num_key_value_heads": 8},
)
_LLAMA4 = Family(
    experts=True,
    window="pattern",
    pattern=4,
    names={
        "intermediate_size": ("intermediate_size_mlp",),
        "moe_intermediate_size": ("intermediate_size",),
        "decoder_sparse_step": ("interleave_moe_layer_step",),
        # A layer with rotary embedding attends within its chunk of this many tokens.
        "sliding_window": ("attention_chunk_size",),
        "sliding_layers": ("no_rope_layers",),
    },
    defaults={
        "intermediate_size": 16384,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_experts_per_tok": 1,
        "num_shared_experts": 1,
        "sliding_window": 8192,
    },
)
_ERNIE_MOE = Family(
    experts=True,
    names={
        "num_experts": ("moe_num_experts",),
        "num_experts_per_tok": ("moe_k",),
        "num_shared_experts": ("moe_num_shared_experts",),
        "first_k_dense_replace": ("moe_layer_start_index",),
        "decoder_sparse_step": ("moe_layer_interval",),
    },
    defaults={"tie_word_embeddings": True},
)
# Of pairs, the first is that of text.
_ERNIE_VL = replace(
    _ERNIE_MOE,
    special="pairs",
    names={
        **_ERNIE_MOE.names,
        "first_k_dense_replace": ("moe_layer_start_index",),
        "expert_widths": ("moe_intermediate_size",),
    },
    defaults={"tie_word_embeddings": True, "first_k_dense_replace": 1},
)
_HUNYUAN_MOE = Family(
    experts=True,
    names={
        "num_experts_per_tok": ("moe_topk",),
        "num_shared_experts": ("num_shared_expert",),
        # Old configs have one width for all.
        "moe_intermediate_size": ("moe_intermediate_size", "intermediate_size"),
    },
    only={"use_cla": False},
)
_QWEN2_MOE = Family(
    experts=True,
    shared_expert_gate=True,
    window="alternate",
    window_switch=True,
    defaults={
        "num_key_value_heads": 16,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "shared_expert_intermediate_size": 5632,
    },
)
_INDEXED_DEEPSEEK = replace(
    DEEPSEEK_V3,
    indexed=True,
    variant=None,
    # All layers have the same attention, whatever the list calls it.
    names={"layer_types": ()},
)
_BAILING = Family(
    experts=True,
    names={"shared_expert_intermediate_size": ("moe_shared_expert_intermediate_size",)},
)
_SARVAM = replace(_BAILING, defaults={"first_k_dense_replace": 1, "num_shared_experts": 1})
_OWN_KERNELS = (
    "vLLM 0.33 has kernels of its own for this family on some GPUs, which were never timed: the "
    "times are those of the usual kernels."
)

ROUTED_FAMILIES: Mapping[str, Family] = {
    "mixtral": _MIXTRAL,
    "phimoe": _MIXTRAL,
    "flex_olmo": replace(_MIXTRAL, defaults={}),
    "olmoe": replace(_MIXTRAL, defaults={"num_key_value_heads": 16}),
    "qwen2_moe": _QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "qwen3_vl_moe_text": QWEN3_MOE,
    "qwen3_omni_moe_text": QWEN3_MOE,
    "interns1_pro_text": QWEN3_MOE,
    "ovis2_6_moe": QWEN3_MOE,
    "deepseek": ROUTED,
    "deepseek_v2": replace(DEEPSEEK, without=("use_mla", "deepseek")),
    "deepseek_vl_v2": replace(DEEPSEEK, without=("use_mla", "deepseek")),
    "deepseek_ocr": ROUTED,
    "deepseek_ocr2_text": ROUTED,
    "mistral4": DEEPSEEK_V3,
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,
    "mistral_large_3": DEEPSEEK_V3,
    "pangu_ultra_moe": DEEPSEEK_V3,
    "axk1": replace(DEEPSEEK_V3, defaults={"first_k_dense_replace": 1}),
    "sarvam_mla": replace(_SARVAM, latent=True),
    "deepseek_v3_indexed": _INDEXED_DEEPSEEK,
    "deepseek_v32": _INDEXED_DEEPSEEK,
    "glm_moe_dsa": _INDEXED_DEEPSEEK,
    "gpt_oss": Family(
        experts=True,
        names=WIDTH_IS_EXPERT_WIDTH,
        window="pattern",
        pattern=2,
        defaults={"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
    ),
    "minimax_m2": Family(experts=True, names=WIDTH_IS_EXPERT_WIDTH),
    "granitemoe": Family(experts=True, names=WIDTH_IS_EXPERT_WIDTH),
    "granitemoeshared": Family(experts=True, names=SHARED_WIDTH),
    "granitemoe_swa": Family(experts=True, window="all", names=SHARED_WIDTH),
    "dots1": ROUTED,
    "bailing_moe": _BAILING,
    "bailing_moe_v2": _BAILING,
    "param2moe": _SARVAM,
    "sarvam_moe": _SARVAM,
    "ernie4_5_moe": _ERNIE_MOE,
    "ernie4_5_vl_moe_text": _ERNIE_VL,
    "ernie4_5_moe_vl": _ERNIE_VL,
    "hunyuan_v1_moe": _HUNYUAN_MOE,
    "hunyuan": _HUNYUAN_MOE,
    "hy_v3": Family(experts=True, defaults={"first_k_dense_replace": 1, "head_dim": 128}),
    "glm4_moe": GLM_MOE,
    "glm4v_moe_text": GLM_MOE,
    "glm4_moe_lite": replace(GLM_MOE, latent=True),
    "solar_open": Family(experts=True, defaults={"head_dim": 128}),
    "afmoe": Family(
        experts=True,
        gate="elements",
        window="pattern",
        pattern=4,
        names={
            "first_k_dense_replace": ("num_dense_layers",),
            "sliding_window_pattern": ("global_attn_every_n_layers",),
        },
        defaults={"first_k_dense_replace": 1, "sliding_window": 1024},
    ),
    "aria_text": Family(
        experts=True,
        names={
            **WIDTH_IS_EXPERT_WIDTH,
            "num_experts": ("moe_num_experts",),
            "num_experts_per_tok": ("moe_topk",),
            "num_shared_experts": ("moe_num_shared_experts",),
        },
    ),
    "cohere2_moe": Family(
        experts=True,
        window="pattern",
        pattern=4,
        names={
            "intermediate_size": ("prefix_dense_intermediate_size", "intermediate_size"),
            "moe_intermediate_size": ("intermediate_size",),
        },
        defaults={"tie_word_embeddings": True, "sliding_window": 4096},
    ),
    "dbrx": Family(
        experts=True,
        names={
            "num_hidden_layers": ("n_layers",),
            "hidden_size": ("d_model",),
            "num_attention_heads": ("n_heads",),
            "num_key_value_heads": ("attn_config.kv_n_heads",),
            "num_experts": ("ffn_config.moe_num_experts",),
            "num_experts_per_tok": ("ffn_config.moe_top_k",),
            "moe_intermediate_size": ("ffn_config.ffn_hidden_size",),
        },
    ),
    "exaone_moe": replace(
        EVERY_FOURTH,
        experts=True,
        names={"sliding_window_pattern": (), "moe_layer_freq": ("is_moe_layer",)},
        defaults={"sliding_window": 4096, "first_k_dense_replace": 1},
    ),
    "mellum": Family(experts=True, window="all", defaults={"head_dim": 128}),
    "k2_horizon": Family(
        experts=True,
        gate="elements",
        names={"attn_output_gate": ("attention_gate_func",)},
        defaults={"attn_output_gate": False},
        # Experts of the attention's values.
        only={"mova_num_experts": None},
    ),
    "kolibri1": Family(
        experts=True,
        window="pattern",
        pattern=5,
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 128,
            "sliding_window": 513,
            "shared_expert_intermediate_size": 512,
        },
    ),
    "beam": Family(
        experts=True,
        gate="elements",
        window="all",
        defaults={"num_key_value_heads": 4, "sliding_window": 4096},
        assumed=(_OWN_KERNELS,),
    ),
    "flint": Family(
        experts=True,
        window_switch=True,
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 128,
            "use_sliding_window": True,
            "sliding_window": 513,
            "shared_expert_intermediate_size": 1024,
        },
        assumed=(_OWN_KERNELS,),
    ),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
}
