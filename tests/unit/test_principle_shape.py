"""Shapes: quantization, the split over ranks, and what is refused in which words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from test_principle_models import (
    DEEPSEEK_V3,
    GPT_OSS_20B,
    LLADA_8B,
    LLAMA_3_8B,
    MIXTRAL_8X7B,
    QWEN_3_30B_A3B,
    SDAR_8B,
    Config,
    without,
)

from vllm_nfp.principle import ModelShape, ShapeError, shape_from_config


def quantized(**quantization: Any) -> ModelShape:
    return shape_from_config({**LLAMA_3_8B, "quantization_config": quantization})


def compressed(weights: Config, activations: Config | None = None) -> Config:
    group = {"weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


FP8 = {"type": "float", "num_bits": 8, "strategy": "channel"}
INT4 = {"type": "int", "num_bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("quantization", "kind", "weight_bits"),
    [
        ({"quant_method": "fp8"}, "fp8", 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "wna16", 4.125),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "wna16", 8),
        ({"quant_method": "awq", "w_bit": 4, "group_size": 64}, "wna16", 4.25),
        (compressed(FP8, {"num_bits": 8}), "fp8", 8),
        (compressed(INT4), "wna16", 4.125),
    ],
)
def test_quantization_config_sets_the_weight_bits(
    quantization: Any, kind: str, weight_bits: float
) -> None:
    shape = quantized(**quantization)
    assert (shape.quantization, 8 * shape.weight_bytes) == (kind, weight_bits)
    assert shape.expert_weight_bytes == shape.weight_bytes
    assert shape.lm_head_weight_bytes == 2


def test_mxfp4_is_for_experts_only() -> None:
    shape = shape_from_config(GPT_OSS_20B)
    assert (shape.weight_bytes, 8 * shape.expert_weight_bytes) == (2, 4.25)
    assert not shape.fp8


@pytest.mark.parametrize(("bits", "kind"), [(16, "none"), (32, "none"), (8, "fp8"), (4, "wna16")])
def test_weight_bits_without_quantization_config(bits: float, kind: str) -> None:
    shape = shape_from_config(LLAMA_3_8B, weight_bits=bits)
    assert (shape.quantization, shape.weight_bytes) == (kind, bits / 8)


@pytest.mark.parametrize(
    "quantization",
    [{"quant_method": "bitsandbytes"}, compressed({**INT4, "num_bits": 3}, {"num_bits": 8})],
)
def test_unknown_quantization_needs_weight_bits(quantization: Any) -> None:
    config = {**LLAMA_3_8B, "quantization_config": quantization}
    with pytest.raises(ShapeError, match=rf"'{quantization['quant_method']}'.*give weight_bits"):
        shape_from_config(config)
    assert shape_from_config(config, weight_bits=4).weight_bytes == 0.5


def test_a_rank_holds_its_share() -> None:
    shape = shape_from_config(LLAMA_3_8B, tensor_parallel_size=4)
    assert [(g.inputs, g.outputs) for g in shape.projection_gemms] == [(4096, 1536), (1024, 4096)]
    assert [(g.inputs, g.outputs) for g in shape.dense_ffn_gemms] == [(4096, 7168), (3584, 4096)]
    assert (shape.attention.kv_heads, shape.attention.group) == (2, 4)
    assert shape.lm_head_gemm.outputs == 32064


def test_more_ranks_than_kv_heads_copy_them() -> None:
    attention = shape_from_config(LLAMA_3_8B, tensor_parallel_size=16).attention
    assert (attention.kv_heads, attention.group) == (1, 2)


def test_latent_cache_is_one_head_on_every_rank() -> None:
    shape = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8, kv_bits=8)
    attention = shape.attention
    assert shape.use_mla
    assert (attention.kv_heads, attention.group, attention.token_bytes) == (1, 16, 576)
    assert attention.flops_per_pair == 2 * (576 + 512)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "new", "hidden_size": 64},
            "'new' is not a known family .*lacks num_hidden_layers, num_attention_heads, "
            "vocab_size, intermediate_size, so that it cannot be read as dense. Measure it",
        ),
        ({**LLAMA_3_8B, "model_type": "new"}, "'new' .* all dense fields are there"),
        (without(LLAMA_3_8B, "vocab_size"), "^the llama config lacks vocab_size: "),
        (
            without(MIXTRAL_8X7B, "num_local_experts"),
            "^the mixtral config lacks num_experts or num_local_exp",
        ),
        (without(DEEPSEEK_V3, "kv_lora_rank"), "^the deepseek_v3 config lacks kv_lora_rank"),
        ({**LLAMA_3_8B, "hidden_size": 0}, r"^hidden_size must lie from 1 to \d+, not 0$"),
        ({**LLAMA_3_8B, "hidden_size": -8}, r"^hidden_size must lie from 1 to \d+, not -8$"),
        ({**LLAMA_3_8B, "hidden_size": "4096"}, "^hidden_size must be a whole .* not '4096'$"),
        ({**LLAMA_3_8B, "hidden_size": True}, "^hidden_size must be a whole .* not True$"),
        (
            {**LLAMA_3_8B, "vocab_size": 10**400},
            r"^vocab_size must lie from 1 to \d+, not a number of 1329 bits$",
        ),
        ({**LLAMA_3_8B, "num_hidden_layers": 10**9}, "^num_hidden_layers must lie from 1 to 4096"),
        ({**LLAMA_3_8B, "num_attention_heads": 0}, "^num_attention_heads .* not 0$"),
        ({**LLAMA_3_8B, "num_key_value_heads": 5}, "^num_key_value_heads|num_kv_heads 5 does not"),
        ({**MIXTRAL_8X7B, "num_experts_per_tok": 9}, "experts_per_token 9 is above num_experts 8"),
        (
            {**MIXTRAL_8X7B, "num_experts_per_tok": 0},
            "num_experts_per_tok must lie from 1 .*, not 0",
        ),
        ({**DEEPSEEK_V3, "moe_layer_freq": 0}, "moe_layer_freq must lie from 1 .* not 0"),
        ({**GPT_OSS_20B, "layer_types": ["linear_attention"] * 24}, "layer_types has 'linear_att"),
    ],
)
def test_refused_configs(config: Config, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        shape_from_config(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size 3 does not divide 32 heads"),
        (
            {"tensor_parallel_size": 0},
            "tensor_parallel_size must be a whole number from 1 to .*, not 0",
        ),
        ({"kv_bits": 0}, "kv_bits must be a number above 0 and at most 64, not 0"),
        ({"weight_bits": float("nan")}, "weight_bits must be a number above 0 .*, not nan"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        shape_from_config(LLAMA_3_8B, **options)


def test_assume_dense_reads_an_unknown_family_like_llama() -> None:
    unknown = {**LLAMA_3_8B, "model_type": "new"}
    shape = shape_from_config(unknown, assume_dense=True)
    assert dataclasses.replace(shape, name="llama") == shape_from_config(LLAMA_3_8B)


def test_assume_dense_refuses_experts() -> None:
    with pytest.raises(ShapeError, match=r"'new' .* cannot be read as dense: num_experts 64 "):
        shape_from_config({**LLAMA_3_8B, "model_type": "new", "num_experts": 64}, assume_dense=True)


@pytest.mark.parametrize(
    "unlike",
    [
        {"moe_k": 6},
        {"routed_expert_count": 64},
        {"kv_lora_rank": 512},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"mamba_d_state": 128},
        {"linear_attn_config": {"kda_layers": [1]}},
        {"index_topk": 2048},
        {"num_kv_shared_layers": 15},
        {"multi_query": True},
        {"hidden_act": "relu2"},
        {"hidden_activation": "gelu_pytorch_tanh"},
    ],
    ids=lambda unlike: next(iter(unlike)),
)
@pytest.mark.parametrize("assume_dense", [True, False])
def test_what_is_no_gated_dense_llama_is_refused(unlike: Config, assume_dense: bool) -> None:
    config = {**LLAMA_3_8B, "model_type": "new", **unlike}
    with pytest.raises(ShapeError, match=f"cannot be read as dense: {next(iter(unlike))}") as error:
        shape_from_config(config, assume_dense=assume_dense)
    # What to do comes before the list of families, and is nothing that would be refused too.
    assert 0 < str(error.value).index("vllm serve --nfp-probe") < str(error.value).index("families")
    assert "--assume-dense" not in str(error.value)


def test_fields_that_say_no_are_no_reason() -> None:
    config = {**LLAMA_3_8B, "model_type": "new", "num_experts": 0, "output_router_logits": False}
    window = {"sliding_window": 4096, "use_sliding_window": False, "hidden_act": "silu"}
    shape = shape_from_config({**config, **window}, assume_dense=True)
    (sentence,) = shape.assumptions
    assert "'new' is not a known family: it is read like Llama, with causal" in sentence


def test_a_field_that_costs_and_is_not_understood_is_named() -> None:
    assert shape_from_config(LLAMA_3_8B).assumptions == ()
    mistral = {**LLAMA_3_8B, "model_type": "mistral", "block_configs": [{"no_op": True}]}
    assert "block_configs of the config" in " ".join(shape_from_config(mistral).assumptions)
    window = {"sliding_window": 64, "layer_types": ["sliding_attention"] * 32}
    assert shape_from_config({**LLAMA_3_8B, **window}).assumptions == ()
    (sentence,) = shape_from_config({**LLAMA_3_8B, "index_topk": 2048}).assumptions
    assert sentence.startswith("index_topk of the config is not understood")


def test_layers_must_add_up() -> None:
    shape = shape_from_config(LLAMA_3_8B)
    with pytest.raises(ShapeError, match=r"num_dense_layers 31 .* add up to num_layers 32"):
        dataclasses.replace(shape, num_dense_layers=31)


def test_ranks_slice_every_expert_without_expert_parallelism() -> None:
    shape = shape_from_config(QWEN_3_30B_A3B, tensor_parallel_size=2, data_parallel_size=2)
    assert (shape.expert_parallel_size, shape.expert_tensor_parallel_size) == (1, 4)
    assert (shape.local_experts, shape.local_experts_per_token) == (128, 8)
    assert [(g.inputs, g.outputs) for g in shape.expert_gemms] == [(2048, 384), (192, 2048)]
    assert shape.projection_gemms[0].outputs == (16 + 2 * 2) * 128


def test_expert_parallel_ranks_hold_whole_experts() -> None:
    shape = shape_from_config(
        QWEN_3_30B_A3B, tensor_parallel_size=2, data_parallel_size=2, expert_parallel=True
    )
    assert (shape.expert_parallel_size, shape.expert_tensor_parallel_size) == (4, 1)
    assert (shape.local_experts, shape.local_experts_per_token) == (32, 2)
    assert [(g.inputs, g.outputs) for g in shape.expert_gemms] == [(2048, 1536), (768, 2048)]
    assert shape.projection_gemms[0].outputs == (16 + 2 * 2) * 128
    assert shape.shared_gemms[0].outputs == 128
    assert shape.total_parameters == shape_from_config(QWEN_3_30B_A3B).total_parameters


def test_the_fullest_rank_counts_where_experts_do_not_divide() -> None:
    config = {**MIXTRAL_8X7B, "num_local_experts": 6}
    shape = shape_from_config(config, tensor_parallel_size=4, expert_parallel=True)
    assert shape.local_experts == 2
    assert shape.local_experts_per_token == pytest.approx(2 * 2 / 6)


def test_shared_experts_are_split_by_tensor_parallelism_alone() -> None:
    shape = shape_from_config(
        DEEPSEEK_V3, tensor_parallel_size=2, data_parallel_size=4, expert_parallel=True
    )
    assert shape.local_experts == 32
    assert [g.outputs for g in shape.shared_gemms] == [256, 2048, 7168]
    assert shape.dense_ffn_gemms[1].inputs == 18432 // 2


def test_dense_models_have_no_local_experts() -> None:
    shape = shape_from_config(LLAMA_3_8B, data_parallel_size=4)
    assert (shape.local_experts, shape.local_experts_per_token) == (0, 0)
    assert shape.dense_ffn_gemms == shape_from_config(LLAMA_3_8B).dense_ffn_gemms


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (LLAMA_3_8B, {"expert_parallel": True}, "expert_parallel needs experts, and llama has no"),
        (
            MIXTRAL_8X7B,
            {"tensor_parallel_size": 8, "data_parallel_size": 2, "expert_parallel": True},
            "expert_parallel over 16 ranks leaves some without one of 8 experts",
        ),
        (
            {**QWEN_3_30B_A3B, "moe_intermediate_size": 770},
            {"tensor_parallel_size": 4},
            "tensor_parallel_size 4 does not divide moe_intermediate_size 770: use expert_parallel",
        ),
        (
            QWEN_3_30B_A3B,
            {"tensor_parallel_size": 2, "data_parallel_size": 512},
            "tensor_parallel_size 2 x data_parallel_size 512 does not divide moe_intermediate_size",
        ),
        (LLAMA_3_8B, {"data_parallel_size": 0}, "data_parallel_size must be a whole .*, not 0"),
        (LLAMA_3_8B, {"tensor_parallel_size": True}, "tensor_parallel_size must be a w.* not True"),
        (LLAMA_3_8B, {"tensor_parallel_size": 64}, "tensor_parallel_size 64 does not divide 32 h"),
    ],
)
def test_refused_splits(config: Config, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        shape_from_config(config, **options)


def test_an_unknown_family_says_what_would_be_assumed() -> None:
    sparse = without(LLAMA_3_8B, "num_key_value_heads", "tie_word_embeddings")
    with pytest.raises(ShapeError) as refusal:
        shape_from_config({**sparse, "model_type": "starcode2"})
    advice, _, families = str(refusal.value).partition(", or measure it on a running server")
    assert "families are known, among them starcoder2" in families
    assert advice.endswith(
        "and all dense fields are there: say assume_dense=True (--assume-dense) to read it like "
        "Llama, with causal attention in every layer, gated feed-forward blocks without experts, "
        "as many KV heads as attention heads, head_dim of hidden_size / num_attention_heads, "
        "an LM head of its own"
    )


@pytest.mark.parametrize("model_type", ["mllama_text_model"])
def test_families_that_no_shape_describes_are_refused(model_type: str) -> None:
    config = {**LLAMA_3_8B, "model_type": model_type}
    with pytest.raises(ShapeError, match=f"^no shape describes model_type '{model_type}': "):
        shape_from_config(config, assume_dense=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLADA_8B, "block_type": "sequential"}, "block_type of a llada config must be 'llama'"),
        ({**LLADA_8B, "multi_query_attention": True}, "multi_query_attention of a llada .* False"),
        (without(LLADA_8B, "d_model"), "^the llada config lacks d_model or hidden_size: "),
        ({**LLADA_8B, "n_heads": 0}, "^n_heads must lie from 1 to"),
        ({**LLAMA_3_8B, "hidden_size": 4097}, "num_attention_heads 32 does not divide hidden_size"),
        ({**LLAMA_3_8B, "model_type": 7}, "model_type must be a short name, not 7"),
        ({**GPT_OSS_20B, "layer_types": ["full_attention"]}, "layer_types has 1 entries for 24 l"),
        ({**DEEPSEEK_V3, "mlp_layer_types": ["x"] * 61}, "mlp_layer_types has 'x': only dense, s"),
        ({**DEEPSEEK_V3, "mlp_only_layers": [[]]}, "mlp_only_layers must be a whole number, not a"),
        ({**SDAR_8B, "block_size": -4}, "block_size must lie from 1 to"),
        ({**SDAR_8B, "sliding_window": -1}, "sliding_window must lie from 0 to"),
    ],
)
def test_more_refused_configs(config: Config, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        shape_from_config(config)
