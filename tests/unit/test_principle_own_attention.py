"""Families whose layers differ in heads, caches or widths, or whose attention is their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vllm_nfp import predict
from vllm_nfp.principle import ShapeError, modules_of, shape_from_config
from vllm_nfp.principle.memory import cache_bytes
from vllm_nfp.principle.model_facts import model_facts
from vllm_nfp.types import Module

transformers = pytest.importorskip("transformers")
oracle = pytest.importorskip("test_principle_oracle")

Config = dict[str, Any]
SLIDING_FIVE = (["sliding_attention"] * 4 + ["full_attention"]) * 7
GEMMA_4_E2B: Config = {
    "model_type": "gemma4_text",
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
    "vocab_size": 262144,
    "sliding_window": 512,
    "layer_types": SLIDING_FIVE,
}
GEMMA_4_26B: Config = {
    "model_type": "gemma4_text",
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "vocab_size": 262144,
    "sliding_window": 1024,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
MIMO_V2_FLASH: Config = {
    "model_type": "mimo_v2_flash",
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "sliding_window_size": 128,
    "hybrid_layer_pattern": [0, *([1, 1, 1, 1, 0] + [1] * 5 + [0] + [1] * 5) * 2, *[1] * 14, 0],
    "moe_layer_freq": [0, *[1] * 47],
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "vocab_size": 152576,
}
DEEPSEEK_V4_FLASH: Config = {
    "model_type": "deepseek_v4",
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "qk_rope_head_dim": 64,
    "sliding_window": 128,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "index_topk": 512,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "hc_mult": 4,
    "vocab_size": 129280,
}
MINIMAX_M3: Config = {
    "model_type": "minimax_m3",
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072,
    "num_hidden_layers": 60,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_layer_freq": [0, 0, 0, *[1] * 57],
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sparse_attention_config": {
        "sparse_attention_freq": [0, 0, 0, *[1] * 57],
        "sparse_block_size": 128,
        "sparse_index_dim": 128,
        "sparse_num_index_heads": 4,
        "sparse_topk_blocks": 16,
    },
    "vocab_size": 200064,
}
DBRX: Config = {
    "model_type": "dbrx",
    "d_model": 6144,
    "n_layers": 40,
    "n_heads": 48,
    "vocab_size": 100352,
    "attn_config": {"kv_n_heads": 8},
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
}
STEP_3: Config = {
    "model_type": "step3_text",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "moe_intermediate_size": 5120,
    "moe_num_experts": 48,
    "moe_top_k": 3,
    "share_expert_dim": 5120,
    "share_q_dim": 2048,
    "head_dim": 256,
    "vocab_size": 128815,
}
FALCON_40B: Config = {
    "model_type": "RefinedWeb",
    "hidden_size": 8192,
    "n_layer": 60,
    "n_head": 128,
    "n_head_kv": 8,
    "vocab_size": 65024,
}


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (GEMMA_4_26B, 25.2),
        (MIMO_V2_FLASH, 309.0),
        (DEEPSEEK_V4_FLASH, 284.0),
        (MINIMAX_M3, 426.0),
        (DBRX, 132.0),
        (STEP_3, 316.0),
        (FALCON_40B, 41.3),
    ],
    ids=lambda value: str(value["model_type"]) if isinstance(value, dict) else "",
)
def test_published_parameters(config: Config, billions: float) -> None:
    assert shape_from_config(config).total_parameters / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("config", [GEMMA_4_E2B, GEMMA_4_26B], ids=["E2B", "26B-A4B"])
def test_gemma_4_is_what_transformers_builds(config: Config) -> None:
    live = transformers.AutoConfig.for_model(**config)
    read = shape_from_config(config)
    assert read.total_parameters == oracle.counted(live)
    # The class keeps sizes of single layers under other names.
    assert model_facts(shape_from_config(live.to_dict())) == model_facts(read)


def test_layers_that_share_a_cache_add_none_and_widen() -> None:
    shape = shape_from_config(GEMMA_4_E2B)
    facts = model_facts(shape)
    assert facts.layers == {"full_attention": 7, "sliding_attention": 28, "dense_ffn": 35}
    # Of the first 15 layers 3 see all tokens with heads of 512, 12 a window with heads of 256.
    assert facts.kv_bytes_per_token == 2 * 2 * (3 * 512 + 12 * 256)
    assert shape.dense_widths == ((20, 12288), (15, 6144))
    window, far = 12 * 256 * 512, 3 * 512 * 100_001
    assert cache_bytes(shape, 1, 100_000) == 4 * (window + far)


def test_values_that_are_keys_are_held_twice_and_counted_once() -> None:
    shape = shape_from_config(GEMMA_4_26B)
    apart = shape_from_config({**GEMMA_4_26B, "attention_k_eq_v": False})
    assert apart.total_parameters - shape.total_parameters == 5 * 2 * 512 * 2816
    held = sum(count * gemm.parameters for count, gemm in shape.matrices())
    assert held == sum(count * gemm.parameters for count, gemm in apart.matrices())
    assert model_facts(shape).layers == {
        "full_attention": 5,
        "sliding_attention": 25,
        "dense_ffn": 30,
        "moe_ffn": 30,
    }


def test_all_layers_may_slide_with_heads_of_their_own() -> None:
    shape = shape_from_config({**MIMO_V2_FLASH, "hybrid_layer_pattern": [1] * 48})
    assert shape.num_kv_heads == 8
    assert shape.attention.token_bytes == (192 + 128) * 2


def test_deepseek_v4_keeps_a_window_and_an_entry_for_several_tokens() -> None:
    shape = shape_from_config(DEEPSEEK_V4_FLASH)
    by_rate = {part.compress: part for _, part in shape.attentions}
    assert {rate: part.layers for rate, part in by_rate.items()} == {0: 2, 4: 21, 128: 20}
    assert by_rate[4].read(64_000) == 128 + 512
    assert by_rate[128].read(64_000) == 128 + 500
    assert by_rate[4].stored(64_000) == 128 + 16_000
    assert shape.indexer is not None and shape.indexer.layers == 21
    entries = 43 * 128 + 21 * 16_000 + 20 * 500
    keys = 21 * 132 * 16_000
    assert cache_bytes(shape, 1, 63_999) == entries * 584 + keys
    found = predict(DEEPSEEK_V4_FLASH, "H200", (1,), (1024, 65_536), tensor_parallel_size=4)
    near, far = (found.cell(Module.ATTENTION, 1, length).seconds[0] for length in (1024, 65_536))
    assert 1 < far / near < 3, "a position reads no more than it picks"


def test_deepseek_v4_stores_its_experts_in_4_bits() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {**DEEPSEEK_V4_FLASH, "quantization_config": fp8}
    shape = shape_from_config(config)
    assert (shape.weight_bytes, 8 * shape.expert_weight_bytes) == (1, 4.25)
    # The published files take 160 GB.
    assert model_facts(shape).weight_bytes / 1e9 == pytest.approx(156, rel=0.05)
    whole = shape_from_config({**config, "expert_dtype": "fp8"})
    assert whole.expert_weight_bytes == 1
    nvfp4 = {**fp8, "moe_quant_algo": "NVFP4", "ignore": ["*.attn.*"]}
    both = shape_from_config({**config, "quantization_config": nvfp4})
    assert (both.weight_bytes, 8 * both.expert_weight_bytes) == (1, 4.5)


def test_deepseek_v4_by_the_names_of_its_class() -> None:
    live = transformers.AutoConfig.for_model("deepseek_v4").to_dict()
    assert shape_from_config(live).total_parameters / 1e9 == pytest.approx(284, rel=0.01)
    with pytest.raises(ShapeError, match=r"compress_ratios has 3 entries for 43 layers"):
        shape_from_config({**DEEPSEEK_V4_FLASH, "compress_ratios": [4, 128, 4]})
    with pytest.raises(ShapeError, match=r"layer_types has 'full_attention'"):
        odd = {**DEEPSEEK_V4_FLASH, "compress_ratios": None, "layer_types": ["full_attention"] * 43}
        shape_from_config(odd)


def test_minimax_m3_reads_all_in_some_layers_and_picks_in_others() -> None:
    shape = shape_from_config(MINIMAX_M3)
    assert model_facts(shape).layers["sparse_attention"] == 57
    (_, picking), (_, full) = shape.attentions
    assert (picking.read(100_000), full.read(100_000)) == (2048, 100_000)
    assert shape.indexer is not None
    assert shape.indexer.token_bytes == 256
    found = predict(MINIMAX_M3, "H200", (1,), (8192,), tensor_parallel_size=4, max_positions=4)
    whole = found.cell(Module.MODEL, 1, 8192)
    assert sum(part[0] for part in whole.parts.values()) == pytest.approx(whole.seconds[0])
    assert np.isfinite(whole.seconds).all()


def test_inputs_for_each_layer_are_part_of_a_step() -> None:
    found = predict(GEMMA_4_E2B, "H100-SXM", (1,), (1024,), max_positions=2)
    parts = found.cell(Module.MODEL, 1, 1024).parts
    assert parts["other projections"][0] > 0
    assert found.shape.looked_up_parameters == 262144 * 35 * 256


def test_layers_without_attention_and_feed_forward() -> None:
    config = transformers.AutoConfig.for_model("mamba2").to_dict()
    shape = shape_from_config(config)
    assert model_facts(shape).layers == {"linear_attention": 64}
    assert model_facts(shape).kv_bytes_per_token == 0
    found = predict(config, "H100-SXM", (1,), (1024,), max_positions=2, tensor_parallel_size=2)
    assert modules_of(shape) == (Module.MODEL, Module.LINEAR_ATTENTION)
    assert found.cell(Module.MODEL, 1, 1024).seconds[0] > 0


def test_a_model_chosen_by_its_class_as_in_vllm() -> None:
    named = {**DEEPSEEK_V4_FLASH, "model_type": "deepseek_ref"}
    with pytest.raises(ShapeError, match="'deepseek_ref' is not a known family"):
        shape_from_config(named)
    found = shape_from_config({**named, "architectures": ["DeepseekV4ForCausalLM"]})
    assert found.total_parameters == shape_from_config(DEEPSEEK_V4_FLASH).total_parameters
    assert any("by its class, like deepseek_v4" in sentence for sentence in found.assumptions)


def test_encoders_of_other_modalities_are_named() -> None:
    whole = {"model_type": "gemma4", "text_config": GEMMA_4_E2B, "vision_config": {"a": 1}}
    shape = shape_from_config(whole)
    assert shape.total_parameters == shape_from_config(GEMMA_4_E2B).total_parameters
    assert any("without vision_config" in sentence for sentence in shape.assumptions)


def test_a_part_of_a_config_may_leave_out_what_its_class_says() -> None:
    text = {"model_type": "mistral", "num_hidden_layers": 40, "vocab_size": 131072}
    shape = shape_from_config({"model_type": "llava", "text_config": text})
    assert (shape.hidden_size, shape.intermediate_size, shape.num_kv_heads) == (4096, 14336, 8)
    with pytest.raises(ShapeError, match="the mistral config lacks hidden_size"):
        shape_from_config(text)
