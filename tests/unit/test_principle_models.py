"""Real public models: their config.json fields as typed here give their known parameter counts."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_nfp.principle import shape_from_config

Config = dict[str, Any]

LLAMA_3_8B: Config = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MISTRAL_7B: Config = {
    **LLAMA_3_8B,
    "model_type": "mistral",
    "vocab_size": 32000,
    "sliding_window": 4096,
}
QWEN_2_5_7B: Config = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
QWEN_3_8B: Config = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
GEMMA_2_2B: Config = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "sliding_window": 4096,
}
# Leaves heads and vocabulary to the family's defaults, as the published file does.
GEMMA_3_4B: Config = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
PHI_3_MINI: Config = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
}
MIXTRAL_8X7B: Config = {
    **LLAMA_3_8B,
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
QWEN_3_30B_A3B: Config = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
DEEPSEEK_V2_LITE: Config = {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3: Config = {
    **DEEPSEEK_V2_LITE,
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "vocab_size": 129280,
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}
GPT_OSS_20B: Config = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "mxfp4"},
}
GLM_4_5_AIR: Config = {
    "model_type": "glm4_moe",
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151552,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
    "tie_word_embeddings": False,
}

GEMMA_7B: Config = {
    "model_type": "gemma",
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "vocab_size": 256000,
}
PHI_2: Config = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 51200,
    "tie_word_embeddings": False,
}
GLM_4_9B: Config = {
    "model_type": "glm",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151552,
    "tie_word_embeddings": False,
}
PHI_3_5_MOE: Config = {
    **LLAMA_3_8B,
    "model_type": "phimoe",
    "intermediate_size": 6400,
    "vocab_size": 32064,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "sliding_window": 131072,
}
QWEN_1_5_MOE_A2_7B: Config = {
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "vocab_size": 151936,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 21,
    "tie_word_embeddings": False,
}
DEEPSEEK_V2: Config = {
    **DEEPSEEK_V2_LITE,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 160,
    "q_lora_rank": 1536,
}
KIMI_K2: Config = {
    **DEEPSEEK_V3,
    "model_type": "kimi_k2",
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "vocab_size": 163840,
}
LLAMA_4_SCOUT: Config = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8192,
        "no_rope_layers": [],
        "vocab_size": 202048,
        "tie_word_embeddings": False,
    },
}
LLADA_8B: Config = {
    "model_type": "llada",
    "block_type": "llama",
    "d_model": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "multi_query_attention": None,
    "embedding_size": 126464,
    "vocab_size": 126464,
    "weight_tying": False,
    "activation_type": "silu",
    "max_sequence_length": 4096,
    "mask_token_id": 126336,
}
# The published file says "llada", though it has nothing of the dense model's field names.
LLADA_MOE_7B_A1B: Config = {
    "model_type": "llada",
    "hidden_size": 2048,
    "dense_intermediate_size": 8192,
    "expert_intermediate_size": 1024,
    "shared_expert_intermediate_size": None,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_layer_freq": [1] * 16,
    "vocab_size": 157184,
    "tie_word_embeddings": False,
}
LLADA_2_MINI: Config = {
    "model_type": "llada2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 157184,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
DREAM_7B: Config = {
    **QWEN_2_5_7B,
    "model_type": "Dream",
    "sliding_window": None,
    "mask_token_id": 151666,
}
FAST_DLLM_V2_7B: Config = {**QWEN_2_5_7B, "model_type": "Fast_dLLM_Qwen", "bd_size": 32}
SDAR_8B: Config = {
    **QWEN_3_8B,
    "model_type": "sdar",
    "block_size": 4,
    "mask_token_id": 151669,
}
SDAR_30B_A3B: Config = {**QWEN_3_30B_A3B, "model_type": "sdar_moe", "block_size": 4}

# Parameters in billions: the models' cards or reports; for Gemma 3 the text part alone (4B column
# of its report: 675M embedding, 3209M other), for DeepSeek V3 without its prediction layer, for
# LLaDA-MoE half the bytes of its 16-bit weights. SDAR was trained from Qwen3, Dream and Fast-dLLM
# from Qwen2.5, whose counts they keep.
KNOWN_BILLIONS = [
    (LLAMA_3_8B, 8.03),
    (MISTRAL_7B, 7.24),
    (QWEN_2_5_7B, 7.62),
    (QWEN_3_8B, 8.19),
    (GEMMA_2_2B, 2.61),
    (GEMMA_3_4B, 3.88),
    (PHI_3_MINI, 3.82),
    (MIXTRAL_8X7B, 46.7),
    (QWEN_3_30B_A3B, 30.5),
    (DEEPSEEK_V2_LITE, 15.7),
    (DEEPSEEK_V3, 671.0),
    (GPT_OSS_20B, 20.9),
    (GLM_4_5_AIR, 106.0),
    (GEMMA_7B, 8.54),
    (PHI_2, 2.78),
    (GLM_4_9B, 9.4),
    (PHI_3_5_MOE, 41.9),
    (QWEN_1_5_MOE_A2_7B, 14.3),
    (DEEPSEEK_V2, 236.0),
    (KIMI_K2, 1026.0),
    (LLAMA_4_SCOUT, 109.0),
    (LLADA_8B, 8.02),
    (LLADA_MOE_7B_A1B, 7.36),
    (LLADA_2_MINI, 16.0),
    (DREAM_7B, 7.62),
    (FAST_DLLM_V2_7B, 7.62),
    (SDAR_8B, 8.19),
    (SDAR_30B_A3B, 30.5),
]


@pytest.mark.parametrize(
    ("config", "billions"), KNOWN_BILLIONS, ids=[str(c["model_type"]) for c, _ in KNOWN_BILLIONS]
)
def test_total_parameters(config: Config, billions: float) -> None:
    assert shape_from_config(config).total_parameters == pytest.approx(billions * 1e9, rel=0.02)


def test_total_parameters_do_not_depend_on_the_split() -> None:
    split = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8)
    assert split.total_parameters == shape_from_config(DEEPSEEK_V3).total_parameters


def without(config: Config, *names: str) -> Config:
    return {key: value for key, value in config.items() if key not in names}


HALF_SLIDING = ["sliding_attention", "full_attention"] * 16


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        (LLAMA_3_8B, None, 0),
        (MISTRAL_7B, 4096, 32),
        (QWEN_2_5_7B, None, 0),
        ({**QWEN_2_5_7B, "use_sliding_window": True, "max_window_layers": 20}, 131072, 8),
        (GEMMA_2_2B, 4096, 13),
        (GEMMA_3_4B, 1024, 29),
        (MIXTRAL_8X7B, None, 0),
        (GPT_OSS_20B, 128, 12),
        ({**GPT_OSS_20B, "layer_types": None}, 128, 12),
        (without(MISTRAL_7B, "sliding_window"), 4096, 32),
        ({**MISTRAL_7B, "sliding_window": None}, None, 0),
        ({**MISTRAL_7B, "sliding_window": 0}, None, 0),
        ({**LLAMA_3_8B, "sliding_window": 512, "layer_types": HALF_SLIDING}, 512, 16),
        (PHI_3_5_MOE, 131072, 32),
        (QWEN_1_5_MOE_A2_7B, None, 0),
        ({**QWEN_1_5_MOE_A2_7B, "use_sliding_window": True}, 32768, 11),
        (LLAMA_4_SCOUT, 8192, 36),
        ({**QWEN_3_30B_A3B, "use_sliding_window": True, "sliding_window": 64}, 64, 48),
        (LLADA_2_MINI, None, 0),
    ],
)
def test_sliding_layers(config: Config, window: int | None, layers: int) -> None:
    shape = shape_from_config(config)
    assert (shape.sliding_window, shape.num_sliding_layers) == (window, layers)


@pytest.mark.parametrize(
    ("config", "dense", "moe"),
    [
        (LLAMA_3_8B, 32, 0),
        (MIXTRAL_8X7B, 0, 32),
        (QWEN_3_30B_A3B, 0, 48),
        ({**QWEN_3_30B_A3B, "decoder_sparse_step": 2, "mlp_only_layers": [1]}, 25, 23),
        (DEEPSEEK_V3, 3, 58),
        (GLM_4_5_AIR, 1, 45),
        (LLADA_2_MINI, 1, 19),
        ({**LLADA_MOE_7B_A1B, "moe_layer_freq": [0, 1] * 8, "num_experts": 16}, 8, 8),
        ({**DEEPSEEK_V3, "mlp_layer_types": ["dense", "sparse"] + ["sparse"] * 59}, 1, 60),
    ],
)
def test_layers_with_experts(config: Config, dense: int, moe: int) -> None:
    shape = shape_from_config(config)
    assert (shape.num_dense_layers, shape.num_moe_layers) == (dense, moe)


def test_transformers_configurations_read_like_config_files() -> None:
    transformers = pytest.importorskip("transformers")
    for config in (QWEN_3_30B_A3B, DEEPSEEK_V3, GPT_OSS_20B, GEMMA_3_4B, MIXTRAL_8X7B):
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        live = transformers.AutoConfig.for_model(**plain).to_dict()
        assert shape_from_config(live, name="m") == shape_from_config(plain, name="m")


@pytest.mark.parametrize(
    ("config", "block"),
    [
        (LLADA_8B, None),
        (LLADA_MOE_7B_A1B, None),
        (LLADA_2_MINI, None),
        (DREAM_7B, None),
        ({**DREAM_7B, "block_size": 32}, 32),
        (FAST_DLLM_V2_7B, 32),
        (SDAR_8B, 4),
        (SDAR_30B_A3B, 4),
        ({**QWEN_3_8B, "canvas_length": 64}, 64),
    ],
)
def test_diffusion_models_decode_bidirectional_blocks(config: Config, block: int | None) -> None:
    shape = shape_from_config(config)
    assert shape.bidirectional
    assert shape.diffusion_block_size == block


def test_other_models_are_causal() -> None:
    shape = shape_from_config({**LLAMA_3_8B, "block_size": 16})
    assert (shape.decoding, shape.diffusion_block_size) == ("causal", None)


def test_diffusion_models_have_the_layers_of_their_origin() -> None:
    for diffusion, origin in ((SDAR_8B, QWEN_3_8B), (DREAM_7B, QWEN_2_5_7B)):
        shape, causal = shape_from_config(diffusion), shape_from_config(origin)
        assert shape.projection_gemms == causal.projection_gemms
        assert shape.dense_ffn_gemms == causal.dense_ffn_gemms


def test_phi_has_no_gate() -> None:
    shape = shape_from_config(PHI_2)
    assert [(g.inputs, g.outputs) for g in shape.dense_ffn_gemms] == [(2560, 10240), (10240, 2560)]


def test_a_shared_expert_gate_is_one_column() -> None:
    gemms = shape_from_config(QWEN_1_5_MOE_A2_7B, tensor_parallel_size=2).shared_gemms
    assert [(g.inputs, g.outputs) for g in gemms] == [
        (2048, 60),
        (2048, 5632),
        (2816, 2048),
        (2048, 1),
    ]
