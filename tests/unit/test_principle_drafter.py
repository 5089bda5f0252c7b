"""Drafters: their parts, how often vLLM runs them, and their time against recorded runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, QWEN_3_8B, QWEN_3_30B_A3B

from vllm_nfp.principle import ModelShape, Serving, shape_from_config, target_of
from vllm_nfp.principle.drafter import Drafter, DrafterError, drafter_of, drafting

H100 = target_of("H100-SXM")
MTP = {**DEEPSEEK_V3, "num_nextn_predict_layers": 1}
ONE_HEAD = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "kimi_k2", "hidden_size": 2048,
    "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "num_hidden_layers": 1, "vocab_size": 151936, "draft_vocab_size": 16000,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3, 4]},
}  # fmt: skip
"""An EAGLE-3 head whose model_type is its target's, as published ones have it."""


def found(
    method: str, config: dict[str, Any], head: dict[str, Any] | None = None, **served: Any
) -> Drafter:
    return drafter_of(method, config, shape_from_config(config, **served), head)


def seconds(drafter: Drafter, batch_size: int, context: int, longest: int = 4) -> tuple[float, ...]:
    return drafting(drafter, H100, Serving(), batch_size, context, longest).seconds


# Time of a drafted token in the engine, host included, EAGLE-3 on an H100:
# benchmarks/results/2026-11-26-h100-draft-lengths. The model's constants know nothing of it.
@pytest.mark.parametrize(
    ("config", "context", "batch_size", "measured"),
    [
        (QWEN_3_8B, 1024, 1, 330e-6),
        (QWEN_3_8B, 1024, 4, 325e-6),
        (QWEN_3_8B, 1024, 16, 383e-6),
        (QWEN_3_8B, 1024, 32, 398e-6),
        (QWEN_3_8B, 8192, 4, 372e-6),
        (QWEN_3_8B, 8192, 16, 521e-6),
        (QWEN_3_8B, 8192, 32, 690e-6),
        (QWEN_3_30B_A3B, 1024, 4, 167e-6),
        (QWEN_3_30B_A3B, 8192, 1, 158e-6),
    ],
)
def test_a_drafted_token_takes_what_an_engine_measured(
    config: dict[str, Any], context: int, batch_size: int, measured: float
) -> None:
    times = seconds(found("eagle3", config), batch_size, context)
    assert times[4] - times[3] == pytest.approx(measured, rel=0.15)


def test_a_head_runs_over_all_positions_once_and_then_over_one() -> None:
    head = found("eagle", LLAMA_3_8B)
    times = drafting(head, H100, Serving(), 1, 1024, 6)
    each = [after - before for before, after in itertools.pairwise(times.seconds[1:])]
    assert times.calls == (1, 1, 2, 3, 4, 5, 6)
    assert times.seconds[0] == pytest.approx(times.seconds[1], rel=0.05)  # runs at K = 0 too
    assert each == pytest.approx([each[0]] * 5, rel=0.02)
    assert times.seconds[1] == pytest.approx(each[0], rel=0.02)


def test_prediction_layers_of_their_own_run_over_all_positions_each_time() -> None:
    chain = found("mtp", MTP, tensor_parallel_size=8)
    modules = found("mtp", {**DEEPSEEK_V3, "num_nextn_predict_layers": 3}, tensor_parallel_size=8)
    assert (chain.runs, modules.runs) == ("chain", "modules")
    assert "vLLM takes K up to 3, or a multiple of it." in modules.assumptions
    assert seconds(modules, 64, 1024)[4] > 1.1 * seconds(chain, 64, 1024)[4]


def test_a_parallel_drafter_runs_once_however_long_the_draft() -> None:
    times = drafting(found("dflash", QWEN_3_8B), H100, Serving(), 1, 1024, 16)
    assert set(times.calls) == {1}
    assert times.seconds[16] < 1.1 * times.seconds[1]


def test_a_prediction_layer_is_one_of_the_targets() -> None:
    layer = found("mtp", MTP, tensor_parallel_size=8).shape
    whole = shape_from_config(MTP, tensor_parallel_size=8)
    assert (layer.num_layers, layer.num_moe_layers) == (1, 1)
    assert layer.expert_gemms == whole.expert_gemms
    assert layer.lm_head_gemm == whole.lm_head_gemm
    merged = found("mtp", MTP, tensor_parallel_size=8).each
    assert [(g.inputs, g.outputs) for g in merged] == [(2 * 7168, 7168)]


