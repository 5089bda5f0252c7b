"""Models of known shape, as a config.json alone: vLLM's dummy loader makes up the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vllm_nfp.calibrate.reference_models import LLAMA_FIELDS, size_fields
from vllm_nfp.files import write_whole

_QWEN3: Mapping[str, object] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "head_dim": 128,
    "num_attention_heads": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

_QWEN25_VISION: Mapping[str, object] = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}

_QWEN25_VL: Mapping[str, object] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_config": _QWEN25_VISION,
}

_TINY: Mapping[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}

_TINY_DENSE: Mapping[str, object] = {
    **_QWEN3,
    **_TINY,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
}

SHAPES: Mapping[str, Mapping[str, object]] = {
    "llama-3.1-8b": {**LLAMA_FIELDS, **size_fields(4096, 14336, 32, 32, 8)},
    "llama-3.1-70b": {**LLAMA_FIELDS, **size_fields(8192, 28672, 80, 64, 8)},
    "llama-3.2-1b": {**LLAMA_FIELDS, **size_fields(2048, 8192, 16, 32, 8), "head_dim": 64},
    "qwen3-1.7b": {
        **_QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **size_fields(2048, 6144, 28, 16, 8),
    },
    "qwen3-14b": {
        **_QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **size_fields(5120, 17408, 40, 40, 8),
    },
    "qwen2.5-7b": {
        **LLAMA_FIELDS,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 152064,
        **size_fields(3584, 18944, 28, 28, 4),
    },
    # Published in Qwen/Qwen2.5-VL-7B-Instruct's config.json: a decoder with rotary positions of
    # three dimensions, and a vision encoder that attends within windows but in four layers.
    "qwen2.5-vl-7b": {**_QWEN25_VL, **size_fields(3584, 18944, 28, 28, 4)},
    "phi-3-mini": {
        **LLAMA_FIELDS,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": 32064,
        "pad_token_id": 0,
        **size_fields(3072, 8192, 32, 32, 32),
    },
    "mixtral-8x7b": {
        **LLAMA_FIELDS,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        **size_fields(4096, 14336, 32, 32, 8),
    },
    "olmoe-1b-7b": {
        **LLAMA_FIELDS,
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "vocab_size": 50304,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        **size_fields(2048, 1024, 16, 16, 16),
    },
    "qwen3-235b-a22b": {
        **_QWEN3,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **size_fields(4096, 12288, 94, 64, 4),
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "deepseek-v2-lite": {
        **LLAMA_FIELDS,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "vocab_size": 102400,
        **size_fields(2048, 10944, 27, 16, 16),
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_theta": 10000,
    },
    # Experts in MXFP4; every other layer attends to a window, which transformers' class knows.
    "gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **size_fields(2880, 2880, 24, 64, 8),
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "attention_bias": True,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": 199998,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    },
    "qwen3-8b": {
        **_QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
    },
    "qwen3-30b-a3b": {
        **_QWEN3,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # Three layers with a recurrent state before each one with a KV cache.
    "qwen3-next-80b-a3b": {
        **_QWEN3,
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        **size_fields(2048, 5120, 48, 16, 2),
        "head_dim": 256,
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # Heads are as large as published, since the sections of the rotary positions are.
    "tiny-vl": {
        **_QWEN25_VL,
        **size_fields(256, 512, 2, 2, 1),
        "vision_config": {
            **_QWEN25_VISION,
            "depth": 2,
            "hidden_size": 160,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 256,
            "fullatt_block_indexes": [1],
        },
    },
    "tiny-dense": _TINY_DENSE,
    "tiny": _TINY_DENSE,
    "tiny-moe": {
        **_QWEN3,
        **_TINY,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
"""Published shapes by name; the tiny ones are for trying a script on a CPU."""


DRAFT_HEADS = ("eagle", "eagle3")
"""Methods whose drafts come from one layer that takes the target's hidden states in."""
EAGLE3_VOCABULARY = 32000
"""Tokens that published EAGLE-3 heads choose among."""
_HEAD_FIELDS = (
    "hidden_act",
    "dtype",
    "max_position_embeddings",
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)
"""What a head has in common with its target."""


