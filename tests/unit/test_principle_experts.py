"""Routed experts: blocks and awake experts against simulation, tiles against vLLM, the fit."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_principle_models import DEEPSEEK_V2_LITE, MIXTRAL_8X7B, QWEN_3_30B_A3B

from vllm_nfp.calibrate.curves import expert_curves
from vllm_nfp.calibrate.errors import FitError
from vllm_nfp.calibrate.fit_experts import ExpertCurve, fit_experts, module_seconds
from vllm_nfp.calibrate.points import read_samples
from vllm_nfp.principle import hardware_by_name, shape_from_config
from vllm_nfp.principle.expert_tiles import default_config, tuned_config
from vllm_nfp.principle.experts import ALIGNMENT_KERNELS, BOUNDS, ExpertConstants, expert_terms
from vllm_nfp.principle.routing import TYPICAL_SKEW, ExpertError, Routing, skewed_shares
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.terms import FloatArray, Terms, sum_terms

H100 = hardware_by_name("H100-SXM")
CONSTANTS = ExpertConstants()
QWEN = shape_from_config(QWEN_3_30B_A3B)
MIXTRAL = shape_from_config(MIXTRAL_8X7B)
DEEPSEEK = shape_from_config(DEEPSEEK_V2_LITE)
REFERENCE = Path(__file__).parents[2] / "benchmarks/results/2026-11-24-h100-kernels/reference"
TOKENS = (*range(1, 65), *range(65, 513, 7), 576, 768, 1024)


def binomial_mean_blocks(tokens: int, chance: float, block: int) -> float:
    """E[ceil(m / b)] by summing over every m."""
    return sum(
        math.comb(tokens, m) * chance**m * (1 - chance) ** (tokens - m) * math.ceil(m / block)
        for m in range(tokens + 1)
    )


def routing_of(shape: ModelShape) -> Routing:
    return Routing(shape.local_experts, shape.local_experts_per_token)


def terms_of(shape: ModelShape, tokens: FloatArray, routing: Routing | None = None) -> Terms:
    return expert_terms(
        H100,
        CONSTANTS,
        shape.expert_gemms,
        tokens,
        routing or routing_of(shape),
        hidden_size=shape.hidden_size,
        config=default_config(tokens, shape.quantization, shape.local_experts),
    )


@pytest.mark.parametrize("chance", [1 / 64, 1 / 16, 1 / 4, 0.75, 1.0])
@pytest.mark.parametrize("block", [16, 64, 128])
def test_expected_blocks_are_the_binomial_mean(chance: float, block: int) -> None:
    tokens = np.array([1.0, 2, 15, 16, 17, 40, 63, 64, 65, 200, 256, 500, 900])
    blocks = Routing(1, chance).blocks(tokens, np.full(tokens.shape, block))
    exact = [binomial_mean_blocks(int(count), chance, block) for count in tokens]
    assert blocks == pytest.approx(exact, rel=0.01, abs=0.003)


def test_blocks_and_awake_experts_match_simulated_routing() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([8, 4, 4, 2, 2, 2, 1, 1], dtype=float)
    shares /= shares.sum()
    routing = Routing(8, 1.5, shares=tuple(shares))
    for tokens in (3, 30, 200):
        met = rng.random((4000, tokens, 8)) < shares * 1.5
        counts = met.sum(axis=1)
        steps, block = np.array([float(tokens)]), np.array([16])
        assert routing.awake(steps)[0] == pytest.approx((counts > 0).sum(axis=1).mean(), rel=0.01)
        assert routing.blocks(steps, block)[0] == pytest.approx(
            np.ceil(counts / 16).sum(axis=1).mean(), rel=0.01
        )


def test_top_k_routing_wakes_as_many_experts_as_simulated() -> None:
    rng = np.random.default_rng(1)
    routing = Routing(32, 4.0)
    for tokens in (1, 5, 20):
        draws = [
            len({e for _ in range(tokens) for e in rng.choice(32, 4, replace=False)})
            for _ in range(300)
        ]
        awake = routing.awake(np.array([float(tokens)]))[0]
        assert awake == pytest.approx(np.mean(draws), rel=0.02)


def test_uniform_shares_are_the_default() -> None:
    tokens = np.arange(1.0, 200.0)
    even = Routing(16, 2.0, shares=(1 / 16,) * 16)
    assert even.awake(tokens) == pytest.approx(Routing(16, 2.0).awake(tokens))


def test_skewed_routing_wakes_fewer_experts_and_fills_fewer_blocks_at_first() -> None:
    tokens = np.array([4.0, 16.0, 64.0])
    skewed = Routing(8, 2.0, shares=(0.3, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05))
    assert np.all(skewed.awake(tokens) < Routing(8, 2.0).awake(tokens))


@pytest.mark.parametrize("experts", [8, 64, 128])
@pytest.mark.parametrize("kind", ["none", "fp8", "fp8_block", "wna16"])
def test_default_tiles_are_those_of_vllm(
    monkeypatch: pytest.MonkeyPatch, kind: str, experts: int
) -> None:
    fused_moe = pytest.importorskip("vllm.model_executor.layers.fused_moe.fused_moe")
    monkeypatch.setattr(fused_moe, "should_moe_wna16_use_cuda", lambda *_: False)
    dtype, block_shape = {
        "none": (None, None),
        "fp8": ("fp8_w8a8", None),
        "fp8_block": ("fp8_w8a8", [128, 128]),
        "wna16": ("int4_w4a16", [0, 128]),
    }[kind]
    tokens = (
        1,
        2,
        8,
        9,
        16,
        17,
        20,
        21,
        32,
        33,
        40,
        41,
        64,
        65,
        96,
        97,
        128,
        512,
        513,
        2000,
        20000,
    )
    ours = default_config(np.array(tokens, dtype=float), kind, experts)  # type: ignore[arg-type]
    for index, count in enumerate(tokens):
        theirs = fused_moe.get_default_config(count, experts, 768, 2048, 8, dtype, block_shape)
        if kind == "wna16":
            theirs |= fused_moe.get_moe_wna16_block_config(
                theirs, False, count * 8, 2048, 768, experts, 128, 8, theirs["BLOCK_SIZE_M"]
            )
        assert (
            ours.block_m[index],
            ours.block_n[index],
            ours.block_k[index],
            ours.group_m[index],
        ) == tuple(
            theirs[name]
            for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
        ), count


def test_rows_stay_unsorted_up_to_the_limit_of_vllm() -> None:
    """qwen3: 4 tokens x 8 experts x 4 are its 128 experts; the fifth brings the sorting."""
    tokens = np.array([4.0, 5.0])
    config = default_config(tokens, "none", 128)
    sorting = ALIGNMENT_KERNELS * CONSTANTS.kernel_seconds
    for parallel, least in ((False, 0.0), (True, sorting)):
        routing = Routing(128, 8.0, expert_parallel=parallel)
        tile = expert_terms(
            H100,
            dataclasses.replace(CONSTANTS, row_gap_bytes=0.0, kept_l2=4.0),
            QWEN.expert_gemms,
            tokens,
            routing,
            hidden_size=2048,
            config=config,
        )["tile"]
        assert tile[0] == pytest.approx(least, abs=0.2 * sorting)
        assert tile[1] == pytest.approx(sorting, rel=0.2)


def test_short_products_pay_for_the_ends_of_their_tiles() -> None:
    """A tile_depth of a product's inputs doubles what it reads and multiplies."""
    tokens = np.array([64.0])

    def seconds(tile_depth: float) -> float:
        constants = dataclasses.replace(CONSTANTS, activation_bandwidth=20.0, tile_depth=tile_depth)
        return float(sum_terms(qwen_terms(constants, tokens))[0])

    up, down = QWEN.expert_gemms
    added, read = seconds(768.0) - seconds(0.0), seconds(0.0)
    share = down.parameters * (1 + 2 * 768 / 2048) / (up.parameters + down.parameters)
    assert added == pytest.approx(share * read, rel=0.15)


