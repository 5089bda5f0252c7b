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

# Parameters in billions: the models' cards or reports; for Gemma 3 the text part alone (4B column
# of its report: 675M embedding, 3209M other), for DeepSeek V3 without its prediction layer.
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
]


@pytest.mark.parametrize(
    ("config", "billions"), KNOWN_BILLIONS, ids=[str(c["model_type"]) for c, _ in KNOWN_BILLIONS]
)
def test_total_parameters(config: Config, billions: float) -> None:
    assert shape_from_config(config).total_parameters == pytest.approx(billions * 1e9, rel=0.02)


def test_total_parameters_do_not_depend_on_the_split() -> None:
    split = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8)
    assert split.total_parameters == shape_from_config(DEEPSEEK_V3).total_parameters


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