@pytest.mark.parametrize(
    ("entry", "plain"),
    [("mtp*", True), ("model.layers.61*", True), ("model.layers.61", True), ("lm_head", False)],
)
def test_an_ignored_prediction_layer_is_stored_in_16_bits(entry: str, plain: bool) -> None:
    stored = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [entry]}
    drafter = found("mtp", {**MTP, "quantization_config": stored})
    assert drafter.shape.expert_weight_bytes == (2.0 if plain else 4.5 / 8)
    assert any("in 16 bits" in sentence for sentence in drafter.assumptions) == plain


def test_layers_without_experts_in_families_with_experts() -> None:
    ernie = {
        "model_type": "ernie4_5_moe", "num_hidden_layers": 4, "hidden_size": 1024,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
        "intermediate_size": 4096, "moe_intermediate_size": 512, "moe_num_experts": 8, "moe_k": 2,
        "num_nextn_predict_layers": 1,
    }  # fmt: skip
    layer = found("mtp", ernie).shape
    assert (layer.num_dense_layers, layer.num_moe_layers) == (1, 0)


def test_a_head_is_read_from_its_own_config() -> None:
    drafter = found("eagle3", QWEN_3_30B_A3B, ONE_HEAD)
    assert drafter.shape.vocab_size == 16000
    assert drafter.once[0].inputs == 4 * 2048
    assert not drafter.assumptions
    nested = {"transformer_layer_config": ONE_HEAD, "draft_vocab_size": 8000}
    assert found("eagle3", QWEN_3_30B_A3B, nested).shape.vocab_size == 8000


def test_the_usual_head_is_said_to_be_assumed() -> None:
    usual = found("eagle3", QWEN_3_30B_A3B)
    assert usual.shape.vocab_size == 32000
    assert usual.shape.intermediate_size == 6144  # as SpecForge's configs have it
    assert "usual shape (1 layer of the target's width, in 16 bits)" in usual.assumptions[0]
    latent = found("eagle3", DEEPSEEK_V3).shape
    assert (latent.num_attention_heads, latent.num_kv_heads, latent.mla) == (56, 8, None)


def test_a_draft_model_is_a_model() -> None:
    small = {**LLAMA_3_8B, "num_hidden_layers": 4}
    drafter = found("draft_model", LLAMA_3_8B, small, tensor_parallel_size=2)
    assert drafter.shape == shape_from_config(small, kv_bits=16, tensor_parallel_size=2)


@pytest.mark.parametrize(
    ("method", "config", "head", "said"),
    [
        ("mtp", LLAMA_3_8B, None, "has no prediction layers .* such as eagle3"),
        ("mtp", {**LLAMA_3_8B, "num_nextn_predict_layers": 1}, None, "runs no prediction layers"),
        ("draft_model", LLAMA_3_8B, None, "draft_model is needed"),
        ("draft_model", LLAMA_3_8B, {"model_type": "x"}, "draft model's config cannot be used"),
        ("eagle3", LLAMA_3_8B, {**ONE_HEAD, "draft_vocab_size": "many"}, "is no size: 'many'"),
        ("medusa", LLAMA_3_8B, None, "'medusa' is not predicted, only those of mtp, eagle"),
    ],
)
def test_refusals(
    method: str, config: dict[str, Any], head: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(DrafterError, match=said):
        found(method, config, head)


def test_a_drafter_is_split_as_its_target() -> None:
    shape: ModelShape = found("eagle3", QWEN_3_8B, tensor_parallel_size=4).shape
    assert shape.tensor_parallel_size == 4
    assert shape.lm_head_gemm.outputs == 8000


def test_a_head_of_a_latent_target_has_a_backend_of_its_own() -> None:
    head = found("eagle3", DEEPSEEK_V3, tensor_parallel_size=8)
    latent, plain = (
        drafting(head, H100, Serving(name), 8, 8192, 2) for name in ("FLASH_ATTN_MLA", "FLASH_ATTN")
    )
    assert latent == plain


def test_what_cannot_be_split_is_refused_in_one_sentence() -> None:
    # Its prediction layer is dense, and the config names no width of a dense block.
    ernie = {
        "model_type": "ernie4_5_moe", "num_hidden_layers": 4, "hidden_size": 1024,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
        "moe_intermediate_size": 512, "moe_num_experts": 8, "moe_k": 2,
        "moe_layer_start_index": 0, "num_nextn_predict_layers": 1,
    }  # fmt: skip
    with pytest.raises(DrafterError, match=r"mtp drafter of .* cannot be predicted .*--draft-cost"):
        found("mtp", ernie)
    with pytest.raises(DrafterError, match=r"cannot be split .* give its config"):
        found("eagle3", DEEPSEEK_V3, tensor_parallel_size=16)
