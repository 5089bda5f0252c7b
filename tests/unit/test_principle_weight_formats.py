"""Formats of weights that few checkpoints have: quark, torchao, auto-round, mixed groups."""

from __future__ import annotations

from typing import Any

import pytest
from test_principle_hybrid import NANO
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, QWEN_3_30B_A3B, Config

from vllm_nfp.principle import ModelShape, ShapeError, shape_from_config
from vllm_nfp.principle.weights.paths import of_other_expert


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
    with pytest.raises(ShapeError, match="'quark' has a global_quant_config that is not read"):
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
    with pytest.raises(
        ShapeError, match="'torchao' has a quant_type that is not read: 'int2_weight_only'"
    ):
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


INT4 = {"type": "int", "num_bits": 4, "group_size": 128}
NVFP4 = {"type": "float", "num_bits": 4, "group_size": 16}


def grouped(*groups: tuple[list[str], Config], **other: Any) -> ModelShape:
    """LLAMA_3_8B with groups of targets and weights as compressed-tensors writes them."""
    found = {
        f"group_{index}": {"targets": targets, "weights": weights, "input_activations": None}
        for index, (targets, weights) in enumerate(groups)
    }
    return quantized(LLAMA_3_8B, quant_method="compressed-tensors", config_groups=found, **other)


def test_a_group_names_modules_beside_all_linear_ones() -> None:
    assert 8 * grouped((["Linear"], NVFP4)).lm_head_weight_bytes == 16
    assert 8 * grouped((["Linear", "lm_head"], NVFP4)).lm_head_weight_bytes == 4.5


@pytest.mark.parametrize("name", ["FusedMoE", "RoutedExperts"])
def test_a_group_for_the_class_of_experts(name: str) -> None:
    groups = {
        "dense": {"targets": ["Linear"], "weights": INT4},
        "experts": {"targets": [name], "weights": NVFP4},
    }
    shape = quantized(QWEN_3_30B_A3B, quant_method="compressed-tensors", config_groups=groups)
    assert (8 * shape.weight_bytes, 8 * shape.expert_weight_bytes) == (4.125, 4.5)


def test_a_config_may_be_about_the_cache_alone() -> None:
    shape = grouped(kv_cache_scheme={"type": "float", "num_bits": 8})
    assert (shape.quantization, shape.weight_bytes, shape.kv_bytes) == ("none", 2, 1)


def test_sparse_weights_are_refused_by_their_name() -> None:
    with pytest.raises(ShapeError, match="sparsity_config has the format 'sparse-24-bitmask'"):
        grouped((["Linear"], INT4), sparsity_config={"format": "sparse-24-bitmask"})
    grouped((["Linear"], INT4), sparsity_config={"format": "dense"})


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        (r"re:.*layers\.(?:[0-9]|1[0-5])\.mlp\.(?:gate|up|down)_proj$", 16),
        (r"re:.*layers\.(1[6-9]|2[0-9]|3[01])\.mlp.*", 16),
    ],
)
def test_expressions_with_ranges_in_groups(target: str, layers: int) -> None:
    shape = grouped(([target], INT4))
    stored = (layers * 4.125 + (32 - layers) * 16) / 32
    assert bits(shape) == (16, pytest.approx(stored))


def test_modelopt_by_module_with_modules_left_plain() -> None:
    layers = {
        **{
            f"model.layers.{i}.self_attn.{p}_proj": {"quant_algo": "FP8"}
            for i in range(32)
            for p in "qkvo"
        },
        **{
            f"model.layers.{i}.mlp.{p}_proj": {"quant_algo": "UNQUANTIZED"}
            for i in range(32)
            for p in ("gate", "up", "down")
        },
    }
    given = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    assert bits(quantized(LLAMA_3_8B, **given, quantized_layers=layers)) == (8, 16)
    layers = {
        f"model.layers.{i}.mlp.experts": {"quant_algo": "FP8_BLOCK_SCALES"} for i in range(48)
    }
    shape = quantized(QWEN_3_30B_A3B, **given, quantized_layers=layers)
    assert (shape.quantization, shape.weight_bytes, shape.expert_weight_bytes) == (
        "fp8_block",
        2,
        1,
    )


def test_modelopt_by_groups_alone() -> None:
    fp8 = {"type": "float", "num_bits": 8}
    groups = {
        "group_0": {"weights": fp8, "input_activations": fp8, "targets": ["re:.*self_attn.*"]},
        "group_1": {"weights": NVFP4, "targets": ["re:.*mlp.*"]},
    }
    given = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "config_groups": groups}
    assert bits(quantized(LLAMA_3_8B, **given)) == (8, 4.5)