def test_few_tiles_leave_memory_idle_however_wide_they_are() -> None:
    """One token of qwen3: 192 tiles of the first product, 256 of the second, on 132 SMs."""
    one = np.array([1.0])
    wave = [
        float(qwen_terms(dataclasses.replace(CONSTANTS, busy_tiles=few), one)["wave"][0])
        for few in (0.0, 0.5, 2.0)
    ]
    assert wave[1] == pytest.approx(wave[0])
    assert wave[2] > 1.2 * wave[0]


def qwen_terms(constants: ExpertConstants, tokens: FloatArray) -> Terms:
    return expert_terms(
        H100, constants, QWEN.expert_gemms, tokens, Routing(128, 8.0), hidden_size=2048,
        config=default_config(tokens, "none", 128),
    )  # fmt: skip


def test_tuned_tiles_are_those_of_the_nearest_entry() -> None:
    def row(block: int) -> dict[str, int]:
        return {
            "BLOCK_SIZE_M": block,
            "BLOCK_SIZE_N": 64,
            "BLOCK_SIZE_K": 128,
            "GROUP_SIZE_M": 1,
            "num_warps": 4,
        }

    table = {1: row(16), 64: row(32), 128: row(64)}
    tokens = np.array([1.0, 32.0, 33.0, 96.0, 97.0, 5000.0])
    assert tuned_config(tokens, table).block_m.tolist() == [16, 16, 32, 32, 64, 64]


