"""Families whose layers hold other parts than attention and one feed-forward block."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_nfp import predict
from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.model_facts import model_facts
from vllm_nfp.types import Module

Config = dict[str, Any]
LONGCAT: Config = {
    "model_type": "longcat_flash",
    "hidden_size": 6144,
    "ffn_hidden_size": 12288,
    "expert_ffn_hidden_size": 2048,
    "num_layers": 28,
    "num_attention_heads": 64,
    "n_routed_experts": 512,
    "zero_expert_num": 256,
    "moe_topk": 12,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 131072,
}
MINICPM3: Config = {
    "architectures": ["MiniCPM3ForCausalLM"],
    "hidden_size": 2560,
    "num_hidden_layers": 62,
    "intermediate_size": 6400,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "q_lora_rank": 768,
    "kv_lora_rank": 256,
    "vocab_size": 73448,
}
STEP: Config = {
    "model_type": "step3p7",
    "num_hidden_layers": 45,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128896,
    "intermediate_size": 11264,
    "sliding_window": 512,
    "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 11 + ["full_attention"],
    "first_k_dense_replace": 3,
    "num_experts": 288,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1280,
    "share_expert_dim": 1280,
}


@pytest.mark.parametrize(
    ("config", "billions"),
    [(LONGCAT, 560.0), (MINICPM3, 4.07), (STEP, 196.0)],
    ids=["LongCat Flash", "MiniCPM3 4B", "Step 3.7 Flash"],
)
def test_published_parameters(config: Config, billions: float) -> None:
    assert shape_from_config(config).total_parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_layer_of_longcat_has_two_attentions_and_three_feed_forwards() -> None:
    shape = shape_from_config(LONGCAT)
    counts = {"full_attention": 56, "dense_ffn": 56, "moe_ffn": 28}
    assert model_facts(shape).layers == counts
    # 12 of 768 choices; 256 of these do nothing.
    assert shape.experts_per_token == 8
    assert shape.shared_gemms[0].outputs == 768
    assert any("do nothing" in sentence for sentence in shape.assumptions)
    found = predict(LONGCAT, "H200", (1,), (1024,), tensor_parallel_size=8, max_positions=2)
    whole = found.cell(Module.MODEL, 1, 1024)
    dense = found.cell(Module.DENSE_FFN, 1, 1024).seconds[0]
    assert whole.parts["dense FFN"][0] == pytest.approx(56 * dense)


def test_minicpm3_caches_keys_and_values_of_every_head() -> None:
    shape = shape_from_config(MINICPM3)
    assert not shape.use_mla
    # Values are padded to the 96 of a key.
    assert model_facts(shape).kv_bytes_per_token == 62 * 40 * 2 * 96 * 2
    found = predict(MINICPM3, "H100-SXM", (1,), (1024,), max_positions=2)
    assert found.serving.attention_backend == "FLASH_ATTN"


def test_sliding_layers_may_have_heads_of_their_own() -> None:
    other = {"num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128}
    shape = shape_from_config({**STEP, "attention_other_setting": other})
    full, sliding = (part for _, part in shape.attentions)
    assert (full.layers, full.heads, full.window) == (12, 64, None)
    assert (sliding.layers, sliding.heads, sliding.window) == (33, 96, 512)
    more = 33 * 2 * 32 * 128 * 4096
    assert shape.total_parameters - shape_from_config(STEP).total_parameters == more


def block(group: int | None, factor: float) -> Config:
    return {
        "attention": {"n_heads_in_group": group, "no_op": group is None},
        "ffn": {"ffn_mult": factor, "no_op": False},
    }


NAS: Config = {
    "model_type": "nemotron-nas",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "vocab_size": 128256,
    "block_configs": [block(8, 5.25)] * 48 + [block(None, 1.0)] * 32,
}


def test_pruned_layers_lack_attention_or_width() -> None:
    shape = shape_from_config(NAS)
    assert model_facts(shape).layers == {"full_attention": 48, "dense_ffn": 80}
    assert shape.num_kv_heads == 8
    # 2/3 of 5.25 and of 1 times 8192, rounded up to 256: 28672 and 5632.
    assert shape.dense_widths == ((48, 28672), (32, 5632))
    widths = sum(gemm.inputs for _, (_, gemm) in shape.dense_blocks)
    assert widths == 28672 + 5632


def test_pruned_layers_may_lack_their_feed_forward() -> None:
    lacking = {"attention": {"n_heads_in_group": 8}, "ffn": {"no_op": True}}
    shape = shape_from_config({**NAS, "block_configs": [lacking] * 40 + [block(8, 5.25)] * 40})
    assert model_facts(shape).layers == {"full_attention": 80, "dense_ffn": 40}


def test_pruned_layers_that_no_shape_describes_are_refused() -> None:
    linear = block(8, 1.0)
    linear["ffn"] = {"no_op": False, "replace_with_linear": True}
    with pytest.raises(ShapeError, match="block_configs has replace_with_linear"):
        shape_from_config({**NAS, "block_configs": [linear] * 80})
    mixed = [block(8, 1.0), block(4, 1.0)] * 40
    with pytest.raises(ShapeError, match="groups of one size"):
        shape_from_config({**NAS, "block_configs": mixed})


def test_a_family_of_experts_may_have_a_model_without_any() -> None:
    """Llama Guard 4 12B."""
    text = {
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 8192,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "moe_layers": [],
        "interleave_moe_layer_step": 0,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "vocab_size": 202048,
    }
    shape = shape_from_config({"model_type": "llama4", "text_config": text})
    assert (shape.num_dense_layers, shape.num_moe_layers, shape.num_experts) == (48, 0, 0)
    layer = 5120 * 128 * (2 * 40 + 2 * 8) + 3 * 5120 * 8192
    assert shape.total_parameters == 48 * layer + 2 * 202048 * 5120


def test_a_jamba_with_one_expert_has_dense_blocks() -> None:
    config = {
        "model_type": "jamba",
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 1,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "attn_layer_period": 14,
        "attn_layer_offset": 7,
        "vocab_size": 65536,
    }
    shape = shape_from_config(config)
    assert (shape.num_dense_layers, shape.num_moe_layers, shape.attention_layers) == (28, 0, 2)
    assert not any("not understood" in sentence for sentence in shape.assumptions)
    shape = shape_from_config({**config, "num_experts": 16, "num_experts_per_tok": 2})
    assert (shape.num_dense_layers, shape.num_moe_layers) == (14, 14)
