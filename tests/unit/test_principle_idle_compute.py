"""The idle-compute baseline against arithmetic done by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, MIXTRAL_8X7B, QWEN_3_30B_A3B

from vllm_nfp.principle import (
    Hardware,
    ModelShape,
    PredictionError,
    hardware_by_name,
    idle_compute_nfp,
    shape_from_config,
)

H100 = hardware_by_name("H100-SXM")  # rho = 989.4 / 3.35 = 295.3, in FP8 590.7
A100 = hardware_by_name("A100-SXM4-80GB")  # rho = 312 / 2.039 = 153.0, no FP8


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(1, 295), (8, 36), (32, 9), (295, 1), (4096, 1)]
)
def test_ffn_is_rho_s_over_2b(batch_size: int, expected: int) -> None:
    dense = shape_from_config(LLAMA_3_8B)
    moe = shape_from_config(QWEN_3_30B_A3B)
    assert idle_compute_nfp(dense, H100, batch_size, 1024, "dense_ffn") == expected
    assert idle_compute_nfp(moe, H100, batch_size, 1024, "moe_ffn") == expected


@pytest.mark.parametrize(
    ("hardware", "weight_bits", "expected"),
    [
        (H100, 8, 295),  # twice the peak, half the bytes
        (A100, 8, 76),  # half the bytes only
        (H100, 4, 73),  # 16-bit arithmetic, a quarter of the bytes
    ],
)
def test_ffn_with_smaller_weights(hardware: Hardware, weight_bits: float, expected: int) -> None:
    shape = shape_from_config(LLAMA_3_8B, weight_bits=weight_bits)
    assert idle_compute_nfp(shape, hardware, 1, 1024, "dense_ffn") == expected


@pytest.mark.parametrize("cell", [(1, 1024), (64, 16), (8, 131072)])
def test_attention_is_rho_s_over_2g_in_every_cell(cell: Any) -> None:
    assert idle_compute_nfp(shape_from_config(LLAMA_3_8B), H100, *cell, "attention") == 73
    assert idle_compute_nfp(shape_from_config(QWEN_3_30B_A3B), H100, *cell, "attention") == 36


@pytest.mark.parametrize(("hardware", "expected"), [(H100, 73), (A100, 19)])
def test_attention_with_an_fp8_cache(hardware: Hardware, expected: int) -> None:
    # Half the bytes; twice the peak only where there is FP8: 590.7 / 8 and 153.0 / 8.
    shape = shape_from_config(LLAMA_3_8B, kv_bits=8)
    assert idle_compute_nfp(shape, hardware, 1, 1024, "attention") == expected


def test_latent_attention_has_hardly_any_slack() -> None:
    # 295.3 x 576 elements x 2 bytes / (128 heads x 2 x (576 + 512) FLOPs) = 1.22
    assert idle_compute_nfp(shape_from_config(DEEPSEEK_V3), H100, 1, 4096, "attention") == 1
    # 16 heads on a rank: 9.77
    split = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8)
    assert idle_compute_nfp(split, H100, 1, 4096, "attention") == 9


TOY_HARDWARE = Hardware("toy", 1e14, None, 1e12, 10, 1 << 20, 1e10, "made up")  # rho = 100


def toy(**changes: Any) -> ModelShape:
    sizes = {
        "name": "toy",
        "num_layers": 2,
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 2,
        "vocab_size": 16,
        "num_dense_layers": 2,
    }
    return ModelShape(**{**sizes, **changes})


def test_model_by_hand() -> None:
    # Weights: 2 layers x (4x8 + 4x4 + 4x16 + 8x4 = 144) + head 64 = 352, read in 704 bytes.
    # Cache: 2 layers x 10 tokens x 8 bytes = 160 bytes.
    # A position: 2 x 352 = 704 FLOPs, and 2 layers x 10 tokens x 2 heads x 8 = 320.
    # N = 100 x 864 / 1024 = 84.4; with 3 sequences 100 x (704 + 480) / 3072 = 38.5
    assert idle_compute_nfp(toy(), TOY_HARDWARE, 1, 9, "model") == 84
    assert idle_compute_nfp(toy(), TOY_HARDWARE, 3, 9, "model") == 38


def test_model_with_a_sliding_layer_by_hand() -> None:
    # One layer reads 10 tokens, the other 4: 112 bytes and 224 FLOPs of attention.
    # N = 100 x (704 + 112) / (704 + 224) = 87.9
    shape = toy(sliding_window=4, num_sliding_layers=1)
    assert idle_compute_nfp(shape, TOY_HARDWARE, 1, 9, "model") == 87


def test_model_with_an_fp8_cache_by_hand() -> None:
    # Cache: 80 bytes, its 320 FLOPs at twice the rate. N = 100 x (704 + 80) / (704 + 160) = 90.7
    shape, hardware = toy(kv_bytes=1.0), dataclasses.replace(TOY_HARDWARE, fp8_flops=2e14)
    assert idle_compute_nfp(shape, hardware, 1, 9, "model") == 90


def test_model_counts_the_experts_of_one_token() -> None:
    # Weights: dense layer 144, then projections 48, 2 of 6 experts 2 x 96, router 24, head 64.
    # N = 100 x (2 x 472 + 160) / (2 x 472 + 320) = 87.3; with all experts it would be 91.
    shape = toy(
        num_dense_layers=1,
        num_moe_layers=1,
        num_experts=6,
        experts_per_token=2,
        moe_intermediate_size=8,
    )
    assert idle_compute_nfp(shape, TOY_HARDWARE, 1, 9, "model") == 87


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((0, 1024, "model"), "batch_size must be 1 or more, not 0"),
        ((1, -1, "model"), "context must be 0 or more tokens, not -1"),
        (
            (1, 1024, "moe_ffn"),
            "llama has no module 'moe_ffn': use one of model, attention, dense_ffn$",
        ),
        ((1, 1024, "norm"), "llama has no module 'norm'"),
    ],
)
def test_refused_cells(cell: Any, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        idle_compute_nfp(shape_from_config(LLAMA_3_8B), H100, *cell)


def test_a_model_of_experts_only_has_no_dense_ffn() -> None:
    with pytest.raises(PredictionError, match=r"mixtral has no module 'dense_ffn'"):
        idle_compute_nfp(shape_from_config(MIXTRAL_8X7B), H100, 1, 1024, "dense_ffn")