@pytest.mark.parametrize("table", [{}, {4: {"BLOCK_SIZE_M": 16}}, {4: {"BLOCK_SIZE_M": 0}}])
def test_a_table_without_tiles_is_refused(table: dict[int, dict[str, int]]) -> None:
    with pytest.raises(ExpertError, match=r"empty|no BLOCK_SIZE"):
        tuned_config(np.array([1.0]), table)


@pytest.mark.parametrize("shape", [QWEN, MIXTRAL, DEEPSEEK])
def test_terms_are_times_and_experts_are_read_once(shape: ModelShape) -> None:
    tokens = np.arange(1.0, 1500.0, 7)
    terms = terms_of(shape, tokens)
    assert set(terms) == {"experts", "memory", "compute", "tile", "wave"}
    assert all(np.all(term >= -1e-12) for term in terms.values())
    expert_bytes = sum(gemm.weight_traffic for gemm in shape.expert_gemms)
    rate = H100.memory_bytes_per_second * CONSTANTS.bandwidth
    read = routing_of(shape).awake(tokens) * expert_bytes / rate
    assert terms["experts"] == pytest.approx(read)
    assert np.all(sum_terms(terms) > read)


def test_the_second_block_of_a_large_expert_reads_its_weights_again() -> None:
    """At T = 320 each of Mixtral's experts has 80 rows, two blocks of 64; of qwen3's, 20 rows."""
    tokens = np.array([128.0, 320.0])
    large, small = (sum_terms(terms_of(shape, tokens)) for shape in (MIXTRAL, QWEN))
    assert large[1] / large[0] > 1.6
    assert small[1] / small[0] < 1.1


@settings(deadline=None, max_examples=40)
@given(
    experts=st.integers(1, 256),
    top_k=st.integers(1, 16),
    width=st.sampled_from([64, 768, 2048, 14336]),
    hidden=st.sampled_from([256, 2048, 7168]),
)
def test_any_shape_gives_finite_times_that_arithmetic_bounds(
    experts: int, top_k: int, width: int, hidden: int
) -> None:
    top_k = min(top_k, experts)
    shape = dataclasses.replace(
        QWEN,
        num_experts=experts,
        experts_per_token=top_k,
        moe_intermediate_size=width,
        hidden_size=hidden,
    )
    tokens = np.array([1.0, 7, 64, 513, 70000])
    seconds = sum_terms(terms_of(shape, tokens))
    flops = 2.0 * tokens * top_k * sum(gemm.parameters for gemm in shape.expert_gemms)
    assert np.all(np.isfinite(seconds))
    assert np.all(seconds >= flops / (H100.bf16_flops * CONSTANTS.flops) * (1 - 1e-9))