def test_awq_as_its_own_tool_names_groups() -> None:
    shape = quantized(LLAMA_3_8B, quant_method="awq", w_bit=4, q_group_size=64)
    assert 8 * shape.weight_bytes == 4.25


def test_auto_round_with_expressions() -> None:
    extra = {r"\.self_attn\..*": {"bits": 16, "data_type": "float"}}
    given = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": extra}
    assert bits(quantized(LLAMA_3_8B, **given)) == (16, 4.125)


def test_quark_without_a_format_for_all() -> None:
    fp4 = {"weight": {"dtype": "fp4", "group_size": 32}, "input_tensors": {"dtype": "fp4"}}
    shape = quantized(LLAMA_3_8B, **quark(None, layer_quant_config={"*mlp*": fp4}))
    assert bits(shape) == (16, 4.25)
    by_class = {"Linear": {"weight": FP8, "input_tensors": FP8}}
    assert bits(quantized(LLAMA_3_8B, **quark(None, layer_type_quant_config=by_class))) == (8, 8)
    with pytest.raises(ShapeError, match="'quark' has a global_quant_config"):
        quantized(LLAMA_3_8B, **quark(None))


def test_quark_with_6_bits() -> None:
    shape = quantized(LLAMA_3_8B, **quark({"dtype": "fp6_e3m2", "group_size": 32}))
    assert (shape.quantization, 8 * shape.weight_bytes) == ("wna16", 6.25)


@pytest.mark.parametrize("kind", ["IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig"])
def test_torchao_with_a_type_of_any_width(kind: str) -> None:
    data = {
        "weight_dtype": {"_type": "torch.dtype", "_data": "int3"},
        "weight_granularity": {"_type": "PerGroup", "_data": {"group_size": 32}},
    }
    given = {"default": {"_type": kind, "_data": data}}
    shape = quantized(LLAMA_3_8B, quant_method="torchao", quant_type=given)
    assert (shape.quantization, 8 * shape.weight_bytes) == ("wna16", 3.5)
    data["weight_dtype"] = {"_type": "torch.dtype", "_data": "float32"}
    with pytest.raises(ShapeError, match="'torchao' has a quant_type that is not read"):
        quantized(LLAMA_3_8B, quant_method="torchao", quant_type=given)


def test_fp_quant_and_experts_alone() -> None:
    shape = quantized(LLAMA_3_8B, quant_method="fp_quant", forward_dtype="nvfp4")
    assert 8 * shape.weight_bytes == 4.5
    shape = quantized(QWEN_3_30B_A3B, quant_method="experts_int8")
    assert (8 * shape.weight_bytes, 8 * shape.expert_weight_bytes) == (16, 8)


def test_names_of_other_parts_take_no_time() -> None:
    """Wildcards with a digit are asked for each layer, unless they are of no layer at all."""
    others = [f"mtp.layers.{i}.*.{j}*" for i in range(40) for j in range(40)]
    shape = quantized(QWEN_3_30B_A3B, quant_method="fp8", ignore=others)
    assert shape.weight_bytes == 1


def test_experts_without_a_gate_have_two_matrices() -> None:
    """Nemotron 3.5: a list by module names no gate, and what it does not name has 16 bits."""
    pattern = str(NANO["hybrid_override_pattern"])
    sparse = [index for index, letter in enumerate(pattern) if letter == "E"]
    layers = {
        f"backbone.layers.{index}.mixer.experts.{expert}.{name}": {"quant_algo": "W4A16_NVFP4"}
        for index in sparse
        for expert in range(2)
        for name in ("up_proj", "down_proj")
    }
    given = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    shape = quantized(NANO, quantization=given)
    assert (8 * shape.expert_weight_bytes, 8 * shape.weight_bytes) == (4.5, 16)


@pytest.mark.parametrize(
    ("entry", "other"),
    [
        ("model.layers.3.mlp.experts.7.w1", True),
        ("model.layers.3.mlp.experts.127", True),
        ("model.layers.3.mlp.experts.0.w1", False),
        ("model.layers.3.mlp.experts.*", False),
        ("model.layers.3.mlp.experts", False),
        ("model.layers.3.mlp.shared_experts.7", False),
    ],
)
def test_one_expert_stands_for_all(entry: str, other: bool) -> None:
    """Long lists are read fast: a checkpoint of MiniMax-M3 names 22 422 modules."""
    assert of_other_expert(entry) is other
