"""Which parts a checkpoint quantizes, and what is refused."""

from __future__ import annotations

import contextlib
import time
from string import ascii_letters
from typing import Any

import pytest
from test_principle_models import (
    DEEPSEEK_V3,
    KIMI_K2,
    LLADA_8B,
    LLAMA_3_8B,
    LLAMA_4_SCOUT,
    MIXTRAL_8X7B,
    PHI_2,
    PHI_3_MINI,
    QWEN_1_5_MOE_A2_7B,
    QWEN_3_30B_A3B,
    Config,
)

from vllm_nfp.principle import ModelShape, ShapeError, shape_from_config
from vllm_nfp.principle.arguments import weight_bits
from vllm_nfp.principle.errors import PredictionError

INT4 = {"type": "int", "num_bits": 4, "group_size": 32, "strategy": "group"}
FP8 = {"type": "float", "num_bits": 8, "strategy": "tensor"}


def parts(shape: ModelShape) -> tuple[float, float, float, float]:
    """Bits per weight of attention, dense block, shared expert and routed expert."""
    gemms = (
        shape.projection_gemms[0],
        shape.dense_ffn_gemms[0],
        shape.shared_gemms[-1],
        shape.expert_gemms[0],
    )
    attention, dense, shared, expert = (8 * gemm.weight_bytes for gemm in gemms)
    return attention, dense, shared, expert


def quantized(config: Config, **quantization: Any) -> ModelShape:
    return shape_from_config({**config, "quantization_config": quantization})


def compressed(weights: Config, activations: Config | None = None, **other: Any) -> Config:
    group = {"weights": weights, "input_activations": activations, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {**group, **other.pop("group", {})}},
        **other,
    }


def test_published_int4_experts_leave_the_rest_in_16_bits() -> None:
    ignore = [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ]
    shape = quantized(KIMI_K2, **compressed(INT4, ignore=ignore))
    assert parts(shape) == (16, 16, 16, 4.5)
    assert not any(gemm.fp8 for gemm in shape.expert_gemms)


def test_published_fp8_llama_4_leaves_attention_and_shared_experts() -> None:
    ignore = [
        "re:.*lm_head",
        "re:.*self_attn",
        "re:.*router",
        "re:.*vision_model.*",
        "re:.*multi_modal_projector.*",
        "Llama4TextAttention",
        "re:.*shared_expert.*",
    ]
    config = {**LLAMA_4_SCOUT, "quantization_config": compressed(FP8, FP8, ignore=ignore)}
    shape = shape_from_config(config)
    assert parts(shape)[0] == 16
    assert parts(shape)[2:] == (16, 8)
    assert [gemm.fp8 for gemm in (shape.projection_gemms[0], shape.expert_gemms[0])] == [
        False,
        True,
    ]


def test_published_fp8_lists_name_only_parts_that_have_16_bits_anyway() -> None:
    names = ["lm_head"]
    for index in range(48):
        names += [f"model.layers.{index}.mlp.gate", f"model.layers.{index}.input_layernorm"]
    shape = quantized(
        QWEN_3_30B_A3B,
        quant_method="fp8",
        weight_block_size=[128, 128],
        modules_to_not_convert=names,
    )
    assert (shape.quantization, parts(shape)) == ("fp8_block", (8, 8, 16, 8))
    assert shape.router_weight_bytes == shape.lm_head_weight_bytes == 2


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ({"modules_to_not_convert": ["self_attn"]}, (16, 8, 8, 8)),
        ({"ignored_layers": ["mlp.shared_experts"]}, (8, 8, 16, 8)),
        (
            {"ignore": ["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2.mlp"]},
            (8, 16, 8, 8),
        ),
        ({"ignore": ["re:.*experts.*"]}, (8, 8, 16, 16)),
        ({"ignore": [r"re:model\.layers\.\d+\.mlp\.experts\..*"]}, (8, 8, 8, 16)),
        ({"ignore": ["re:model.layers.[0-2].mlp.*"]}, (8, 16, 8, 8)),
        ({"exclude_modules": ["*self_attn*", "lm_head"]}, (16, 8, 8, 8)),
        ({"ignore": ["vision_tower.layers.0.self_attn.q_proj", "visual", "gate"]}, (8, 8, 8, 8)),
        ({"ignore": ["language_model.model.layers.0.mlp.gate_proj"]}, (8, 8 + 8 / 9, 8, 8)),
        ({"ignore": None}, (8, 8, 8, 8)),
    ],
)
def test_ignore_lists(ignored: Config, expected: tuple[float, ...]) -> None:
    shape = quantized(DEEPSEEK_V3, quant_method="fp8", **ignored)
    assert parts(shape) == pytest.approx(expected)


