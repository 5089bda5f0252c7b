"""The predictor's core: steps by hand, terms that add up, boundaries, and what limits what."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_principle_models import (
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    DREAM_7B,
    FAST_DLLM_V2_7B,
    GEMMA_3_4B,
    GPT_OSS_20B,
    LLADA_2_MINI,
    LLADA_8B,
    LLADA_MOE_7B_A1B,
    LLAMA_3_8B,
    MIXTRAL_8X7B,
    QWEN_3_8B,
    QWEN_3_30B_A3B,
    SDAR_8B,
    SDAR_30B_A3B,
)

from vllm_nfp.principle import (
    CATALOGUE,
    H100_CALIBRATION,
    CellPrediction,
    ModelShape,
    PredictionError,
    Serving,
    Target,
    default_calibration,
    hardware_by_name,
    idle_compute_nfp,
    modules_of,
    predict_cell,
    predict_cells,
    shape_from_config,
    target_of,
)
from vllm_nfp.principle.attention import MAX_GRAPH_TOKENS, attention_terms, fixed_seconds
from vllm_nfp.principle.boundary import boundary
from vllm_nfp.principle.collective import LinkConstants, all_reduce_seconds
from vllm_nfp.principle.cost import Cost
from vllm_nfp.principle.ffn import KERNEL_SECONDS
from vllm_nfp.principle.gemm import Fp8GemmConstants, GemmConstants, gemm_seconds, gemm_terms
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES, CapturedGraphs
from vllm_nfp.principle.routing import Routing
from vllm_nfp.principle.step import Step
from vllm_nfp.principle.terms import LIMITS, FloatArray, soft_maximum, sum_terms
from vllm_nfp.types import Module

GEMM = GemmConstants(
    bandwidth=0.86,
    output_traffic=1.66,
    input_traffic=3.74,
    kernel_seconds=4.0e-6,
    fp8=Fp8GemmConstants(bandwidth=0.82),
)
"""Given here, so that a new fit of the defaults moves no expectation."""
H100 = Target(
    hardware_by_name("H100-SXM"),
    dataclasses.replace(H100_CALIBRATION, gemm=GEMM, link=LinkConstants(bandwidth=0.7)),
)
LLAMA = shape_from_config(LLAMA_3_8B)
QWEN_MOE = shape_from_config(QWEN_3_30B_A3B)
SHAPES = [
    LLAMA,
    QWEN_MOE,
    shape_from_config(LLAMA_3_8B, weight_bits=8, kv_bits=8),
    shape_from_config(LLAMA_3_8B, weight_bits=4),
    shape_from_config(GPT_OSS_20B),
    shape_from_config(GEMMA_3_4B),
    shape_from_config(MIXTRAL_8X7B, tensor_parallel_size=2),
    shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8),
    shape_from_config(QWEN_3_30B_A3B, data_parallel_size=4, expert_parallel=True),
    shape_from_config(LLADA_8B),
]
EAGER = Serving(graphs=CapturedGraphs())


def numbers(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


def cell(
    shape: ModelShape = LLAMA,
    module: Module = "model",
    batch_size: int = 1,
    context: int = 1024,
    *,
    epsilon: float = 0.1,
    target: Target = H100,
    serving: Serving = EAGER,
    max_positions: int = 64,
) -> CellPrediction:
    return predict_cell(
        shape, target, module, batch_size, context, (epsilon,), serving, max_positions
    )


def curve(*args: Any, **options: Any) -> FloatArray:
    return np.array(cell(*args, **options).seconds)


def with_hardware(**changes: Any) -> Target:
    return Target(dataclasses.replace(H100.hardware, **changes), H100.calibration)


# What the terms are made of


def test_the_soft_maximum_by_hand() -> None:
    assert soft_maximum(numbers(3), numbers(4), 2.0) == pytest.approx([5])
    assert soft_maximum(numbers(1), numbers(1), 4.0) == pytest.approx([2**0.25])
    # Neither a large power nor great distance overflows.
    assert soft_maximum(numbers(1e-9), numbers(1e9), 64.0) == pytest.approx([1e9])


@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.floats(1, 64))
def test_the_soft_maximum_lies_between_maximum_and_sum(a: float, b: float, p: float) -> None:
    (found,) = soft_maximum(numbers(a), numbers(b), p)
    assert max(a, b) * (1 - 1e-12) <= found <= (a + b) * (1 + 1e-12)


def test_costs_add_and_multiply() -> None:
    one = Cost(1.0, {"memory": numbers(1, 2)})
    other = Cost(2.0, {"memory": numbers(3, 3), "wave": numbers(0, 1)})
    assert list((one + other).times(2).seconds()) == [2 * (3 + 4), 2 * (3 + 6)]


cells = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from(CATALOGUE),
    st.integers(1, 512),
    st.integers(0, 100_000),
    st.sampled_from([EAGER, Serving()]),
)


@settings(max_examples=60, deadline=None)
@given(cells, st.lists(st.floats(0, 2), min_size=2, max_size=2).map(sorted), st.data())
def test_terms_add_up_and_boundaries_follow_the_curve(
    given_cell: Any, epsilons: list[float], data: st.DataObject
) -> None:
    shape, hardware, batch_size, context, serving = given_cell
    module = data.draw(st.sampled_from(modules_of(shape)))
    target = Target(hardware, default_calibration(hardware.name))
    found = predict_cell(shape, target, module, batch_size, context, epsilons, serving, 96)
    seconds = np.array(found.seconds)
    assert np.isfinite(seconds).all()
    assert seconds.min() > 0
    whole = found.fixed_seconds + np.sum(list(found.terms.values()), axis=0)
    assert whole == pytest.approx(seconds, rel=1e-9)
    assert all(min(term) >= -1e-9 * seconds.max() for term in found.terms.values())
    assert set(found.terms) <= set(LIMITS)
    if module == "model":
        assert np.sum(list(found.parts.values()), axis=0) == pytest.approx(seconds, rel=1e-9)
    else:
        assert found.parts == {}
    assert found.idle_compute_nfp == idle_compute_nfp(shape, hardware, batch_size, context, module)
    for edge in found.boundaries:
        line = (1 + edge.epsilon) * seconds[0]
        assert seconds[: edge.nfp].max() <= line
        assert edge.at_limit == (seconds <= line).all()
        assert edge.at_limit or seconds[edge.nfp] > line
        assert seconds[edge.largest_free - 1] <= line
        assert (seconds[edge.largest_free :] > line).all()
    low, high = found.boundaries
    assert low.nfp <= high.nfp
    assert low.largest_free <= high.largest_free


@settings(max_examples=30, deadline=None)
@given(cells)
def test_a_step_takes_longer_than_its_layers(given_cell: Any) -> None:
    shape, hardware, batch_size, context, serving = given_cell
    target = Target(hardware, H100_CALIBRATION)
    layers = {
        "dense_ffn": shape.num_dense_layers,
        "moe_ffn": shape.num_moe_layers,
        "attention": shape.num_layers,
        "communication": shape.num_layers,
    }
    curves = {
        module: curve(shape, module, batch_size, context, target=target, serving=serving)
        for module in modules_of(shape)
    }
    parts = sum(count * curves[m] for m, count in layers.items() if count and m in curves)
    assert np.all(curves["model"] > parts)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([shape for shape in SHAPES if shape.num_dense_layers]),
    st.sampled_from(CATALOGUE),
    st.integers(1, 64),
)
def test_dense_products_never_get_faster_with_more_positions(
    shape: ModelShape, hardware: Any, batch_size: int
) -> None:
    """But where an entry of the constants says so, which is no part of the form.

    Such are slow kernels that the library chooses, and FP8 tiles that the tokens do not fill.
    """
    bare = dataclasses.replace(H100_CALIBRATION.gemm, slow_steps=(), fp8=Fp8GemmConstants())
    smooth = dataclasses.replace(H100_CALIBRATION, gemm=bare)
    seconds = curve(
        shape, "dense_ffn", batch_size, target=Target(hardware, smooth), max_positions=300
    )
    assert np.all(np.diff(seconds) >= -1e-12 * seconds[0])


# Steps by hand


def test_dense_ffn_time_by_hand() -> None:
    # Gate-up 4096 x 28672 and down 14336 x 4096; the activation touches 3 x 14336 elements.
    rate = 0.86 * 3.35e12
    moved = 2 * (1.66 * (28672 + 4096) + 3.74 * (4096 + 14336))
    memory = (3 * 4096 * 14336 * 2 + moved) / rate
    activation = 1.5e-6 + 3 * 14336 * 2 / (3 * 3.35e12)
    found = cell(LLAMA, "dense_ffn")
    assert found.terms["memory"][0] == pytest.approx(memory, rel=1e-9)
    assert found.fixed_seconds == pytest.approx(2 * 4.0e-6 + activation)


def test_a_model_of_one_matrix_kind_agrees_with_the_kernel_model() -> None:
    found = cell(LLAMA, "dense_ffn", 4, max_positions=32)
    tokens = 4 * np.array(found.positions, dtype=np.float64)
    constants, hardware = H100.calibration.gemm, H100.hardware
    products = sum(gemm_seconds(hardware, constants, g, tokens) for g in LLAMA.dense_ffn_gemms)
    activation = KERNEL_SECONDS + tokens * 3 * 14336 * 2 / (3 * hardware.memory_bytes_per_second)
    assert found.seconds == pytest.approx(products + activation)


def test_attention_agrees_with_the_kernel_model() -> None:
    found = cell(LLAMA, "attention", 16, 2048)
    n = np.array(found.positions, dtype=np.float64)
    terms = attention_terms(
        H100.hardware, LLAMA.attention, batch_size=16, cached_tokens=2048 + n, positions=n,
        max_graph_tokens=0,
    )  # fmt: skip
    assert found.seconds == pytest.approx(fixed_seconds(LLAMA.attention) + sum_terms(terms))


def test_steps_beyond_the_graphs_take_the_other_bound_on_splits() -> None:
    # One KV head needs more splits than the 32 that vLLM allows in graphs.
    single = dataclasses.replace(LLAMA, num_kv_heads=1)
    inside, outside = (
        curve(single, "attention", 1, 100_000, serving=serving) for serving in (Serving(), EAGER)
    )
    assert max(DEFAULT_CAPTURE_SIZES) == MAX_GRAPH_TOKENS
    assert outside[0] < inside[0]


def test_step_agrees_with_the_server_that_was_seen() -> None:
    # Qwen3-8B on an H100 in vLLM 0.32 at B=1: 6.4 to 6.9 ms a step. No constant was fitted to it.
    seconds = curve(shape_from_config(QWEN_3_8B))
    assert 0.9 * 6.4e-3 < seconds[0] < 1.1 * 6.9e-3


def test_a_step_counts_every_kernel() -> None:
    # In each of 32 layers 4 products, attention, 4 small kernels; LM head and 2 small ones.
    slower = dataclasses.replace(
        H100.calibration, gemm=dataclasses.replace(H100.calibration.gemm, kernel_seconds=5.0e-6)
    )
    rise = curve(LLAMA, target=Target(H100.hardware, slower))[0] - curve(LLAMA)[0]
    assert rise == pytest.approx((32 * 4 + 1) * 1e-6)


def test_parts_of_dense_and_moe_steps() -> None:
    common = ["attention", "projections", "norms and rotary"]
    assert list(cell(LLAMA).parts) == [*common, "dense FFN", "LM head"]
    assert list(cell(QWEN_MOE).parts) == [*common, "MoE FFN", "LM head"]
    both = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8)
    parts = [*common, "dense FFN", "MoE FFN", "communication", "LM head"]
    assert list(cell(both).parts) == parts


# Parallelism and storage


def test_tensor_parallel_ranks_halve_weights_and_talk() -> None:
    halved = shape_from_config(LLAMA_3_8B, tensor_parallel_size=2)
    alone, split = cell(LLAMA, "dense_ffn"), cell(halved, "dense_ffn")
    weights = 3 * 4096 * 14336 * 2 / (0.86 * 3.35e12)
    assert alone.terms["memory"][0] - split.terms["memory"][0] == pytest.approx(
        weights / 2, rel=0.01
    )
    assert "communication" not in alone.terms
    assert "communication" not in split.terms, "transfers are a module of their own"
    talk = cell(halved, "communication")
    # Two all-reduces; each of two ranks reads the other's T x 4096 16-bit elements.
    sent = 2 * 10 * 4096 * 2 / (0.7 * 450e9)
    assert talk.terms["communication"][9] == pytest.approx(sent)
    assert talk.seconds[9] == pytest.approx(2 * 5e-6 + sent)
    assert cell(halved).parts["communication"][9] == pytest.approx(32.5 * talk.seconds[9])


def test_communication_of_a_step_by_hand() -> None:
    # 2 all-reduces in each of 32 layers and the embedding's; each of 4 ranks reads 4096 elements
    # for each token from 3 others, one-shot. Of the logits' 128256 it is sent 3/4.
    split = shape_from_config(LLAMA_3_8B, tensor_parallel_size=4)
    sent = 10 * 2 * (65 * 3 * 4096 + 0.75 * 128256)
    near, far = (
        curve(split, target=target)[9]
        for target in (H100, with_hardware(link_bytes_per_second=200e9))
    )
    assert far - near == pytest.approx(sent / 0.7 * (1 / 200e9 - 1 / 450e9))


def test_an_all_reduce_takes_the_way_that_vllm_takes() -> None:
    link = LinkConstants(bandwidth=0.5, custom_bandwidth=0.25)
    rate = 400e9

    def seconds(ranks: int, size: float, rate: float = rate) -> float:
        return float(all_reduce_seconds(link, rate, ranks, numbers(size))[0])

    custom, nccl = 0.25 * rate, 0.5 * rate
    assert seconds(1, 1e6) == 0.0
    # Two ranks read the whole of each other at any size below 8 MiB.
    assert seconds(2, 4e6) == pytest.approx(5e-6 + 4e6 / custom)
    # Four: all of three others, then two rounds, then a ring.
    assert seconds(4, 4e5) == pytest.approx(5e-6 + 3 * 4e5 / custom)
    assert seconds(4, 6e5) == pytest.approx(7e-6 + 1.5 * 6e5 / custom)
    assert seconds(4, 9e6) == pytest.approx(8e-6 + 1.5 * 9e6 / nccl)
    # Eight change over earlier; three, and four on PCIe, have NCCL alone.
    assert seconds(8, 4e5) == pytest.approx(7e-6 + 1.75 * 4e5 / custom)
    assert seconds(3, 1e3) == pytest.approx(8e-6 + 4 / 3 * 1e3 / nccl)
    assert seconds(4, 1e3, 32e9) == pytest.approx(8e-6 + 1.5 * 1e3 / (0.5 * 32e9))


def test_expert_parallel_ranks_hold_fewer_experts_and_see_more_tokens() -> None:
    spread = shape_from_config(QWEN_3_30B_A3B, data_parallel_size=4, expert_parallel=True)
    found = cell(spread, "moe_ffn", 8)
    routing = Routing(spread.local_experts, spread.local_experts_per_token, expert_parallel=True)
    assert spread.local_experts == 128 / 4
    awake = routing.awake(4 * 8 * numbers(1, 2, 3))
    assert np.array(found.terms["experts"][:3]) / found.terms["experts"][0] == pytest.approx(
        awake / awake[0]
    )
    # To the experts and back: 3/4 of 32 N tokens of 2048 elements, twice.
    sent = 2 * 0.75 * 32 * 2048 * 2
    talk = cell(spread, "communication", 8)
    assert talk.terms["communication"][0] == pytest.approx(sent / (0.7 * 450e9))


def test_int4_quarters_weights_and_fp8_halves_them() -> None:
    memory = {
        bits: cell(shape_from_config(LLAMA_3_8B, weight_bits=bits), "dense_ffn").terms["memory"][0]
        for bits in (16, 8, 4)
    }
    activations = memory[16] - 3 * 4096 * 14336 * 2 / (0.86 * 3.35e12)
    assert memory[4] - activations == pytest.approx((memory[16] - activations) / 4)
    # FP8 products have a bandwidth share of their own and count no activations.
    assert memory[8] == pytest.approx(3 * 4096 * 14336 / (0.82 * 3.35e12), rel=0.01)


def test_fp8_runs_in_16_bits_where_there_are_no_units() -> None:
    a100 = target_of("A100-SXM4-80GB")
    eight = cell(shape_from_config(LLAMA_3_8B, weight_bits=8), "dense_ffn", target=a100)
    assert eight.terms["memory"][0] < cell(LLAMA, "dense_ffn", target=a100).terms["memory"][0]
    assert "wave" in eight.terms  # of the 16-bit kernel


def test_an_fp8_cache_halves_what_attention_reads() -> None:
    wide, narrow = (
        cell(shape_from_config(LLAMA_3_8B, kv_bits=bits), "attention", 64, 16384).terms["memory"][0]
        for bits in (16, 8)
    )
    assert narrow / wide == pytest.approx(0.5, rel=0.02)


def test_latent_attention_runs_on_its_own_backend() -> None:
    shape = shape_from_config(DEEPSEEK_V2_LITE)
    found = cell(shape, "attention", 8, 4096, serving=Serving("FLASH_ATTN_MLA"))
    # 16 heads share the latent: 4 positions fill a block of 64 rows, the fifth begins another.
    blocks = np.array(found.terms["query_block"])
    assert blocks[4] > blocks[3]
    # One latent of 576 elements is cached for each token, however many heads there are.
    read = 8 * 4097 * 576 * 2 / (3.35e12 * H100.calibration.attention.bandwidth)
    assert read < found.terms["memory"][0] < 1.3 * read  # queries and partial results as well


def test_sliding_layers_read_their_window_alone() -> None:
    sliding = dataclasses.replace(LLAMA, sliding_window=100, num_sliding_layers=32)
    near, far = (curve(sliding, "attention", 16, context) for context in (200, 90_000))
    assert near == pytest.approx(far)
    half = dataclasses.replace(LLAMA, sliding_window=100, num_sliding_layers=16)
    mixed, full = (curve(shape, "attention", 16, 90_000) for shape in (half, LLAMA))
    assert mixed == pytest.approx((far + full) / 2)


def test_windows_of_neighbours_overlap() -> None:
    # 64 positions see 100 + 63 tokens together: far fewer than 64 windows.
    sliding = dataclasses.replace(LLAMA, sliding_window=100, num_sliding_layers=32)
    memory = np.array(cell(sliding, "attention", 512, 5000).terms["memory"])
    plain = np.array(cell(LLAMA, "attention", 512, 162 - 64).terms["memory"])
    assert memory[63] == pytest.approx(plain[63], rel=0.03)


def test_bidirectional_blocks_take_other_tiles_at_head_size_64() -> None:
    causal = dataclasses.replace(LLAMA, head_dim=64)
    block = dataclasses.replace(causal, decoding="bidirectional_block")
    assert not np.allclose(
        curve(causal, "attention", 32, 8192), curve(block, "attention", 32, 8192)
    )
    same = dataclasses.replace(LLAMA, decoding="bidirectional_block")
    assert curve(LLAMA, "attention", 32, 8192) == pytest.approx(curve(same, "attention", 32, 8192))


@pytest.mark.parametrize(
    "config",
    [LLADA_8B, LLADA_MOE_7B_A1B, LLADA_2_MINI, DREAM_7B, FAST_DLLM_V2_7B, SDAR_8B, SDAR_30B_A3B],
    ids=lambda config: str(config["model_type"]),
)
def test_diffusion_families_run_end_to_end(config: dict[str, Any]) -> None:
    shape = shape_from_config(config)
    assert shape.bidirectional
    rows = predict_cells(shape, H100, (1, 32), (1024,), (0.1, 0.2))
    assert len(rows) == len(modules_of(shape)) * 2 * 2
    assert all(1 <= row.nfp <= row.largest_free for row in rows)


# CUDA graphs


def test_graph_padding_is_paid_up_to_the_captured_size() -> None:
    # 8 sequences of 3 positions run with 27 tokens: 25 rounded up to a multiple of 3.
    serving = Serving(graphs=CapturedGraphs((8, 25, 100)))
    padded = cell(LLAMA, "dense_ffn", 8, serving=serving)
    plain = cell(LLAMA, "dense_ffn", 8)
    assert serving.graphs.padded_tokens(8, 3) == 27
    constants, hardware = H100.calibration.gemm, H100.hardware
    added = sum(
        sum_terms(gemm_terms(hardware, constants, gemm, numbers(27)))
        - sum_terms(gemm_terms(hardware, constants, gemm, numbers(24)))
        for gemm in LLAMA.dense_ffn_gemms
    )
    assert padded.terms["graph_padding"][2] == pytest.approx(added[0])
    assert padded.seconds[2] - plain.seconds[2] == pytest.approx(added[0])
    # Beyond the graphs nothing is padded: multiples of 11 that hold 88 tokens are above 100.
    assert padded.in_graphs == 10
    assert padded.seconds[10:] == pytest.approx(plain.seconds[10:])


def test_a_coarse_captured_size_ends_the_slack() -> None:
    # 2 sequences of 7 positions fit the size 8, rounded up to 14; of 8 positions they need 512.
    coarse = cell(LLAMA, "dense_ffn", 2, serving=Serving(graphs=CapturedGraphs((2, 8, 512))))
    edge = coarse.boundaries[0]
    assert (edge.nfp, edge.limited_by) == (7, "graph_padding")
    assert cell(LLAMA, "dense_ffn", 2).boundaries[0].nfp > 7


def test_no_graphs_and_no_room_for_any() -> None:
    assert cell(serving=EAGER).in_graphs == 0
    assert cell(batch_size=600, serving=Serving()).in_graphs == 0
    assert cell(batch_size=32, serving=Serving()).in_graphs == 16


def test_experts_and_the_lm_head_are_not_padded() -> None:
    padded, plain = (
        cell(QWEN_MOE, batch_size=3, serving=serving).parts
        for serving in (Serving(graphs=CapturedGraphs((512,))), EAGER)
    )
    for part in ("MoE FFN", "LM head"):
        assert padded[part] == pytest.approx(plain[part])
    assert padded["projections"][0] > plain["projections"][0]


# Boundaries of curves made by hand


def test_the_first_crossing_counts_and_islands_are_told() -> None:
    cost = Cost(1.0, {"memory": numbers(9, 9.5, 10, 12, 9, 12), "wave": numbers(0, 0, 0, 1, 0, 0)})
    edge = boundary(cost, 0.1)
    assert (edge.nfp, edge.largest_free, edge.at_limit) == (3, 5, False)
    assert edge.limited_by == "memory"


def test_a_curve_on_the_line_is_free() -> None:
    edge = boundary(Cost(0.0, {"memory": numbers(4, 5, 5)}), 0.25)
    assert (edge.nfp, edge.largest_free, edge.at_limit) == (3, 3, True)


def test_no_slack_at_all() -> None:
    edge = boundary(Cost(0.0, {"experts": numbers(1, 2, 3)}), 0.1)
    assert (edge.nfp, edge.largest_free, edge.limited_by) == (1, 1, "experts")


@pytest.mark.parametrize(
    ("terms", "limit"),
    [
        ({"memory": numbers(5, 5, 5.2), "tile": numbers(0, 0, 0.9)}, "tile"),
        ({"memory": numbers(5, 5.1, 7), "tile": numbers(0, 1, 0)}, "tile"),  # at the crossing
        ({"memory": numbers(5, 4, 4), "wave": numbers(0, 0.1, 0.2)}, "wave"),  # at the limit
        ({"compute": numbers(5, 5, 5)}, "memory"),  # nothing grew
    ],
)
def test_the_limit_is_what_grew_most(terms: Any, limit: str) -> None:
    assert boundary(Cost(0.0, terms), 0.1).limited_by == limit


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.floats(0, 3), st.floats(0, 3))
def test_any_curve_has_more_slack_at_a_larger_tolerance(
    values: list[float], one: float, other: float
) -> None:
    cost = Cost(0.0, {"memory": numbers(*values)})
    low, high = (boundary(cost, epsilon) for epsilon in sorted((one, other)))
    assert 1 <= low.nfp <= high.nfp <= len(values)
    assert low.nfp <= low.largest_free <= high.largest_free


# What limits real cells


def test_experts_leave_nothing_free_for_one_sequence() -> None:
    edge = cell(QWEN_MOE, "moe_ffn").boundaries[0]
    assert (edge.nfp, edge.limited_by) == (1, "experts")
    assert cell(QWEN_MOE, "moe_ffn").idle_compute_nfp == 295


def test_experts_that_are_all_awake_leave_room() -> None:
    mixtral = shape_from_config(MIXTRAL_8X7B)
    asleep, awake = (cell(mixtral, "moe_ffn", b).boundaries[0] for b in (1, 16))
    assert asleep.nfp == 1
    assert awake.nfp >= 4
    assert awake.limited_by != "experts"


def test_attention_ends_at_a_whole_query_block() -> None:
    edge = cell(LLAMA, "attention", 32, 65536).boundaries[0]
    assert edge.nfp % 16 == 0
    assert edge.limited_by == "query_block"


def test_short_contexts_are_limited_by_the_cache_itself() -> None:
    edge = cell(LLAMA, "attention", 1024, 64).boundaries[0]
    assert edge.limited_by == "memory"
    assert edge.nfp < 7  # 7 tokens are a tenth of the cache


def test_a_large_vocabulary_is_limited_by_the_lm_head() -> None:
    shape = ModelShape("head", 1, 1024, 1024, 8, 8, 128, 1_000_000, 1)
    assert cell(shape, max_positions=512).boundaries[0].limited_by == "lm_head"


def test_a_slow_link_is_limited_by_communication() -> None:
    split = shape_from_config(LLAMA_3_8B, tensor_parallel_size=2)
    slow = cell(split, target=with_hardware(link_bytes_per_second=1e9)).boundaries[0]
    assert slow.limited_by == "communication"
    assert slow.nfp < cell(split).boundaries[0].nfp


@pytest.mark.parametrize("module", ["dense_ffn", "attention", "model"])
def test_idle_compute_over_predicts(module: Module) -> None:
    found = cell(LLAMA, module, 8, 4096)
    assert found.boundaries[0].nfp < found.idle_compute_nfp


def test_tuned_tiles_change_the_experts_alone() -> None:
    tiles = {t: {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}
             for t in (1, 512)}  # fmt: skip
    tuned = Serving(graphs=CapturedGraphs(), expert_tiles=tiles)
    assert not np.allclose(
        curve(QWEN_MOE, "moe_ffn", 32), curve(QWEN_MOE, "moe_ffn", 32, serving=tuned)
    )
    assert curve(QWEN_MOE, "attention", 32) == pytest.approx(
        curve(QWEN_MOE, "attention", 32, serving=tuned)
    )


# Rows


def test_rows_cover_the_modules_that_the_model_has() -> None:
    both = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8)
    rows = predict_cells(both, H100, (1, 8), (1024, 4096), (0.05, 0.1), max_positions=8)
    keys = {(row.module, row.batch_size, row.context, row.epsilon) for row in rows}
    assert len(rows) == len(keys) == 5 * 2 * 2 * 2
    assert {row.module for row in predict_cells(LLAMA, H100, (1,), (1,), (0.1,))} == {
        "dense_ffn",
        "attention",
        "model",
    }
    assert "dense_ffn" not in {r.module for r in predict_cells(QWEN_MOE, H100, (1,), (1,), (0.1,))}


def test_rows_are_those_of_the_cells() -> None:
    (row,) = (
        row
        for row in predict_cells(LLAMA, H100, (8,), (4096,), (0.2,), max_positions=64)
        if row.module == "attention"
    )
    found = cell(LLAMA, "attention", 8, 4096, epsilon=0.2, serving=Serving())
    edge = found.boundaries[0]
    assert row.to_dict() == {
        "module": "attention",
        "batch_size": 8,
        "context": 4096,
        "epsilon": 0.2,
        "nfp": edge.nfp,
        "idle_compute_nfp": 73,
        "limited_by": edge.limited_by,
        "at_limit": edge.at_limit,
        "largest_free": edge.largest_free,
    }


def test_a_cell_takes_less_than_a_tenth_of_a_second() -> None:
    shape = shape_from_config(DEEPSEEK_V3, tensor_parallel_size=8)

    def seconds() -> float:
        start = time.process_time()
        predict_cell(shape, H100, "model", 32, 16384, (0.1,))
        return time.process_time() - start

    # Under coverage every line costs as much again and more.
    assert min(seconds() for _ in range(5)) < (0.1 if sys.gettrace() is None else 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be a share of 0 or more, not -0.1"),
        ({"epsilon": math.nan}, "epsilon .* not nan"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"context": -1}, "context must be 0 or more tokens, not -1"),
        ({"module": "moe_ffn"}, "llama has no module 'moe_ffn'"),
        ({"max_positions": 0}, "max_positions must lie from 1 to 8192, not 0"),
        ({"max_positions": 8193}, "max_positions must lie from 1 to 8192, not 8193"),
        ({"serving": Serving("PAGED")}, "unknown attention backend 'PAGED': known are FLASH_ATTN,"),
    ],
)
def test_refused_questions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        cell(**changes)


def test_times_that_overflow_are_refused() -> None:
    endless = dataclasses.replace(
        H100.calibration,
        attention=dataclasses.replace(H100.calibration.attention, kernel_seconds=1e308),
    )
    with pytest.raises(PredictionError, match="no time above 0 and finite on H100-SXM"):
        cell(target=Target(H100.hardware, endless))


def test_positions_may_be_any_array() -> None:
    step = Step(LLAMA, H100, Serving(), 4, 1024, numbers(1, 16, 128))
    assert list(step.tokens) == [4, 64, 512]
    assert step.in_graphs == 128
    assert step.module("model").seconds() == pytest.approx(
        curve(batch_size=4, serving=Serving(), max_positions=128)[[0, 15, 127]]
    )


def test_every_device_of_the_catalogue_predicts() -> None:
    for hardware in CATALOGUE:
        target = target_of(hardware.name)
        assert target.calibration.fitted == (hardware.name == "H100-SXM")
        assert cell(target=target).boundaries[0].nfp >= 1
    assert hardware_by_name("h200").name == "H200"


def test_ranks_on_pcie_share_the_hosts_memory() -> None:
    """Public times on L40S: 14.3 and 361 us of 8 KiB and 1 MiB on four, 27.6 and 583 on eight."""
    target = target_of("L40S")
    for ranks, times in ((4, (14.3e-6, 361e-6)), (8, (27.6e-6, 583e-6))):
        found = all_reduce_seconds(
            target.calibration.link,
            target.hardware.link_bytes_per_second,
            ranks,
            np.array([2.0**13, 2.0**20]),
        )
        assert found == pytest.approx(times, rel=0.65)
    joined = target_of("H100-SXM")
    link = dataclasses.replace(joined.calibration.link, shared_seconds=0.01)
    rate = joined.hardware.link_bytes_per_second
    assert all_reduce_seconds(link, rate, 4, np.ones(1))[0] < 1e-4, "NVLink is not shared"
