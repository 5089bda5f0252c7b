"""Formats of weights that few checkpoints have: quark, torchao, auto-round, mixed groups."""

from __future__ import annotations

from typing import Any

import pytest
from test_principle_hybrid import NANO
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, QWEN_3_30B_A3B, Config

from vllm_nfp.principle import ModelShape, ShapeError, shape_from_config


def quantized(config: Config, **quantization: Any) -> ModelShape:
    return shape_from_config({**config, "quantization_config": quantization})


def bits(shape: ModelShape) -> tuple[float, float]:
    """Of attention and of dense blocks."""
    return 8 * shape.weight_bytes, 8 * shape.dense_ffn_gemms[0].weight_bytes


def quark(weight: Any, inputs: Any = None, **other: Any) -> Config:
    whole = {"weight": weight, "input_tensors": inputs}
    return {"quant_method": "quark", "global_quant_config": whole, **other}


FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}


@pytest.mark.parametrize(
    ("given", "kind", "stored"),
    [
        (quark(FP8, FP8), "fp8", 8),
        (quark({"dtype": "fp4", "qscheme": "per_group", "group_size": 32}, FP8), "wna16", 4.25),
        (quark({"dtype": "int4", "group_size": 128}), "wna16", 4.125),
        (quark({"dtype": "int8"}, {"dtype": "int8"}), "fp8", 8),
        (quark([FP8, {"dtype": "int4", "group_size": 128}], FP8), "wna16", 4.125),
    ],
)
def test_quark(given: Config, kind: str, stored: float) -> None:
    shape = quantized(LLAMA_3_8B, **given)
    assert (shape.quantization, 8 * shape.weight_bytes) == (kind, stored)


def test_quark_by_wildcards() -> None:
    layers = {"*down_proj": {"weight": FP8, "input_tensors": FP8}, "*k_proj": {"weight": None}}
    given = quark(
        {"dtype": "fp4", "group_size": 32}, FP8, layer_quant_config=layers, exclude=["*self_attn*"]
    )
    assert bits(quantized(LLAMA_3_8B, **given)) == (16, pytest.approx((2 * 4.25 + 8) / 3))
    with pytest.raises(ShapeError, match="'quark' is not recognised"):
        quantized(LLAMA_3_8B, **quark({"dtype": "int3"}))


@pytest.mark.parametrize(
    ("kind", "expected", "stored"),
    [
        ({"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}}, "wna16", 4.25),
        ({"_type": "Int8WeightOnlyConfig", "_data": {}}, "wna16", 8),
        ({"_type": "Float8DynamicActivationFloat8WeightConfig", "_data": {}}, "fp8", 8),
        ({"_type": "Int8DynamicActivationInt8WeightConfig"}, "fp8", 8),
    ],
)
def test_torchao(kind: Config, expected: str, stored: float) -> None:
    shape = quantized(LLAMA_3_8B, quant_method="torchao", quant_type={"default": kind})
    assert (shape.quantization, 8 * shape.weight_bytes) == (expected, stored)
    by_name = {
        "_type": "ModuleFqnToConfig",
        "_data": {"module_fqn_to_config": {"_default": kind, "re:.*self_attn.*": None}},
    }
    mixed = quantized(LLAMA_3_8B, quant_method="torchao", quant_type={"default": by_name})
    assert bits(mixed) == (16, stored)


def test_torchao_by_a_plain_name() -> None:
    shape = quantized(LLAMA_3_8B, quant_method="torchao", quant_type="int4_weight_only")
    assert 8 * shape.weight_bytes == 4.125
    with pytest.raises(ShapeError, match="'torchao' is not recognised"):
        quantized(LLAMA_3_8B, quant_method="torchao", quant_type="int2_weight_only")


def test_auto_round_gives_modules_bits_of_their_own() -> None:
    names = [f"model.layers.{index}.self_attn.{m}_proj" for index in range(32) for m in "qkvo"]
    shape = quantized(
        LLAMA_3_8B,
        quant_method="auto-round",
        bits=4,
        group_size=128,
        extra_config={name: {"bits": 16} for name in names},
    )
    assert bits(shape) == (16, 4.125)
    fp4 = quantized(LLAMA_3_8B, quant_method="auto-round", bits=4, group_size=32, data_type="mx_fp")
    assert 8 * fp4.weight_bytes == 4.25


def test_4_bit_weights_with_8_bit_activations() -> None:
    weights = {"type": "int", "num_bits": 4, "group_size": 128}
    groups = {"a": {"weights": weights, "input_activations": {"num_bits": 8}, "targets": "Linear"}}
    groups["a"]["targets"] = ["Linear"]
    shape = quantized(LLAMA_3_8B, quant_method="compressed-tensors", config_groups=groups)
    assert 8 * shape.weight_bytes == 4.125
    assert any("8-bit activations" in sentence for sentence in shape.assumptions)


def test_8_bit_bitsandbytes() -> None:
    shape = quantized(LLAMA_3_8B, quant_method="bitsandbytes", load_in_8bit=True)
    assert (shape.quantization, shape.weight_bytes) == ("wna16", 1)


def test_the_lm_head_is_stored_as_vllm_stores_it() -> None:
    nvfp4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    assert 8 * quantized(LLAMA_3_8B, **nvfp4).lm_head_weight_bytes == 4.5
    left = quantized(LLAMA_3_8B, **nvfp4, exclude_modules=["lm_head"])
    assert left.lm_head_weight_bytes == 2
    tied = {**LLAMA_3_8B, "tie_word_embeddings": True}
    assert quantized(tied, **nvfp4).lm_head_weight_bytes == 2
    assert quantized(LLAMA_3_8B, quant_method="fp8").lm_head_weight_bytes == 2
    mixed = {"lm_head": {"quant_algo": "FP8"}, "model.layers.0.mlp": {"quant_algo": "FP8"}}
    listed = quantized(
        LLAMA_3_8B, **{**nvfp4, "quant_algo": "MIXED_PRECISION"}, quantized_layers=mixed
    )
    assert listed.lm_head_weight_bytes == 1


def test_layers_with_a_state_have_names_of_their_own() -> None:
    nvfp4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    pattern = str(NANO["hybrid_override_pattern"])
    recurrent = [index for index, block in enumerate(pattern) if block == "M"]
    names = [f"backbone.layers.{index}.mixer.in_proj" for index in recurrent]
    shape = quantized(NANO, **nvfp4, exclude_modules=["lm_head", *names])
    stored = 8 * shape.linear_attention_gemms[0].weight_bytes
    assert stored == pytest.approx((2 * 16 + 4.5) / 3)
    assert (8 * shape.weight_bytes, 8 * shape.expert_weight_bytes) == (4.5, 4.5)


def test_experts_and_the_rest_in_formats_of_their_own() -> None:
    layers = {}
    for index in range(48):
        layers[f"model.layers.{index}.mlp.experts"] = {"quant_algo": "NVFP4"}
        layers[f"model.layers.{index}.self_attn"] = {"quant_algo": "fp8"}
    given = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    shape = quantized(QWEN_3_30B_A3B, **given, quantized_layers=layers)
    assert (8 * shape.weight_bytes, 8 * shape.expert_weight_bytes) == (8, 4.5)


def test_a_block_scaled_kind_stays_one() -> None:
    shape = quantized(DEEPSEEK_V3, quant_method="fp8", weight_block_size=[128, 128])
    assert shape.quantization == "fp8_block"
