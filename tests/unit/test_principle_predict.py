"""The predictor: kernel models by hand, properties of its curves, and what limits what."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_principle_models import (
    DEEPSEEK_V3,
    GEMMA_3_4B,
    GPT_OSS_20B,
    LLAMA_3_8B,
    MIXTRAL_8X7B,
    QWEN_3_8B,
    QWEN_3_30B_A3B,
)
from vllm_nfp.principle.kernels import (
    Device,
    attention_tile_rows,
    awake_experts,
    expert_terms,
    gemm_terms,
    moe_block_rows,
    roofline,
    split_slowdown,
    sum_terms,
    wave_slowdown,
)

from vllm_nfp.principle import (
    CATALOGUE,
    UNCALIBRATED,
    Efficiency,
    ModelShape,
    PredictionError,
    Row,
    hardware_by_name,
    idle_compute_nfp,
    modules_of,
    predict,
    predict_cells,
    shape_from_config,
)
from vllm_nfp.principle.shape import Gemm

H100 = hardware_by_name("H100-SXM")
LLAMA = shape_from_config(LLAMA_3_8B)
QWEN_MOE = shape_from_config(QWEN_3_30B_A3B)
SHAPES = [
    LLAMA,
    QWEN_MOE,
    shape_from_config(GPT_OSS_20B),
    shape_from_config(GEMMA_3_4B),
    shape_from_config(MIXTRAL_8X7B, tensor_parallel_size=2),
    shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8),
]


def numbers(*values: float) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


# Kernel models


def test_roofline_names_each_excess() -> None:
    terms = roofline(
        {"memory": numbers(4, 4, 4)},
        (("compute", numbers(1, 5, 2)), ("tile", numbers(3, 6, 3)), ("wave", numbers(3, 9, 6))),
    )
    assert {name: list(term) for name, term in terms.items()} == {
        "memory": [4, 4, 4],
        "compute": [0, 1, 0],
        "tile": [0, 1, 0],
        "wave": [0, 3, 2],
    }


def test_wave_slowdown() -> None:
    assert list(wave_slowdown(numbers(132, 133, 264, 66), 132)) == [1, 264 / 133, 1, 2]


def test_cache_splits_fill_the_device() -> None:
    # 8 tiles: 16 splits give 128 CTAs, 33 give 264 = two whole waves. 4 KV tiles: no more splits.
    assert split_slowdown(numbers(8), numbers(128 * 64), 132) == pytest.approx(1)
    assert split_slowdown(numbers(8), numbers(128 * 4), 132) == pytest.approx(132 / 32)
    assert split_slowdown(numbers(133), numbers(128 * 64), 132) == pytest.approx(264 / 133)


def test_awake_experts_by_hand() -> None:
    # 8 experts, 2 per token: 2, then 2 + 2 x 6/8 = 3.5, then 3.5 + 2 x 4.5/8 = 4.625
    assert awake_experts(numbers(1, 2, 3), 8, 2) == pytest.approx([2, 3.5, 4.625])


@pytest.mark.parametrize(
    ("quantization", "tokens", "rows"),
    [
        ("none", (1, 32, 33, 96, 97, 512, 513), (16, 16, 32, 32, 64, 64, 128)),
        ("fp8", (32, 33), (16, 32)),
        ("fp8_block", (1, 64, 65, 5000), (16, 16, 64, 64)),
        ("wna16", (20, 21, 40, 41), (16, 32, 32, 64)),
    ],
)
def test_moe_block_rows_follow_vllm(quantization: Any, tokens: Any, rows: tuple[int, ...]) -> None:
    assert list(moe_block_rows(numbers(*tokens), quantization)) == list(rows)


def test_attention_tile_rows_follow_flash_attention_3() -> None:
    assert list(attention_tile_rows(numbers(4, 64, 65), 128)) == [64, 64, 128]
    assert list(attention_tile_rows(numbers(4, 200), 64)) == [192, 192]
    assert list(attention_tile_rows(numbers(4), 256)) == [128]


@pytest.mark.parametrize("tokens", [1, 32, 128, 512, 2048, 8192])
def test_expert_padding_is_near_the_exact_expectation(tokens: Any) -> None:
    # Without traffic and waves the time is the padded rows; the exact rows are binomial.
    fast_memory = dataclasses.replace(H100, memory_bytes_per_second=1e30, num_sms=1)
    gemm = Gemm(1, 128, 2.0)
    terms = expert_terms(
        Device(fast_memory, UNCALIBRATED),
        [gemm],
        numbers(tokens),
        num_experts=128,
        experts_per_token=8,
        quantization="none",
    )
    seconds = sum_terms(terms)[0] - terms["wave"][0]
    rows = seconds * H100.bf16_flops * UNCALIBRATED.flops / (2 * gemm.parameters)
    block = int(moe_block_rows(numbers(tokens), "none")[0])
    assert rows == pytest.approx(128 * _expected_rows(tokens, 8 / 128, block), rel=0.03)


def _expected_rows(tokens: Any, share: float, block: int) -> float:
    total = 0.0
    for count in range(1, tokens + 1):
        log = math.lgamma(tokens + 1) - math.lgamma(count + 1) - math.lgamma(tokens - count + 1)
        log += count * math.log(share) + (tokens - count) * math.log(1 - share)
        total += math.exp(log) * math.ceil(count / block) * block
    return total


# Times by hand


def test_dense_ffn_time_by_hand() -> None:
    # 3 x 4096 x 14336 weights of 2 bytes at 0.85 of 3.35 TB/s, and 3 kernels of 2 us.
    curve = predict(LLAMA, H100, 1, 1024, 0.1, "dense_ffn").curve
    memory = 3 * 4096 * 14336 * 2 / (0.85 * 3.35e12)
    assert curve[0] == pytest.approx(memory + 6e-6)
    # 512 rows are whole tiles; the product that fills waves least (down, 256 tiles, split in 4:
    # 1024 CTAs in 8 waves of 132) takes 1056/1024 of its arithmetic.
    gate_up = 2 * 512 * 4096 * 28672 / (0.75 * 989.4e12)
    down = 2 * 512 * 4096 * 14336 / (0.75 * 989.4e12) * 1056 / 1024
    gate_up *= min(_wave(1792 * splits) for splits in (1, 2, 3, 4))
    assert curve[511] == pytest.approx(gate_up + down + 6e-6, rel=1e-6)


def _wave(tiles: int) -> float:
    return math.ceil(tiles / 132) * 132 / tiles


def test_moe_ffn_time_by_hand() -> None:
    # DeepSeek-V3: 8 experts and the shared one, read in FP8; 10 kernels. The router's 256 columns
    # are 2 tiles, split in 4: 8 of 132 SMs work on 64 rows.
    shape = shape_from_config(DEEPSEEK_V3)
    experts = 9 * 3 * 7168 * 2048 / (0.85 * 3.35e12)
    router = 2 * 64 * 7168 * 256 / (0.75 * 989.4e12) * 132 / 8
    curve = predict(shape, H100, 1, 1024, 0.1, "moe_ffn").curve
    assert curve[0] == pytest.approx(experts + router + 20e-6)


def test_fp8_halves_weights_and_doubles_arithmetic() -> None:
    no_launch = dataclasses.replace(UNCALIBRATED, kernel_seconds=0.0)
    wide, narrow = (
        predict(shape, H100, 1, 1024, 0.1, "dense_ffn", efficiency=no_launch).curve
        for shape in (LLAMA, shape_from_config(LLAMA_3_8B, weight_bits=8))
    )
    assert narrow[0] == pytest.approx(wide[0] / 2)
    assert narrow[511] == pytest.approx(wide[511] / 2, rel=1e-3)


def test_activations_beyond_l2_are_moved() -> None:
    # 4 rows: 2 x 4 x 100 bytes in and 2 x 4 x 300 out, of which 500 each stay in L2.
    small = dataclasses.replace(H100, l2_bytes=500)
    terms = gemm_terms(Device(small, UNCALIBRATED), Gemm(100, 300, 2.0), numbers(4))
    assert terms["memory"] == pytest.approx((60_000 + 300 + 1900) / (0.85 * 3.35e12))


def test_a_step_counts_every_kernel() -> None:
    # 32 layers of 2 projections, 2 for attention, 3 for the FFN and 4 others; 3 for the step.
    slower = dataclasses.replace(UNCALIBRATED, kernel_seconds=3e-6)
    fast, slow = (
        predict(LLAMA, H100, 1, 1024, 0.1, "model", efficiency=efficiency).curve[0]
        for efficiency in (UNCALIBRATED, slower)
    )
    assert slow - fast == pytest.approx((32 * 11 + 3) * 1e-6)


def test_communication_by_hand() -> None:
    # 2 all-reduces in each of 32 layers send 2 x 3/4 of 4096 x 2 bytes, the logits' all-gather
    # 3/4 of 128256 x 2 bytes, for each of 10 tokens.
    split = dataclasses.replace(LLAMA, tensor_parallel_size=4)
    near, far = (
        predict(split, hardware, 1, 1024, 0.1, "model").curve[9]
        for hardware in (H100, dataclasses.replace(H100, link_bytes_per_second=1e9))
    )
    sent = 10 * 0.75 * 2 * (64 * 2 * 4096 + 128256)
    assert far - near == pytest.approx(sent / 0.85 * (1 / 1e9 - 1 / 450e9))


def test_attention_time_by_hand() -> None:
    # The cache holds the 1024 tokens and the new one: 1025 x 8 heads x 512 bytes, two kernels.
    prediction = predict(LLAMA, H100, 16, 1024, 0.1, "attention")
    memory = 16 * 1025 * 8 * 512 / (0.85 * 3.35e12)
    assert prediction.curve[0] == pytest.approx(memory + 4e-6)


def test_sliding_layers_read_their_window() -> None:
    shape = dataclasses.replace(LLAMA, sliding_window=100, num_sliding_layers=32)
    near = predict(shape, H100, 16, 200, 0.1, "attention").curve
    far = predict(shape, H100, 16, 90_000, 0.1, "attention").curve
    assert near == far
    assert far[0] == pytest.approx(16 * 100 * 8 * 512 / (0.85 * 3.35e12) + 4e-6)


def test_step_agrees_with_the_server_that_was_seen() -> None:
    # DESIGN.md: Qwen3-8B on an H100, 6.4 to 6.9 ms a step at B=1. No number was fitted to it.
    curve = predict(shape_from_config(QWEN_3_8B), H100, 1, 1024, 0.1, "model").curve
    assert 0.85 * 6.4e-3 < curve[0] < 1.15 * 6.9e-3


def test_efficiency_scales_the_curve() -> None:
    ideal = Efficiency(bandwidth=1.0, flops=1.0, kernel_seconds=0.0, source="test")
    curve = predict(LLAMA, H100, 1, 1024, 0.1, "dense_ffn", efficiency=ideal).curve
    assert curve[0] == pytest.approx(3 * 4096 * 14336 * 2 / 3.35e12)


# Boundaries


def test_dense_boundary_lies_on_a_tile_edge_below_idle_compute() -> None:
    prediction = predict(LLAMA, H100, 1, 1024, 0.1, "dense_ffn")
    assert prediction.nfp % 64 == 0
    assert prediction.nfp < prediction.idle_compute_nfp == 295
    assert prediction.limited_by == "tile"


def test_experts_leave_nothing_free_for_one_sequence() -> None:
    prediction = predict(QWEN_MOE, H100, 1, 1024, 0.1, "moe_ffn")
    assert (prediction.nfp, prediction.limited_by) == (1, "experts")
    assert prediction.idle_compute_nfp == 295


def test_experts_that_are_all_awake_leave_room() -> None:
    small = shape_from_config(MIXTRAL_8X7B)
    asleep = predict(small, H100, 1, 1024, 0.1, "moe_ffn")
    awake = predict(small, H100, 16, 1024, 0.1, "moe_ffn")
    assert asleep.nfp == 1
    assert awake.nfp >= 8
    assert awake.limited_by != "experts"


def test_fewer_experts_per_token_wake_more_slowly() -> None:
    one, eight = (
        predict(dataclasses.replace(QWEN_MOE, experts_per_token=k), H100, 64, 1024, 0.1, "moe_ffn")
        for k in (1, 8)
    )
    assert one.curve[3] / one.curve[0] > eight.curve[3] / eight.curve[0]


@pytest.mark.parametrize(("tile", "step"), [(64, 16), (128, 32)])
def test_attention_steps_at_multiples_of_tile_over_group(tile: int, step: int) -> None:
    curve = np.array(
        predict(LLAMA, H100, 32, 65536, 0.1, "attention", 256, attention_tile=tile).curve
    )
    jumps = np.flatnonzero(curve[1:] / curve[:-1] > 1.01) + 1  # the last N before each jump
    assert len(jumps) > 2
    assert set(jumps % step) == {0}


def test_attention_boundary_is_a_whole_query_block() -> None:
    prediction = predict(LLAMA, H100, 32, 65536, 0.1, "attention", attention_tile=64)
    assert prediction.nfp % 16 == 0
    assert prediction.limited_by == "query_block"


def test_short_contexts_are_limited_by_the_cache_itself() -> None:
    # At large B the time is the cache's: 64 tokens grow by a tenth after 6 positions more.
    prediction = predict(LLAMA, H100, 1024, 64, 0.1, "attention")
    assert (prediction.nfp, prediction.limited_by) == (7, "memory")


def test_graph_padding_is_paid_up_to_the_captured_size() -> None:
    padded = predict(LLAMA, H100, 1, 1024, 0.1, "dense_ffn", capture_sizes=(512, 1, 8))
    assert (padded.nfp, padded.limited_by) == (8, "graph_padding")
    plain = predict(LLAMA, H100, 1, 1024, 0.1, "dense_ffn")
    assert padded.curve[8] == pytest.approx(plain.curve[511])
    assert padded.curve[:8] == pytest.approx([plain.curve[7]] * 8)


def test_a_large_vocabulary_is_limited_by_the_lm_head() -> None:
    shape = ModelShape("head", 1, 1024, 1024, 8, 8, 128, 1_000_000, 1)
    assert predict(shape, H100, 1, 1024, 0.1, "model").limited_by == "lm_head"


def test_a_slow_link_is_limited_by_communication() -> None:
    split = dataclasses.replace(LLAMA, tensor_parallel_size=2)
    slow = dataclasses.replace(H100, link_bytes_per_second=1e9)
    prediction = predict(split, slow, 1, 1024, 0.1, "model")
    assert prediction.limited_by == "communication"
    assert prediction.nfp < predict(split, H100, 1, 1024, 0.1, "model").nfp


def test_nothing_over_the_line_gives_the_last_position() -> None:
    prediction = predict(LLAMA, H100, 1, 1024, 0.1, "dense_ffn", max_positions=16)
    assert (prediction.nfp, prediction.limited_by) == (16, "memory")
    assert len(prediction.curve) == 16


# Properties


cells = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from(CATALOGUE),
    st.integers(1, 512),
    st.integers(0, 100_000),
)


@settings(max_examples=60, deadline=None)
@given(cells, st.lists(st.floats(0, 2), min_size=2, max_size=2).map(sorted), st.data())
def test_curve_and_boundary_agree(cell: Any, epsilons: list[float], data: st.DataObject) -> None:
    shape, hardware, batch_size, context = cell
    module = data.draw(st.sampled_from(modules_of(shape)))
    low, high = (
        predict(shape, hardware, batch_size, context, epsilon, module, 128) for epsilon in epsilons
    )
    assert 1 <= low.nfp <= high.nfp <= 128
    assert low.curve == high.curve
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in low.curve)
    line = (1 + epsilons[0]) * low.curve[0]
    assert max(low.curve[: low.nfp]) <= line
    if low.nfp < 128:
        assert low.curve[low.nfp] > line
    assert low.idle_compute_nfp == idle_compute_nfp(shape, hardware, batch_size, context, module)


@settings(max_examples=30, deadline=None)
@given(cells)
def test_a_step_takes_longer_than_its_layers(cell: Any) -> None:
    shape, hardware, batch_size, context = cell
    layers = {
        "dense_ffn": shape.num_dense_layers,
        "moe_ffn": shape.num_moe_layers,
        "attention": shape.num_layers,
    }
    curves = {
        module: np.array(predict(shape, hardware, batch_size, context, 0.1, module, 64).curve)
        for module in modules_of(shape)
    }
    parts = sum(count * curves[module] for module, count in layers.items() if count)
    assert np.all(curves["model"] > parts)


# Rows


def test_rows_cover_the_modules_that_the_model_has() -> None:
    rows = predict_cells(SHAPES[-1], H100, (1, 8), (1024, 4096), (0.05, 0.1))
    assert len(rows) == len(set(rows)) == 4 * 2 * 2 * 2
    assert {row.module for row in rows} == {"dense_ffn", "moe_ffn", "attention", "model"}
    assert {row.module for row in predict_cells(LLAMA, H100, (1,), (1024,), (0.1,))} == {
        "dense_ffn",
        "attention",
        "model",
    }
    assert "dense_ffn" not in {r.module for r in predict_cells(QWEN_MOE, H100, (1,), (1,), (0.1,))}


def test_rows_have_the_fields_of_the_json_contract_and_agree_with_predict() -> None:
    (row,) = (
        row
        for row in predict_cells(LLAMA, H100, (8,), (4096,), (0.2,))
        if row.module == "attention"
    )
    single = predict(LLAMA, H100, 8, 4096, 0.2, "attention")
    assert row == Row(
        "attention", 8, 4096, 0.2, single.nfp, single.idle_compute_nfp, single.limited_by
    )
    assert list(dataclasses.asdict(row)) == [
        "module",
        "batch_size",
        "context",
        "epsilon",
        "nfp",
        "idle_compute_nfp",
        "limited_by",
    ]


def test_a_cell_takes_less_than_20_ms() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        predict(SHAPES[-1], H100, 32, 16384, 0.1, "model", capture_sizes=range(8, 513, 8))
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be a share of 0 or more, not -0.1"),
        ({"epsilon": float("nan")}, "epsilon .* not nan"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"context": -1}, "context must be 0 or more tokens, not -1"),
        ({"module": "moe_ffn"}, "llama has no module 'moe_ffn'"),
        ({"max_positions": 0}, "max_positions must be 1 or more, not 0"),
        ({"attention_tile": 0}, "attention_tile must be 1 row or more, not 0"),
    ],
)
def test_refused_questions(changes: dict[str, Any], message: str) -> None:
    question = {"batch_size": 1, "context": 1024, "epsilon": 0.1, "module": "model"}
    with pytest.raises(PredictionError, match=message):
        predict(LLAMA, H100, **{**question, **changes})


@pytest.mark.parametrize(
    ("field", "value"), [("bandwidth", 0), ("flops", 1.1), ("kernel_seconds", -1e-6)]
)
def test_impossible_efficiencies_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must .* not {value}"):
        dataclasses.replace(UNCALIBRATED, **{field: value})
