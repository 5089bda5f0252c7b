"""The model families that a config.json may name, one table entry each.

An entry says only how a family differs from Llama: a causal decoder whose layers all have
attention and a gated feed-forward block, whose config.json has Llama's field names. Field names
and the defaults of fields that may be left out are those of the configuration classes in
transformers, or of the model's own remote code where transformers lacks the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Window = Literal["none", "all", "upper", "alternate", "pattern"]
"""Layers that slide where the config lists no layer_types: none; all; those from
max_window_layers on; every other one below max_window_layers; all but every pattern-th."""


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's config and layers differ from Llama's."""

    experts: bool = False
    latent: bool = False
    """Multi-head latent attention."""
    gated_ffn: bool = True
    """Feed-forward blocks have a gate beside the up projection."""
    shared_expert_gate: bool = False
    """A one-column matrix scales the shared expert of every token."""
    diffusion: bool = False
    """Decodes blocks whose positions all see each other."""
    window: Window = "none"
    window_switch: bool = False
    """Layers slide only if use_sliding_window is true."""
    pattern: int = 0
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """This family's names of a field, first found first; other fields have Llama's names."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of fields that the config leaves out; an explicit null is no value."""
    only: Mapping[str, object] = field(default_factory=dict)
    """Fields that must have this value, if given: the shape describes no other."""
    variant: tuple[str, str] | None = None
    """A field and the family that a config with this field belongs to instead."""


COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token"),
    "num_shared_experts": ("num_shared_experts", "n_shared_experts"),
    # canvas_length is what vLLM itself knows diffusion models by.
    "diffusion_block_size": ("canvas_length", "block_size", "bd_size"),
}
"""Names of a field in any family whose entry does not say otherwise."""

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
    "glm4_moe": _GLM_MOE,
    "glm4_moe_lite": replace(_GLM_MOE, latent=True),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
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

_INDEXED = "its attention reads only the tokens that an indexer picks"
_LINEAR = "some of its layers keep a state of fixed size instead of a cache"
_UNEVEN = "its layers differ in head size or share their caches"

UNDESCRIBED: Mapping[str, str] = {
    "deepseek_v32": _INDEXED,
    "deepseek_v4": _INDEXED,
    "glm_moe_dsa": _INDEXED,
    "qwen3_next": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "kimi_linear": _LINEAR,
    "nemotron_h": _LINEAR,
    "jamba": _LINEAR,
    "mamba": _LINEAR,
    "mamba2": _LINEAR,
    "gemma3n_text": _UNEVEN,
    "gemma4_text": _UNEVEN,
    "diffusion_gemma_text": _UNEVEN,
}
"""Families that a shape cannot describe, with the reason; not even as dense."""
