"""Families of which some layers keep a state instead of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.families.shared import SHARED_WIDTH, WIDTH_IS_EXPERT_WIDTH
from vllm_nfp.principle.family import Family

_QWEN3_NEXT = Family(
    hybrid="gated_delta_net",
    gate="elements",
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
    gate="elements",
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
    # Nemotron-H Puzzle, whose experts differ from layer to layer.
    only={"block_configs": None},
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
_MAMBA2_DEFAULTS = {"ssm_state_size": 256, "mamba_num_heads": 128}
_GRANITE = Family(
    hybrid="granite",
    names={**_MAMBA2_NAMES, "intermediate_size": ("shared_intermediate_size",)},
    defaults=_MAMBA2_DEFAULTS,
    variant=("num_local_experts", "granitemoehybrid_moe"),
)
_LFM2 = Family(
    hybrid="short_conv",
    trimmed_width=True,
    names={"intermediate_size": ("block_ff_dim", "intermediate_size")},
    defaults={"num_key_value_heads": 8, "tie_word_embeddings": True},
)
_NO_ATTENTION = {"num_attention_heads": 1, "head_dim": 1, "intermediate_size": 1}
"""Sizes that a model without attention and feed-forward blocks has no use for."""
_MAMBA = Family(
    hybrid="mamba",
    names={
        "num_attention_heads": (),
        "head_dim": (),
        "intermediate_size": (),
        "mamba_inner": ("intermediate_size",),
        "mamba_expand": ("expand",),
        "mamba_d_state": ("state_size",),
        "mamba_dt_rank": ("time_step_rank",),
        "mamba_d_conv": ("conv_kernel",),
    },
    defaults={**_NO_ATTENTION, "tie_word_embeddings": True},
)
_BAILING_NAMES = {
    "shared_expert_intermediate_size": ("moe_shared_expert_intermediate_size",),
}

RECURRENT: Mapping[str, Family] = {
    "qwen3_next": _QWEN3_NEXT_MOE,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT_MOE,
    # Every layer has experts, whatever the fields of Qwen3-Next say (vLLM 0.33, alice_ai.py).
    "alice_ai": replace(
        _QWEN3_NEXT_MOE,
        hybrid="glm_kda",
        special="attention_residual",
        names={
            "linear_num_heads": ("linear_num_key_heads",),
            "linear_head_dim": ("linear_key_head_dim",),
            "mlp_only_layers": (),
            "decoder_sparse_step": (),
        },
        defaults={**_QWEN3_NEXT.defaults, "linear_num_heads": 32, "linear_head_dim": 128},
        only={
            "linear_num_value_heads": "=linear_num_heads",
            "linear_value_head_dim": "=linear_head_dim",
        },
    ),
    "olmo_hybrid": Family(hybrid="gated_delta_net"),
    "kimi_linear": _KIMI_LINEAR,
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": _NEMOTRON_H_MOE,
    "granitemoehybrid": _GRANITE,
    "granitemoehybrid_moe": replace(
        _GRANITE,
        experts=True,
        variant=None,
        names={**_MAMBA2_NAMES, **SHARED_WIDTH},
    ),
    "bamba": Family(hybrid="granite", names=_MAMBA2_NAMES, defaults=_MAMBA2_DEFAULTS),
    "falcon_h1": Family(hybrid="falcon_h1", names=_MAMBA2_NAMES, defaults=_MAMBA2_DEFAULTS),
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": Family(
        hybrid="mamba2",
        names={
            "num_attention_heads": (),
            "head_dim": (),
            "intermediate_size": (),
            "mamba_num_heads": ("num_heads",),
            "mamba_head_dim": ("head_dim",),
            "ssm_state_size": ("state_size",),
        },
        defaults=_NO_ATTENTION,
    ),
    "jamba": Family(
        experts=True,
        hybrid="jamba",
        names={**WIDTH_IS_EXPERT_WIDTH, "decoder_sparse_step": ("expert_layer_period",)},
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
    "glm5_next_text": Family(
        experts=True,
        latent=True,
        indexed=True,
        hybrid="glm_kda",
        special="glm5_next",
        defaults={"first_k_dense_replace": 3},
    ),
    "bailing_moe_linear": Family(
        experts=True, latent=True, hybrid="lightning", names=_BAILING_NAMES
    ),
    "bailing_moe_v3": Family(
        experts=True,
        latent=True,
        hybrid="bailing_kda",
        gate="elements",
        names={
            **_BAILING_NAMES,
            "attn_output_gate": ("gated_attention_proj_granularity_type",),
        },
        defaults={"attn_output_gate": False},
        only={"no_kda_lora": True},
    ),
}
