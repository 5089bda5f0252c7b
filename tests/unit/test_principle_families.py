"""Every family that transformers builds: its model's matrices are those the shape counts."""

from __future__ import annotations

from typing import Any

import pytest
from test_principle_models import KNOWN_BILLIONS
from test_principle_oracle import KNOWN

from vllm_nfp.principle import ModelShape, shape_from_config
from vllm_nfp.principle.families import FAMILIES

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

Config = dict[str, Any]

SMALL: Config = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "pad_token_id": 0,
}
WIDE: Config = {**SMALL, "head_dim": 32}
FEW: Config = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS: Config = {"moe_intermediate_size": 96, "num_experts_per_tok": 2}
LATENT: Config = {
    "num_key_value_heads": 8,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 40,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    **EXPERTS,
}
UPPER: Config = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 4}

LIKE_LLAMA = (
    "arcee",
    "nemotron",
    "apertus",
    "persimmon",
    "gpt_neox",
    "starcoder2",
    "granite",
    "olmo",
    "olmo2",
    "olmo3",
    "exaone4",
    "smollm3",
    "cohere",
    "cohere2",
    "stablelm",
)

CONFIGS: list[Config] = [
    {**SMALL, "model_type": "llama"},
    {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    {**WIDE, "model_type": "llama", "num_key_value_heads": 8},
    {**SMALL, "model_type": "qwen2"},
    {**SMALL, **UPPER, "model_type": "qwen2"},
    {**WIDE, "model_type": "qwen3", "tie_word_embeddings": True},
    {**WIDE, **UPPER, "model_type": "qwen3"},
    {**SMALL, "model_type": "mistral"},
    {**WIDE, "model_type": "mistral", "sliding_window": None},
    {**WIDE, "model_type": "ministral3"},
    {**WIDE, "model_type": "gemma"},
    {**WIDE, "model_type": "gemma2"},
    {**WIDE, "model_type": "gemma3_text", "sliding_window": 64},
    {**WIDE, "model_type": "gemma3_text", "sliding_window_pattern": 2},
    {**SMALL, "model_type": "phi"},
    {**SMALL, "model_type": "phi3"},
    {**SMALL, "model_type": "phi3", "sliding_window": 64},
    {**WIDE, "model_type": "glm"},
    {**WIDE, "model_type": "glm4"},
    {**SMALL, "model_type": "mixtral", **FEW},
    {**SMALL, "model_type": "mixtral", **FEW, "sliding_window": 64},
    {**SMALL, "model_type": "phimoe", **FEW},
    {**SMALL, "model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 2},
    {**SMALL, **EXPERTS, "model_type": "qwen2_moe", "num_experts": 6},
    {**SMALL, **EXPERTS, **UPPER, "model_type": "qwen2_moe", "num_experts": 6},
    {
        **WIDE,
        **EXPERTS,
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    {**SMALL, **LATENT, "model_type": "deepseek_v2", "q_lora_rank": None},
    {**SMALL, **LATENT, "model_type": "deepseek_v2", "first_k_dense_replace": 1},
    {**SMALL, **LATENT, "model_type": "deepseek_v3"},
    {**SMALL, **LATENT, "model_type": "deepseek_v3", "first_k_dense_replace": 2},
    {**WIDE, "model_type": "gpt_oss", **FEW},
    {**WIDE, **EXPERTS, "model_type": "glm4_moe", "n_routed_experts": 6, "n_shared_experts": 2},
    {**SMALL, **LATENT, "model_type": "glm4_moe_lite"},
    {
        **WIDE,
        "model_type": "llama4_text",
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 512,
    },
    {**WIDE, "model_type": "llama4_text", "num_local_experts": 4, "moe_layers": [0, 5]},
    *({**SMALL, "model_type": name} for name in LIKE_LLAMA),
    {**WIDE, "model_type": "seed_oss"},
    {**WIDE, "model_type": "ernie4_5"},
    {**WIDE, **FEW, "model_type": "minimax_m2"},
    {**SMALL, **FEW, "model_type": "granitemoe"},
    {**SMALL, **FEW, "model_type": "granitemoeshared", "shared_intermediate_size": 64},
    {**WIDE, **EXPERTS, "model_type": "dots1", "n_routed_experts": 6, "n_shared_experts": 2},
    {
        **WIDE,
        **EXPERTS,
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
]

NOT_IN_TRANSFORMERS = {
    "bagel",
    "baichuan",
    "bailing_moe",
    "bailing_moe_v2",
    "bee",
    "chatglm",
    "deepseek",
    "deepseek_ocr",
    "deepseek_vl_v2",
    "dots_ocr",
    "dream",
    "ernie4_5_moe_vl",
    "exaone",
    "exaone4_5_text",
    "falcon_grouped",
    "fast_dllm_qwen",
    "gpt_bigcode",
    "hunyuan",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "inkling_model",
    "internlm",
    "internlm2",
    "internlm3",
    "interns1_pro_text",
    "iquestcoder",
    "isaac",
    "k2_horizon",
    "keye",
    "keye_text",
    "keyevl1_5",
    "kimi_k2",
    "llada",
    "llada2_moe",
    "llada_moe",
    "lladamoe",
    "mimo",
    "mimo_audio",
    "mimo_v2",
    "mimo_v2_omni",
    "minicpm",
    "minicpmo",
    "minicpmv",
    "minimax_m3",
    "mistral_large_3",
    "molmo",
    "molmo2_text",
    "moondream3_text",
    "nanbeige",
    "opencua",
    "openpangu_vl_text",
    "orion",
    "ovis2_6_moe",
    "pangu_ultra_moe",
    "panguembedded",
    "param2moe",
    "phi3_v",
    "phi4-siglip",
    "phi4_multimodal",
    "phi4mm",
    "plamo3",
    "qwen",
    "qwen3_asr_text",
    "refinedweb",
    "refinedwebmodel",
    "rnj1",
    "sarvam_mla",
    "sarvam_moe",
    "sdar",
    "sdar_moe",
    "solar",
    "stablelm_epoch",
    "step1",
    "step3_text",
    "telechat",
    "telechat2",
    "telechat3",
    "teleflm",
}
"""Or built there with encoders of other modalities, or with fields that vLLM reads otherwise."""
UNUSUAL = {"longcat_flash", "nemotron-nas", "minicpm3", "step3p5", "step3p7", "gemma4_moe"}
"""See test_principle_unusual_layers.py and test_principle_own_attention.py."""
INDEXED = {family for family, entry in FAMILIES.items() if entry.indexed}
"""See test_principle_sparse_attention.py."""
HYBRID = {family for family, entry in FAMILIES.items() if entry.hybrid}
"""See test_principle_hybrid.py."""
ADDED_BY_033 = {"beam", "domynedge", "flint", "kolibri1", "step5"}
"""See test_principle_vllm_033.py."""
WRAPPERS = {"gemma3", "llama4"}
TEXT_PARTS = {
    "glm4v",
    "glm4v_text",
    "glm4v_moe_text",
    "qwen2_audio",
    "qwen2_vl",
    "qwen2_vl_text",
    "qwen2_5_vl",
    "qwen2_5_vl_text",
    "qwen2_5_omni_text",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
    "qwen3_omni_moe_text",
    "cosmos3_edge_text",
    "deepseek_ocr2_text",
    "diffusion_gemma_text",
    "diffusion_gemma_moe",
    "emu3_text_model",
    "ernie4_5_vl_moe_text",
    "glm_ocr_text",
    "granite4_vision_text",
    "hunyuan_vl_text",
    "mistral4",
    "muse_glimmer_text",
    "paddleocr_vl",
    "paddleocr_vl_text",
    "voxtral_realtime_text",
}
"""Language models of multimodal ones, which transformers builds as a whole only."""


def text_alone(config: Config) -> Config:
    """The language model's part, without the quantization that changes the class of its layers."""
    text = config.get("text_config", config)
    return {key: value for key, value in text.items() if key != "quantization_config"}


PUBLISHED = [
    text_alone(config)
    for config, _ in KNOWN_BILLIONS
    if config["model_type"].lower() not in NOT_IN_TRANSFORMERS
]


def live(config: Config) -> Any:
    return transformers.AutoConfig.for_model(**config)


def matrix_weights(live_config: Any) -> int:
    """Weights of all matrices of the model, each tied one once; biases are no matrices."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(live_config)
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() >= 2 and not name.endswith("bias")
    )


def sliding_layers(live_config: Any) -> int:
    """Layers that slide by the class's own list, or all if there is a window and no list."""
    kinds = getattr(live_config, "layer_types", None)
    if kinds is not None:
        return sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    return live_config.num_hidden_layers if getattr(live_config, "sliding_window", None) else 0


def ids(config: Config) -> str:
    return str(config["model_type"])


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_matrices_are_those_of_the_model(config: Config) -> None:
    assert shape_from_config(config).total_parameters == matrix_weights(live(config))


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_sliding_layers_are_those_of_the_class(config: Config) -> None:
    assert shape_from_config(config).num_sliding_layers == sliding_layers(live(config))


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_a_live_configuration_reads_like_its_file(config: Config) -> None:
    def read(values: Config) -> ModelShape:
        return shape_from_config(values, name="m")

    assert read(live(config).to_dict()) == read(config)


@pytest.mark.parametrize("config", PUBLISHED, ids=ids)
def test_matrices_of_published_models(config: Config) -> None:
    assert shape_from_config(config).total_parameters == matrix_weights(live(config))


def test_every_family_is_compared_with_a_model() -> None:
    compared = {str(config["model_type"]) for config in CONFIGS} | set(KNOWN)
    elsewhere = HYBRID | INDEXED | UNUSUAL | ADDED_BY_033
    assert compared | NOT_IN_TRANSFORMERS | WRAPPERS | TEXT_PARTS | elsewhere == set(FAMILIES)


def test_a_wrapper_reads_like_its_text_config() -> None:
    text = {**WIDE, "model_type": "llama4_text", "num_local_experts": 4}
    assert shape_from_config({"model_type": "llama4", "text_config": text}, name="m") == (
        shape_from_config(text, name="m")
    )