def test_a_rank_with_a_part_of_the_experts_takes_its_part_of_the_time() -> None:
    tokens = np.array([128.0, 512.0])
    split = dataclasses.replace(QWEN, expert_parallel=True, data_parallel_size=4)
    routing = Routing(split.local_experts, split.local_experts_per_token, expert_parallel=True)
    whole, part = sum_terms(terms_of(QWEN, tokens)), sum_terms(terms_of(split, tokens, routing))
    assert routing.num_experts == 32
    assert part / whole == pytest.approx([0.26, 0.26], rel=0.08)


def skewed(experts: int, per_token: float) -> Routing:
    shares = np.random.default_rng(2).dirichlet(np.full(experts, 10.0))
    return Routing(experts, per_token, shares=tuple(shares / shares.sum()))


def test_grouped_shares_count_as_the_experts_one_by_one() -> None:
    tokens, routing = np.array([3.0, 16, 64, 300, 900]), skewed(128, 8.0)
    block = np.array([16, 16, 32, 64, 128])
    assert routing.shares is not None
    alone = [Routing(1, share * 8.0) for share in routing.shares]
    for count, one in (
        (routing.awake(tokens), lambda each: each.awake(tokens)),
        (
            routing.blocks(tokens, block),
            lambda each: each.blocks(tokens, block),
        ),
    ):
        assert count == pytest.approx(sum(one(each) for each in alone), rel=0.005)


@pytest.mark.parametrize("routing", [None, skewed(128, 8.0)])
def test_a_scan_is_fast(routing: Routing | None) -> None:
    tokens = 4.0 * np.arange(1, 513)
    terms_of(QWEN, tokens, routing)
    taken = []
    for _ in range(7):
        start = time.process_time()
        terms_of(QWEN, tokens, routing)
        taken.append(time.process_time() - start)
    assert min(taken) < (0.02 if routing is None else 0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0), "num_experts must be 1 or more, not 0"),
        ((4, 5.0), "at most num_experts 4, not 5.0"),
        ((4, 0.0), "above 0"),
        ((2, 1.0, (0.5, 0.4)), "add up to 1"),
        ((2, 1.0, (1.0,)), "name all num_experts 2, not 1"),
        ((2, 2.0, (0.9, 0.1)), "only once"),
    ],
)
def test_impossible_routing_is_refused(arguments: tuple[int, float], message: str) -> None:
    with pytest.raises(ExpertError, match=message):
        Routing(*arguments)


@pytest.mark.parametrize("name", BOUNDS)
def test_constants_out_of_bounds_are_refused(name: str) -> None:
    with pytest.raises(ExpertError, match=f"{name} must lie from"):
        dataclasses.replace(CONSTANTS, **{name: BOUNDS[name][1] * 1.01})


def synthetic(shape: ModelShape, constants: ExpertConstants) -> ExpertCurve:
    tokens = np.array(TOKENS, dtype=float)
    seconds = module_seconds(shape, H100, constants, tokens)
    return ExpertCurve(shape, TOKENS, tuple(seconds.tolist()))


def test_the_fit_recovers_the_constants_of_made_curves() -> None:
    made = ExpertConstants(
        bandwidth=0.8,
        row_gap_bytes=14.0,
        flops=0.5,
        kept_l2=0.6,
        activation_bandwidth=1.2,
        kernel_seconds=3e-6,
    )
    found = fit_experts([synthetic(QWEN, made), synthetic(MIXTRAL, made)], H100)
    for name, tolerance in (
        ("bandwidth", 0.01),
        ("kernel_seconds", 0.05),
        ("flops", 0.05),
        ("row_gap_bytes", 0.2),
        ("kept_l2", 0.1),
        ("activation_bandwidth", 0.1),
    ):
        assert getattr(found, name) == pytest.approx(getattr(made, name), rel=tolerance), name


