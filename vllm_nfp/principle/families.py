"""The model families that a config.json may name, one table entry each.

An entry says only how a family differs from Llama: a causal decoder whose layers all have
attention and a gated feed-forward block, whose config.json has Llama's field names. Field names
and the defaults of fields that may be left out are those of the configuration classes in
transformers, or of the model's own remote code where transformers lacks the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.family import Family

_WIDTH_IS_EXPERT_WIDTH = {"moe_intermediate_size": ("intermediate_size",)}

_QWEN2 = Family(
    window="upper",
    window_switch=True,
    defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
)
_QWEN3 = replace(_QWEN2, defaults={**_QWEN2.defaults, "head_dim": 128})
_QWEN3_MOE = Family(
    experts=True,
    window="all",
    window_switch=True,
    defaults={"num_key_value_heads": 4, "sliding_window": 4096},
)

_GEMMA = Family(
    defaults={
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "tie_word_embeddings": True,
    }
)
_GEMMA2 = Family(
    window="pattern",
    pattern=2,
    defaults={
        **_GEMMA.defaults,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    },
)
_GEMMA3 = replace(_GEMMA2, pattern=6, defaults={**_GEMMA2.defaults, "vocab_size": 262208})

_MIXTRAL = Family(
    experts=True,
    names=_WIDTH_IS_EXPERT_WIDTH,
    window="all",
    defaults={"num_key_value_heads": 8},
)
_DEEPSEEK = Family(experts=True, latent=True)
_DEEPSEEK_V3 = replace(_DEEPSEEK, defaults={"first_k_dense_replace": 3})
_GLM = Family(defaults={"head_dim": 128, "num_key_value_heads": 2})
_GLM_MOE = Family(experts=True, defaults={"first_k_dense_replace": 1})

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

_TIED = Family(defaults={"tie_word_embeddings": True})
_UNGATED = Family(gated_ffn=False)
_ONE_HEAD_EACH = Family(gated_ffn=False, names={"num_key_value_heads": ()})
_EVERY_FOURTH = Family(window="pattern", pattern=4, defaults={"sliding_window": 4096})
_FIRST_DENSE = Family(experts=True)
_SHARED_WIDTH = {
    **_WIDTH_IS_EXPERT_WIDTH,
    "shared_expert_intermediate_size": ("shared_intermediate_size",),
}
_CHATGLM = Family(
    names={
        "num_hidden_layers": ("num_layers",),
        "intermediate_size": ("ffn_hidden_size",),
        "num_key_value_heads": ("multi_query_group_num",),
        "head_dim": ("kv_channels",),
        "vocab_size": ("padded_vocab_size",),
    },
    only={"multi_query_attention": True},
)
_GPT_BIGCODE = Family(
    gated_ffn=False,
    names={
        "num_hidden_layers": ("n_layer",),
        "hidden_size": ("n_embd",),
        "num_attention_heads": ("n_head",),
        "intermediate_size": ("n_inner",),
    },
    defaults={"num_key_value_heads": 1, "tie_word_embeddings": True},
    only={"multi_query": True},
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
_HUNYUAN_MOE = Family(
    experts=True,
    names={
        "num_experts_per_tok": ("moe_topk",),
        "num_shared_experts": ("num_shared_expert",),
    },
    only={"use_cla": False},
)
_EXAONE4 = replace(
    _EVERY_FOURTH,
    # A string such as LLLG; layer_types says the same of every layer.
    names={"sliding_window_pattern": ()},
)

_QWEN3_NEXT = Family(
    hybrid="gated_delta_net",
    attention_gate=True,
    defaults={"head_dim": 256, "num_key_value_heads": 2},
)
_QWEN3_NEXT_MOE = replace(_QWEN3_NEXT, experts=True, shared_expert_gate=True)
_KIMI_LINEAR = Family(
    experts=True,
    latent=True,
    hybrid="kda",
    names={
        "num_experts_per_tok": ("num_experts_per_token",),
        "expert_hidden_size": ("routed_expert_hidden_size",),
        "attn_output_gate": ("mla_use_output_gate",),
    },
    attention_gate=True,
    defaults={"attn_output_gate": False},
)
_NEMOTRON_H = Family(
    experts=False,
    gated_ffn=False,
    hybrid="nemotron_h",
    names={"mamba_ssm_dtype": ("mamba_ssm_cache_dtype",)},
    # vLLM keeps its states in 32 bits if the config names no type.
    defaults={"default_state_bytes": 4, "num_key_value_heads": 8},
    variant=("n_routed_experts", "nemotron_h_moe"),
)
_NEMOTRON_H_MOE = replace(
    _NEMOTRON_H,
    experts=True,
    variant=None,
    names={
        **_NEMOTRON_H.names,
        "expert_hidden_size": ("moe_latent_size",),
        "shared_expert_intermediate_size": ("moe_shared_expert_intermediate_size",),
    },
)
_MAMBA2_NAMES = {
    "mamba_num_heads": ("mamba_n_heads",),
    "mamba_head_dim": ("mamba_d_head",),
    "mamba_inner": ("mamba_d_ssm",),
    "ssm_state_size": ("mamba_d_state",),
    "n_groups": ("mamba_n_groups",),
    "conv_kernel": ("mamba_d_conv",),
    "expand": ("mamba_expand",),
}
_GRANITE_HYBRID = Family(
    hybrid="granite",
    names={**_MAMBA2_NAMES, "intermediate_size": ("shared_intermediate_size",)},
    defaults={"ssm_state_size": 256, "mamba_num_heads": 128},
    variant=("num_local_experts", "granitemoehybrid_moe"),
)
_LFM2 = Family(
    hybrid="short_conv",
    trimmed_width=True,
    names={"intermediate_size": ("block_ff_dim", "intermediate_size")},
    defaults={"num_key_value_heads": 8, "tie_word_embeddings": True},
)

_INDEXED_DEEPSEEK = replace(
    _DEEPSEEK_V3,
    indexed=True,
    # All layers have the same attention, whatever the list calls it.
    names={"layer_types": ()},
)

_STEP3 = Family(
    experts=True,
    window="pattern",
    pattern=4,
    names={
        "num_experts": ("moe_num_experts", "num_experts"),
        "num_experts_per_tok": ("moe_top_k", "num_experts_per_tok"),
        "shared_expert_intermediate_size": ("share_expert_dim", "share_expert_dims"),
    },
    # Others have sliding layers with more heads, or name their layers with experts in a string.
    only={"attention_other_setting": None, "moe_layers_enum": None},
)
_LONGCAT = Family(
    experts=True,
    latent=True,
    doubled=True,
    names={
        "num_hidden_layers": ("num_layers", "num_hidden_layers"),
        "intermediate_size": ("ffn_hidden_size", "intermediate_size"),
        "moe_intermediate_size": ("expert_ffn_hidden_size",),
        "num_experts_per_tok": ("moe_topk",),
    },
)

FAMILIES: Mapping[str, Family] = {
    # Dense
    "llama": Family(),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "mistral": Family(window="all", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "ministral3": Family(window="all", defaults={"num_key_value_heads": 8, "head_dim": 128}),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi": Family(gated_ffn=False),
    "phi3": Family(window="all"),
    "glm": _GLM,
    "glm4": _GLM,
    "glm4v": Family(),
    "glm4v_text": Family(),
    "chatglm": _CHATGLM,
    "qwen2_vl": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen2_5_omni_text": _QWEN2,
    "qwen2_audio": _QWEN2,
    "qwen3_vl_text": _QWEN3,
    "mimo": _QWEN2,
    "arcee": _UNGATED,
    "nemotron": _UNGATED,
    "apertus": _UNGATED,
    "persimmon": _ONE_HEAD_EACH,
    "gpt_neox": _ONE_HEAD_EACH,
    "gpt_bigcode": _GPT_BIGCODE,
    "starcoder2": Family(
        gated_ffn=False,
        window="all",
        defaults={"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "granite": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": _EVERY_FOURTH,
    "exaone": Family(names={"num_hidden_layers": ("num_layers", "num_hidden_layers")}),
    "exaone4": _EXAONE4,
    "exaone4_5_text": _EXAONE4,
    "seed_oss": Family(),
    "smollm3": Family(defaults={"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "cohere": _TIED,
    "cohere2": replace(
        _EVERY_FOURTH, defaults={**_EVERY_FOURTH.defaults, "tie_word_embeddings": True}
    ),
    "ernie4_5": _TIED,
    "hunyuan_v1_dense": Family(),
    "internlm": Family(),
    "internlm2": Family(),
    "internlm3": Family(),
    "baichuan": Family(),
    "minicpm": _TIED,
    "nemotron-nas": Family(pruned=True),
    "minicpm3": Family(
        latent=True,
        absorbed=False,
        defaults={"v_head_dim": 64, "tie_word_embeddings": True},
    ),
    "molmo": replace(
        _QWEN2,
        fused_width=True,
        names={"tie_word_embeddings": ("weight_tying",)},
        defaults={},
    ),
    "qwen": Family(fused_width=True),
    "stablelm": Family(),
    "orion": Family(),
    "solar": Family(),
    "phi4mm": Family(window="all"),
    "phi4_multimodal": Family(window="all"),
    # Mixture of experts
    "mixtral": _MIXTRAL,
    "phimoe": _MIXTRAL,
    "olmoe": replace(_MIXTRAL, defaults={"num_key_value_heads": 16}),
    "qwen2_moe": Family(
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
    ),
    "qwen3_moe": _QWEN3_MOE,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "gpt_oss": Family(
        experts=True,
        names=_WIDTH_IS_EXPERT_WIDTH,
        window="pattern",
        pattern=2,
        defaults={"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
    ),
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "qwen3_omni_moe_text": _QWEN3_MOE,
    "minimax_m2": Family(experts=True, names=_WIDTH_IS_EXPERT_WIDTH),
    "granitemoe": Family(experts=True, names=_WIDTH_IS_EXPERT_WIDTH),
    "granitemoeshared": Family(experts=True, names=_SHARED_WIDTH),
    "dots1": _FIRST_DENSE,
    "deepseek": _FIRST_DENSE,
    "bailing_moe": _FIRST_DENSE,
    "bailing_moe_v2": _FIRST_DENSE,
    "ernie4_5_moe": _ERNIE_MOE,
    "hunyuan_v1_moe": _HUNYUAN_MOE,
    "glm4v_moe_text": _GLM_MOE,
    "step3p5": _STEP3,
    "step3p7": _STEP3,
    "longcat_flash": _LONGCAT,
    "glm4_moe": _GLM_MOE,
    "deepseek_v32": _INDEXED_DEEPSEEK,
    "glm_moe_dsa": _INDEXED_DEEPSEEK,
    "glm4_moe_lite": replace(_GLM_MOE, latent=True),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    # Hybrid: some layers keep a state instead of a cache
    "qwen3_next": _QWEN3_NEXT_MOE,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT_MOE,
    "kimi_linear": _KIMI_LINEAR,
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": _NEMOTRON_H_MOE,
    "granitemoehybrid": _GRANITE_HYBRID,
    "granitemoehybrid_moe": replace(
        _GRANITE_HYBRID,
        experts=True,
        variant=None,
        names={**_MAMBA2_NAMES, **_SHARED_WIDTH},
    ),
    "falcon_h1": Family(
        hybrid="falcon_h1",
        names=_MAMBA2_NAMES,
        defaults={"ssm_state_size": 256, "mamba_num_heads": 128},
    ),
    "jamba": Family(
        experts=True,
        hybrid="jamba",
        names={**_WIDTH_IS_EXPERT_WIDTH, "decoder_sparse_step": ("expert_layer_period",)},
        defaults={
            "num_key_value_heads": 8,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 2,
        },
        only={"expert_layer_offset": 1, "mamba_proj_bias": False},
    ),
    "lfm2": _LFM2,
    "lfm2_moe": Family(
        experts=True,
        hybrid="short_conv",
        names={"first_k_dense_replace": ("num_dense_layers",)},
        defaults={"num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
    # Diffusion
    "llada": _LLADA,
    "lladamoe": _LLADA_MOE,
    "llada_moe": _LLADA_MOE,
    "llada2_moe": replace(_QWEN3_MOE, diffusion=True),
    "dream": replace(_QWEN2, diffusion=True),
    "fast_dllm_qwen": replace(_QWEN2, diffusion=True),
    "sdar": replace(_QWEN3, diffusion=True),
    "sdar_moe": replace(_QWEN3_MOE, diffusion=True),
}
"""By model_type in lower case."""


def named_families() -> list[str]:
    """The families that a message lists: without parts of wrappers and variants of one name."""
    variants = {entry.variant[1] for entry in FAMILIES.values() if entry.variant is not None}
    return sorted(name for name in set(FAMILIES) - variants if not name.endswith("_text"))


_INDEXED = "its attention reads only the tokens that an indexer picks"
_LINEAR = "some of its layers keep a state of fixed size instead of a cache"
_UNEVEN = "its layers differ in head size or share their caches"

UNDESCRIBED: Mapping[str, str] = {
    "deepseek_v4": _INDEXED,
    "mamba": _LINEAR,
    "mamba2": _LINEAR,
    "gemma3n_text": _UNEVEN,
    "gemma4_text": _UNEVEN,
    "diffusion_gemma_text": _UNEVEN,
}
"""Families that a shape cannot describe, with the reason; not even as dense."""