def test_a_part_left_out_in_some_layers_has_the_mean() -> None:
    names = [f"model.layers.{index}.self_attn" for index in range(8)]
    shape = quantized(LLAMA_3_8B, quant_method="fp8", modules_to_not_convert=names)
    assert shape.weight_bytes == 1.25
    assert shape.projection_gemms[0].fp8


def test_names_of_other_families_modules() -> None:
    mixtral = quantized(MIXTRAL_8X7B, quant_method="fp8", ignore=["re:.*block_sparse_moe.gate"])
    assert 8 * mixtral.expert_weight_bytes == 8
    mixtral = quantized(MIXTRAL_8X7B, quant_method="fp8", ignore=["block_sparse_moe.experts"])
    assert 8 * mixtral.expert_weight_bytes == 16
    qwen = quantized(QWEN_1_5_MOE_A2_7B, quant_method="fp8", ignore=["mlp.shared_expert"])
    assert 8 * qwen.shared_gemms[1].weight_bytes == 16


def test_merged_matrices_have_other_names() -> None:
    names = [f"model.layers.{index}.self_attn.{name}" for index in range(32) for name in MERGED]
    shape = quantized(PHI_3_MINI, quant_method="fp8", ignore=names)
    assert (shape.weight_bytes, shape.dense_ffn_gemms[0].weight_bytes) == (2, 1)
    shape = quantized(PHI_2, quant_method="fp8", ignore=["mlp.fc1", "mlp.fc2", "mlp.gate_proj"])
    assert (shape.weight_bytes, shape.dense_ffn_gemms[0].weight_bytes) == (1, 2)


MERGED = ("qkv_proj", "o_proj")


def test_targets_and_listed_modules_are_the_only_quantized_ones() -> None:
    targets = {"targets": ["re:.*mlp.experts.*"]}
    shape = quantized(DEEPSEEK_V3, **compressed(INT4, group=targets))
    assert parts(shape) == (16, 16, 16, 4.5)
    listed = [["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"], ["self_attn.o_proj"]]
    shape = quantized(
        QWEN_3_30B_A3B,
        quant_method="gptq",
        bits=4,
        group_size=-1,
        modules_in_block_to_quantize=listed,
    )
    assert (8 * shape.weight_bytes, 8 * shape.expert_weight_bytes) == (4, 16)


def test_gptq_dynamic_rules_and_lm_head() -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    shape = quantized(LLAMA_3_8B, **gptq, dynamic={r"-:.*self_attn.*": {}}, lm_head=True)
    assert (shape.weight_bytes, 8 * shape.dense_ffn_gemms[0].weight_bytes) == (2, 4.125)
    assert 8 * shape.lm_head_weight_bytes == 4.125
    own = quantized(LLAMA_3_8B, **gptq, dynamic={r"+:.*down_proj": {"bits": 8}})
    # Of three matrices one has 8 bits.
    assert 8 * own.dense_ffn_gemms[0].weight_bytes == pytest.approx((2 * 4 + 8) / 3 + 0.125)
    with pytest.raises(ShapeError, match=r"dynamic of quantization_config has .* give weight_b"):
        quantized(LLAMA_3_8B, **gptq, dynamic={"+:.*down_proj": 8})


def test_modelopt_fp8() -> None:
    shape = quantized(
        LLAMA_3_8B,
        quant_method="modelopt",
        quant_algo="FP8",
        kv_cache_quant_algo="FP8",
        exclude_modules=["lm_head"],
    )
    assert (shape.quantization, shape.weight_bytes, shape.kv_bytes) == ("fp8", 1, 1)
    with pytest.raises(
        ShapeError, match="'modelopt' has a quant_algo that is not read: 'W4A8_AWQ'"
    ):
        quantized(LLAMA_3_8B, quant_method="modelopt", quant_algo="W4A8_AWQ")


