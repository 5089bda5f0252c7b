"""Families that differ from Llama by an entry of the table; counted against the built model."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_nfp.principle import shape_from_config

Config = dict[str, Any]

PUBLISHED: dict[str, tuple[Config, float]] = {
    "Qwen2.5-VL-7B": (
        {
            "model_type": "qwen2_5_vl",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "use_sliding_window": False,
            "tie_word_embeddings": False,
        },
        7.62,
    ),
    "Qwen3-VL-235B-A22B": (
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {
                "model_type": "qwen3_vl_moe_text",
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "num_hidden_layers": 94,
                "num_attention_heads": 64,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "vocab_size": 151936,
            },
        },
        235.0,
    ),
    "InternVL3-8B": (
        {
            "model_type": "internvl_chat",
            "llm_config": {
                "model_type": "qwen2",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 151674,
                "use_sliding_window": False,
            },
        },
        7.61,
    ),
    "Qwen2.5-Omni-7B": (
        {
            "model_type": "qwen2_5_omni",
            "thinker_config": {
                "model_type": "qwen2_5_omni_thinker",
                "text_config": {
                    "model_type": "qwen2_5_omni_text",
                    "hidden_size": 3584,
                    "intermediate_size": 18944,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 28,
                    "num_key_value_heads": 4,
                    "vocab_size": 152064,
                },
            },
        },
        7.62,
    ),
    "GLM-4-9B": (
        {
            "model_type": "chatglm",
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "kv_channels": 128,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_attention_heads": 32,
            "num_layers": 40,
            "padded_vocab_size": 151552,
            "tie_word_embeddings": False,
        },
        9.40,
    ),
    "StarCoder-15B": (
        {
            "model_type": "gpt_bigcode",
            "multi_query": True,
            "n_embd": 6144,
            "n_head": 48,
            "n_inner": 24576,
            "n_layer": 40,
            "vocab_size": 49153,
        },
        15.5,
    ),
    "Molmo-7B-D": (
        {
            "model_type": "molmo",
            "hidden_size": 3584,
            "intermediate_size": 37888,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "weight_tying": False,
        },
        7.62,
    ),
    "Ling-1T": (
        {
            "model_type": "bailing_moe",
            "hidden_size": 8192,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "first_k_dense_replace": 4,
            "head_dim": 128,
            "vocab_size": 157184,
        },
        1000.0,
    ),
    "Hunyuan-A13B": (
        {
            "model_type": "hunyuan_v1_moe",
            "hidden_size": 4096,
            "intermediate_size": 3072,
            "moe_intermediate_size": [3072] * 32,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts": 64,
            "moe_topk": [8] * 32,
            "num_shared_expert": [1] * 32,
            "use_cla": False,
            "vocab_size": 128167,
            "tie_word_embeddings": True,
        },
        80.4,
    ),
    "EXAONE-4.0-32B": (
        {
            "model_type": "exaone4",
            "hidden_size": 5120,
            "intermediate_size": 27392,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": 4096,
            "sliding_window_pattern": "LLLG",
            "vocab_size": 102400,
        },
        32.0,
    ),
}
"""Published parameters, in billions; those of encoders of other modalities are left out."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name: str) -> None:
    config, billions = PUBLISHED[name]
    assert shape_from_config(config).total_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_fourth_layer_of_exaone_sees_all() -> None:
    assert shape_from_config(PUBLISHED["EXAONE-4.0-32B"][0]).num_sliding_layers == 48