def write_model(folder: Path, name: str, layers: int | None = None) -> Path:
    """Write the config.json of a shape, with fewer layers if asked for.

    Raises:
        ValueError: for an unknown name, with the known ones, or fewer layers than one.
    """
    return _write(folder, _with_layers(name, layers))


def write_draft_head(folder: Path, name: str, method: str, layers: int | None = None) -> Path:
    """Write the config.json of a head that drafts for a shape.

    It is one Llama layer with the target's sizes, as published heads for Llama and Qwen3 are, so
    that its KV cache is one layer more of the target's. An EAGLE head shares the target's LM head;
    an EAGLE-3 head has a smaller one of its own and takes in the hidden states of three layers.

    Args:
        layers: of the target, if not the published number.

    Raises:
        ValueError: for a method that drafts otherwise, a target without such a layer, or one of
            too few layers; and as :func:`write_model` does.
    """
    target = _with_layers(name, layers)
    if method not in DRAFT_HEADS:
        raise ValueError(f"draft method {method!r} has no head: known are {', '.join(DRAFT_HEADS)}")
    if "kv_lora_rank" in target:
        raise ValueError(f"{name} has latent attention, for which no head is known here")
    config = {field: target[field] for field in _HEAD_FIELDS if field in target}
    config |= {"model_type": "llama", "num_hidden_layers": 1}
    if method == "eagle":
        return _write(folder, {**config, "architectures": ["LlamaForCausalLM"]})
    depth = _number(target, "num_hidden_layers")
    if depth < 2:
        raise ValueError("an EAGLE-3 head takes in three hidden states: give 2 layers or more")
    return _write(folder, {
        **config,
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": min(EAGLE3_VOCABULARY, _number(target, "vocab_size")),
        # vLLM's own choice is not of three different ones where layers are few.
        "eagle_aux_hidden_state_layer_ids": [depth // 4, depth // 2, depth - depth // 4],
    })  # fmt: skip


def shared_model(name: str, layers: int | None = None) -> Path:
    """Write the config.json of a shape into the same folder each time.

    vLLM's hash of a model holds its path: only from one folder does a second start find what the
    first one compiled.

    Raises:
        ValueError: as :func:`write_model` does.
    """
    return write_model(_shared(name, layers), name, layers)


def shared_draft_head(name: str, method: str, layers: int | None = None) -> Path:
    """Write the config.json of a head into the same folder each time; see :func:`shared_model`.

    Raises:
        ValueError: as :func:`write_draft_head` does.
    """
    return write_draft_head(_shared(f"{name}-{method}-head", layers), name, method, layers)


def _shared(name: str, layers: int | None) -> Path:
    depth = "" if layers is None else f"-{layers}-layers"
    return Path.home() / ".cache" / "vllm-nfp" / "models" / f"{name}{depth}"


def layer_count(name: str) -> int:
    """Layers of the published shape."""
    return _number(SHAPES[name], "num_hidden_layers")


def vocab_size(name: str) -> int:
    """Token ids of the shape are below this."""
    return _number(SHAPES[name], "vocab_size")


def kv_gib(name: str, layers: int, tokens: int) -> float:
    """KV cache of so many tokens in 16 bits, all sequences together; not for latent attention."""
    shape = SHAPES[name]
    heads = _number(shape, "num_attention_heads")
    has_size = "head_dim" in shape
    head_dim = _number(shape, "head_dim") if has_size else _number(shape, "hidden_size") // heads
    token_bytes = 2 * 2 * _number(shape, "num_key_value_heads") * head_dim
    return float(layers * token_bytes * tokens / (1 << 30))


def _with_layers(name: str, layers: int | None) -> dict[str, object]:
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}: known are {', '.join(SHAPES)}")
    if layers is not None and layers < 1:
        raise ValueError(f"layers must be 1 or more, not {layers}")
    config = dict(SHAPES[name])
    if layers is not None:
        config["num_hidden_layers"] = layers
    return config


def _write(folder: Path, config: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # Whole: other runs may read the same file meanwhile.
    write_whole(folder / "config.json", json.dumps(config, indent=1))
    return folder


def _number(config: Mapping[str, object], field: str) -> int:
    value = config[field]
    assert isinstance(value, int)
    return value