def test_modelopt_nvfp4_leaves_the_start_of_a_name_in_16_bits() -> None:
    shape = quantized(
        LLAMA_3_8B,
        quant_method="modelopt",
        quant_algo="NVFP4",
        exclude_modules=["lm_head", *(f"model.layers.{i}.self_attn*" for i in range(32))],
    )
    # 4 bits and an 8-bit scale for every 16 weights.
    assert (shape.weight_bytes, shape.dense_weight_bytes) == (2, 4.5 / 8)
    assert shape.assumptions == ("FP4 weights multiply in 16 bits, as on GPUs before Blackwell.",)
    some = quantized(
        LLAMA_3_8B, quant_method="modelopt", quant_algo="NVFP4", ignore=["model.layers.1*"]
    )
    # Layers 1 and 10 to 19 of 32.
    assert some.weight_bytes == pytest.approx((11 * 16 + 21 * 4.5) / 32 / 8)


def test_modelopt_of_old_nests_and_names_no_method() -> None:
    shape = quantized(
        LLAMA_3_8B,
        producer={"name": "modelopt"},
        quantization={"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    )
    assert (shape.quantization, shape.weight_bytes, shape.kv_bytes) == ("fp8", 1, 1)


def test_modelopt_mixes_formats_by_module() -> None:
    layers = {}
    for index in range(32):
        for matrix in ("gate_proj", "up_proj", "down_proj"):
            layers[f"model.layers.{index}.mlp.{matrix}"] = {"quant_algo": "NVFP4"}
        for matrix in ("q_proj", "k_proj"):
            layers[f"model.layers.{index}.self_attn.{matrix}"] = {"quant_algo": "FP8"}
    given = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    shape = quantized(LLAMA_3_8B, **given, quantized_layers=layers)
    assert (shape.weight_bytes, shape.dense_weight_bytes) == (1.5, 4.5 / 8)
    assert any("FP8 ones multiply in 16 bits" in sentence for sentence in shape.assumptions)
    layers["model.layers.0.mlp.gate_proj"] = {"quant_algo": "W3"}
    with pytest.raises(ShapeError, match=r"quantized_layers has .* 'W3', which is not read"):
        quantized(LLAMA_3_8B, **given, quantized_layers=layers)


def test_bitsandbytes_and_8_bit_integers() -> None:
    four = quantized(LLAMA_3_8B, quant_method="bitsandbytes", load_in_4bit=True)
    assert (four.quantization, four.weight_bytes) == ("wna16", 4.5 / 8)
    int8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
    eight = quantized(LLAMA_3_8B, **compressed(int8, int8))
    assert (eight.quantization, eight.weight_bytes) == ("fp8", 1)
    assert eight.assumptions and four.assumptions
    nvfp4 = {"num_bits": 4, "type": "float", "group_size": 16}
    assert quantized(LLAMA_3_8B, **compressed(nvfp4, nvfp4)).weight_bytes == 4.5 / 8


def test_what_has_no_reading_may_be_given() -> None:
    config = {**LLAMA_3_8B, "quantization_config": {"quant_method": "quark"}}
    assert shape_from_config(config, weight_bits=weight_bits(config, "int4")).weight_bytes == 0.5
    read = {**LLAMA_3_8B, "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(PredictionError, match="leave it out"):
        weight_bits(read, "fp8")


def test_the_config_may_ask_for_an_fp8_cache() -> None:
    scheme = {"type": "float", "num_bits": 8, "strategy": "tensor"}
    config = {**LLAMA_3_8B, "quantization_config": compressed(FP8, FP8, kv_cache_scheme=scheme)}
    assert shape_from_config(config).kv_bytes == 1
    assert shape_from_config(config, kv_bits=16).kv_bytes == 2
    assert shape_from_config(LLAMA_3_8B).kv_bytes == 2
    odd = compressed(FP8, FP8, kv_cache_scheme={"type": "int", "num_bits": 8})
    with pytest.raises(ShapeError, match=r"kv_cache_scheme an object is not .*: give kv_bits"):
        quantized(LLAMA_3_8B, **odd)


def test_older_files_call_it_compression_config() -> None:
    shape = shape_from_config({**LLAMA_3_8B, "compression_config": compressed(INT4)})
    assert 8 * shape.weight_bytes == 4.5


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' has no format that is read"),
        ({}, "quantization '' is not recognised"),
        ({"quant_method": ["fp8"]}, "quantization a list is not recognised"),
        (
            compressed({**FP8, "num_bits": 4}, FP8),
            "'compressed-tensors' has no format that is read",
        ),
        ({"quant_method": "gptq", "bits": 0}, "bits of quantization_config .* not 0"),
        ({"quant_method": "gptq", "bits": 10**9}, "bits of quantization_config .* from 1 to 8"),
        ({"quant_method": "awq"}, "bits of quantization_config .* not None"),
        (
            {"quant_method": "fp8", "ignore": "lm_head"},
            "ignore of quantization_config must be a li",
        ),
        ({"quant_method": "fp8", "ignore": [1]}, "ignore of quantization_config must be a list"),
        (
            {"quant_method": "fp8", "ignore": ["re:(a+)+$"]},
            r"expression '\(a\+\)\+\$', which is not",
        ),
        ({"quant_method": "fp8", "ignore": ["re:a[b"]}, r"expression 'a\[b', which is none"),
        (
            {"quant_method": "fp8", "ignore": ["re:" + "a.*" * 9]},
            "which is not read: give weight_b",
        ),
    ],
)
def test_refused_quantization(quantization: Config, message: str) -> None:
    config = {**LLAMA_3_8B, "quantization_config": {"x": 1, **quantization}}
    with pytest.raises(ShapeError, match=message):
        shape_from_config(config)


def test_quantization_must_be_an_object() -> None:
    with pytest.raises(ShapeError, match="quantization_config must be an object, not 'fp8'"):
        shape_from_config({**LLADA_8B, "quantization_config": "fp8"})


def test_groups_that_differ_have_their_own_modules() -> None:
    groups = {
        "a": {"weights": INT4, "targets": ["re:.*experts.*"]},
        "b": {"weights": FP8, "input_activations": FP8, "targets": ["re:.*self_attn.*"]},
    }
    shape = quantized(DEEPSEEK_V3, quant_method="compressed-tensors", config_groups=groups)
    assert parts(shape) == (8, 16, 4.5, 4.5)
    assert any("FP8 ones multiply in 16 bits" in sentence for sentence in shape.assumptions)
    groups["c"] = {"weights": {**FP8, "num_bits": 3}, "targets": ["Linear"]}
    with pytest.raises(ShapeError, match="give weight_bits"):
        quantized(DEEPSEEK_V3, quant_method="compressed-tensors", config_groups=groups)


def test_weight_bits_decide_where_the_config_has_no_reading() -> None:
    config = {**LLAMA_3_8B, "quantization_config": {"quant_method": "bitsandbytes"}}
    assert shape_from_config(config, weight_bits=4).weight_bytes == 0.5


@pytest.mark.parametrize(
    "pattern",
    [
        r".*mlp\.(gate|up|gate_up|down)_proj.*",
        r"model\.layers\.\d+\.mlp\.up_proj$",
        r"^model\.layers\.[0-9]+\.(mlp|self_attn)\..*up.*",
        ".*layers.*mlp.*up_proj",
        r".*\.(?:up_proj|gate_up)",
    ],
)
def test_expressions_as_checkpoints_write_them(pattern: str) -> None:
    shape = quantized(DEEPSEEK_V3, quant_method="fp8", ignore=[f"re:{pattern}"])
    assert shape.dense_ffn_gemms[0].weight_bytes > 1


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)b",
        "(.|.)x",
        "((a|b)c)",
        "(?!a).*",
        "(ab)*",
        "a{2,}",
        ".*a.*b.*c.*d",
        "a?b?c?d?",
        "x" * 201,
    ],
)
def test_expressions_that_may_take_long_are_refused(pattern: str) -> None:
    with pytest.raises(ShapeError, match="which is not read: give weight_bits"):
        quantized(DEEPSEEK_V3, quant_method="fp8", ignore=[f"re:{pattern}"])


@pytest.mark.parametrize(
    "ignore",
    [
        [f"re:{letter}{other}.*.*Q" for letter in ascii_letters for other in ascii_letters],
        ["re:.*(l|l)(a|a)(y|y)(e|e)(r|r)(s|s).*" + letter * 2 for letter in ascii_letters],
        ["re:.*.*.*" + letter * 2 for letter in ascii_letters[:25]],
        ["re:.*.*9" + letter * 2 for letter in ascii_letters[:8]],
        ["re:.*.*.*9Q"],
        [f"model.layers.{index}.mlp.down_proj" for index in range(20_000)],
        ["*a*e*r*s*" + letter for letter in ascii_letters] + ["*" * 100],
    ],
)
def test_hostile_lists_take_little_time(ignore: list[str]) -> None:
    start = time.process_time()
    with contextlib.suppress(ShapeError):
        quantized(DEEPSEEK_V3, quant_method="fp8", ignore=ignore)
    assert time.process_time() - start < 8