def test_one_curve_leaves_what_it_does_not_show_near_the_start() -> None:
    """Every expert of qwen3 fits in L2 as a whole: nothing shows how much is kept there."""
    made = dataclasses.replace(CONSTANTS, bandwidth=0.7, kept_l2=0.5)
    found = fit_experts([synthetic(QWEN, made)], H100)
    assert found.bandwidth == pytest.approx(0.7, rel=0.02)
    assert 0.4 < found.kept_l2 < 1.0


def test_the_fit_stays_in_bounds_on_absurd_curves() -> None:
    tokens = tuple(range(1, 40))
    for seconds in ((1e-9,) * 39, (1.0,) * 39, tuple(1e-6 * t**2 for t in tokens)):
        found = fit_experts([ExpertCurve(QWEN, tokens, seconds)], H100)
        for name, (least, most) in BOUNDS.items():
            assert least <= getattr(found, name) <= most


def test_fits_without_curves_experts_or_points_are_refused() -> None:
    with pytest.raises(FitError, match="one MoE model or more"):
        fit_experts([], H100)
    with pytest.raises(FitError, match="needs a time at 8 or more N"):
        ExpertCurve(QWEN, (1, 2), (1e-6, 1e-6))
    with pytest.raises(FitError, match="not finite and above 0"):
        ExpertCurve(QWEN, tuple(range(1, 10)), (1e-6,) * 8 + (0.0,))


@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "mixtral-8x7b"])
def test_defaults_describe_the_reference_curves(model: str) -> None:
    curve = reference(model)
    tokens = np.array(curve.tokens, dtype=float)
    predicted = module_seconds(curve.shape, H100, CONSTANTS, tokens)
    error = np.abs(np.log(predicted / np.array(curve.seconds)))
    assert np.median(error) < 0.015
    # Below some 8 tokens the four draws of the measurement wake more or fewer experts.
    assert np.max(error[tokens > 8]) < 0.08


def test_the_defaults_are_what_the_fit_finds_on_the_reference_curves() -> None:
    start = ExpertConstants(
        bandwidth=0.9,
        row_gap_bytes=8.0,
        flops=0.6,
        kept_l2=0.5,
        activation_bandwidth=1.0,
        kernel_seconds=3e-6,
    )
    found = fit_experts([reference("qwen3-30b-a3b"), reference("mixtral-8x7b")], H100, start)
    for name in BOUNDS:
        assert getattr(found, name) == pytest.approx(getattr(CONSTANTS, name), rel=0.01), name


def reference(model: str) -> ExpertCurve:
    (curve,) = expert_curves([read_samples(REFERENCE / f"{model}.jsonl.gz")])
    return curve


def test_skewed_shares_fall_with_rank_and_add_up() -> None:
    assert skewed_shares(8, 2, 0.0) is None
    shares = skewed_shares(4, 1, 1.0)
    assert shares is not None
    assert shares == pytest.approx([12 / 25, 6 / 25, 4 / 25, 3 / 25])  # 1, 1/2, 1/3, 1/4
    capped = skewed_shares(4, 2, 2.0)
    assert capped is not None
    # 1, 1/4, 1/9, 1/16: the first would get 0.70 of the rows, and can have half of them.
    assert capped == pytest.approx([0.5, 0.5 * 36 / 61, 0.5 * 16 / 61, 0.5 * 9 / 61])
    every = skewed_shares(4, 4, 1.0)
    assert every == pytest.approx([0.25] * 4)


def test_skewed_routing_wakes_fewer_experts() -> None:
    tokens = np.array([1.0, 8.0, 16.0, 512.0])
    uniform = Routing(128, 8).awake(tokens)
    skewed = Routing(128, 8, skewed_shares(128, 8, TYPICAL_SKEW)).awake(tokens)
    assert skewed[0] == pytest.approx(uniform[0])
    assert skewed[1] < 0.95 * uniform[1]
    assert skewed[2] < 0.9 * uniform[2]
