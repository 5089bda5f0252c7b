"""The attention model: known stairs, terms that add up, fits, and real timings."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.prediction.score_attention import Boundary, boundary, score
from vllm_nfp.calibrate.errors import FitError
from vllm_nfp.calibrate.fit_attention import (
    AttentionCurve,
    attention_curves,
    fit_attention,
    predicted_seconds,
)
from vllm_nfp.calibrate.points import KernelSamples, read_samples
from vllm_nfp.principle import Hardware, PredictionError, hardware_by_name
from vllm_nfp.principle.attention import (
    ATTENTION_BACKENDS,
    FLASH_ATTN_3,
    H100_ATTENTION,
    AttentionConstants,
    AttentionStep,
    Schedule,
    attention_terms,
    backend_by_name,
    efficient_splits,
    fixed_seconds,
    granularity,
)
from vllm_nfp.principle.shape import AttentionHeads
from vllm_nfp.principle.terms import FloatArray, soft_maximum, sum_terms

H100 = hardware_by_name("H100-SXM")
LLAMA_8B = AttentionHeads(8, 4, 128, 128, 512.0, False)
LLAMA_70B = AttentionHeads(8, 8, 128, 128, 512.0, False)
LLAMA_8B_FP8 = AttentionHeads(8, 4, 128, 128, 256.0, True)
PHI_3 = AttentionHeads(32, 1, 96, 96, 384.0, False)
DEEPSEEK = AttentionHeads(1, 16, 576, 512, 1152.0, False)
REFERENCE = Path(__file__).parents[2] / "benchmarks/results/2026-11-24-h100-kernels/reference"


def array(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


def schedule(heads: AttentionHeads, batch_size: int, context: int, *positions: int) -> Schedule:
    n = array(*positions)
    return FLASH_ATTN_3.schedule(AttentionStep(heads, batch_size, context + n, n, H100.num_sms))


def seconds(heads: AttentionHeads, batch_size: int, context: int, *positions: int) -> FloatArray:
    n = array(*positions)
    terms = attention_terms(
        H100, heads, batch_size=batch_size, cached_tokens=context + n, positions=n
    )
    return fixed_seconds(heads) + sum_terms(terms)


@pytest.mark.parametrize(
    ("heads", "positions", "rows", "tokens"),
    [
        (LLAMA_8B, 16, 64, 128),
        (LLAMA_8B, 17, 128, 128),
        (LLAMA_8B_FP8, 16, 64, 96),
        (LLAMA_8B_FP8, 17, 128, 192),
        (PHI_3, 1, 192, 128),
        (dataclasses.replace(LLAMA_8B, score_dim=64, value_dim=64), 16, 64, 192),
        (dataclasses.replace(LLAMA_8B, score_dim=64, value_dim=64), 17, 192, 128),
        (dataclasses.replace(LLAMA_8B, score_dim=256, value_dim=256), 1, 128, 80),
    ],
)
def test_tiles_of_flash_attention_3(
    heads: AttentionHeads, positions: int, rows: int, tokens: int
) -> None:
    tiles = schedule(heads, 1, 4096, positions).tiles
    assert tiles.tile_rows[0] == rows
    assert tiles.tile_tokens[0] == tokens


def test_a_window_takes_the_full_tile() -> None:
    n = array(1)
    step = AttentionStep(LLAMA_8B, 1, 1024 + n, n, H100.num_sms, windowed=True)
    assert FLASH_ATTN_3.tiles(step).tile_rows[0] == 128


def test_splits_and_waves_of_llama_8b_at_a_batch_of_8() -> None:
    """2 splits while one query block holds all rows, then none: 1, 2 and 3 waves."""
    found = schedule(LLAMA_8B, 8, 16384, 1, 32, 33, 64, 65, 128, 129)
    assert found.splits.tolist() == [2, 2, 1, 1, 1, 1, 1]
    assert found.work_tiles.tolist() == [128, 128, 128, 128, 192, 256, 320]
    assert found.waves.tolist() == [1, 1, 1, 1, 2, 2, 3]


def test_rounding_leaves_a_second_wave_at_96_positions_but_not_at_128() -> None:
    """Llama 70B alone: 6 query blocks take 3 splits and 144 work tiles, 8 take 2 and 128."""
    found = schedule(LLAMA_70B, 1, 16384, 96, 128)
    assert found.splits.tolist() == [3, 2]
    assert found.waves.tolist() == [2, 1]
    slow, fast = seconds(LLAMA_70B, 1, 16384, 96, 128)
    assert slow > fast


def test_splits_are_bounded_by_32_in_graphs_and_by_the_heuristic_beyond() -> None:
    one_head = dataclasses.replace(LLAMA_8B, kv_heads=1)
    n = array(1)
    step = AttentionStep(one_head, 1, 131072 + n, n, H100.num_sms)
    assert FLASH_ATTN_3.schedule(step).splits[0] == 32
    beyond = dataclasses.replace(step, max_graph_tokens=0)
    assert FLASH_ATTN_3.schedule(beyond).splits[0] > 32


@pytest.mark.parametrize(
    ("work_tiles", "kv_blocks", "splits"),
    [(106, 100, 1), (105, 4, 1), (48, 100, 5), (66, 100, 2), (1, 3, 1), (1, 10, 9)],
)
def test_efficient_splits_by_hand(work_tiles: int, kv_blocks: int, splits: int) -> None:
    found = efficient_splits(array(work_tiles), array(kv_blocks), 132, least_blocks=4)
    assert found.tolist() == [splits]


def test_the_staircase_of_llama_8b() -> None:
    at = dict(
        zip(
            (1, 16, 32, 33, 64, 65, 128, 129),
            seconds(LLAMA_8B, 8, 16384, 1, 16, 32, 33, 64, 65, 128, 129) / 193e-6,
            strict=True,
        )
    )
    # Medians on an H100: 1.00, 1.02, 1.06, 1.18, 1.19, 2.19, 2.21, 3.26.
    assert at[1] == pytest.approx(1.0, abs=0.03)
    assert at[32] == pytest.approx(1.06, abs=0.04)
    assert at[33] == pytest.approx(1.18, abs=0.05)
    assert at[64] == pytest.approx(at[33], rel=0.03)
    assert at[65] == pytest.approx(2.19, abs=0.15)
    assert at[129] == pytest.approx(3.26, abs=0.2)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([LLAMA_8B, LLAMA_70B, LLAMA_8B_FP8, PHI_3, DEEPSEEK]),
    name=st.sampled_from(sorted(ATTENTION_BACKENDS)),
    batch_size=st.integers(1, 256),
    context=st.integers(0, 200_000),
    windowed=st.booleans(),
    causal=st.booleans(),
)
def test_terms_are_finite_and_never_negative(
    heads: AttentionHeads, name: str, batch_size: int, context: int, windowed: bool, causal: bool
) -> None:
    n = np.arange(1, 130, dtype=np.float64)
    terms = attention_terms(
        H100,
        heads,
        batch_size=batch_size,
        cached_tokens=context + n,
        positions=n,
        backend=ATTENTION_BACKENDS[name],
        windowed=windowed,
        causal=causal,
    )
    assert set(terms) == {"memory", "compute", "query_block", "wave"}
    for term in terms.values():
        assert term.shape == n.shape
        assert np.all(np.isfinite(term) & (term >= -1e-15))


def test_terms_add_up_to_the_formula() -> None:
    """One wave of one block: nothing but what the module's docstring lists."""
    constants = H100_ATTENTION
    heads = dataclasses.replace(LLAMA_8B, kv_heads=132)
    terms = attention_terms(H100, heads, batch_size=1, cached_tokens=array(128), positions=array(1))
    rate = 3.35e12
    traffic = 132 * 128 * 512 / (rate * constants.bandwidth)
    block = 64 * 128 * 512 / (constants.flops * 989.4e12 / 132)
    expected = (
        float(soft_maximum(array(traffic), array(block), constants.overlap)[0])
        + 132 * 4 * 256 * 2 / (rate * constants.query_bandwidth)
        + constants.exposed_blocks * block
        + constants.wave_seconds
    )
    assert sum_terms(terms)[0] == pytest.approx(expected, rel=1e-3)


def test_an_8_bit_cache_reads_half_and_adds_the_quantizing_of_queries() -> None:
    cells = {"batch_size": 8, "cached_tokens": array(16384), "positions": array(1)}
    plain = attention_terms(H100, LLAMA_8B, **cells)["memory"][0]  # type: ignore[arg-type]
    halved = attention_terms(H100, LLAMA_8B_FP8, **cells)["memory"][0]  # type: ignore[arg-type]
    assert halved == pytest.approx(plain / 2, rel=0.02)
    assert fixed_seconds(LLAMA_8B_FP8) > fixed_seconds(LLAMA_8B)


def test_a_device_without_8_bit_units_runs_an_8_bit_cache_at_the_16_bit_rate() -> None:
    a100: Hardware = hardware_by_name("A100-SXM4-80GB")
    cells = {"batch_size": 1, "cached_tokens": array(8192), "positions": array(128)}
    plain = sum_terms(attention_terms(a100, LLAMA_8B, **cells))[0]  # type: ignore[arg-type]
    eight = sum_terms(attention_terms(a100, LLAMA_8B_FP8, **cells))[0]  # type: ignore[arg-type]
    assert 0.5 * plain < eight < 2 * plain


def test_soft_maximum_lies_between_the_larger_and_the_sum() -> None:
    both = soft_maximum(array(1, 3, 1), array(1, 1, 0), 5.0)
    assert both[0] == pytest.approx(2**0.2)
    assert 3 < both[1] < 3.01
    assert both[2] == 1


@pytest.mark.parametrize(("group", "step"), [(1, 64), (4, 16), (7, 10), (8, 8), (128, 1)])
def test_granularity(group: int, step: int) -> None:
    assert granularity(group) == step


def test_flash_attention_2_splits_the_cache_at_one_position_alone() -> None:
    n = array(1, 2)
    step = AttentionStep(LLAMA_8B, 1, 8192 + n, n, 108)
    found = ATTENTION_BACKENDS["FLASH_ATTN_2"].schedule(step)
    assert found.splits[0] > 1
    assert found.splits[1] == 1
    assert found.tiles.units.tolist() == [8, 32]


def test_triton_packs_whole_positions_into_16_rows() -> None:
    heads = dataclasses.replace(LLAMA_8B, group=6)
    n = array(1, 2, 3, 4, 5)
    step = AttentionStep(heads, 64, 4096 + n, n, 132)
    tiles = ATTENTION_BACKENDS["TRITON_ATTN"].tiles(step)
    assert tiles.query_blocks.tolist() == [1, 1, 2, 2, 3]


def test_only_flash_attention_3_is_not_assumed() -> None:
    assert [b.name for b in ATTENTION_BACKENDS.values() if not b.assumed] == ["FLASH_ATTN_3"]
    assert all(backend.source for backend in ATTENTION_BACKENDS.values())


def test_backends_by_name() -> None:
    assert backend_by_name("triton_attn", H100).name == "TRITON_ATTN"
    assert backend_by_name("FLASH_ATTN", H100) is FLASH_ATTN_3
    a100 = hardware_by_name("A100-SXM4-80GB")
    assert backend_by_name("FLASH_ATTN", a100).name == "FLASH_ATTN_2"
    with pytest.raises(PredictionError, match=r"'XFORMERS'.*FLASH_ATTN_3"):
        backend_by_name("XFORMERS", H100)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bandwidth", 0),
        ("bandwidth", 1.1),
        ("overlap", 0.5),
        ("flops", float("nan")),
        ("kernel_seconds", -1e-6),
        ("partial_bandwidth", float("inf")),
    ],
)
def test_impossible_constants_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        AttentionConstants(**{name: value})


def synthetic(constants: AttentionConstants) -> list[AttentionCurve]:
    n = array(*range(1, 18), *range(18, 66, 3), 80, 96, 128, 129)
    cells = [(1, 1024), (8, 1024), (32, 1024), (1, 16384), (8, 16384), (128, 1024)]
    made = []
    for heads in (LLAMA_8B, LLAMA_70B, LLAMA_8B_FP8):
        for batch_size, context in cells:
            empty = AttentionCurve(heads, batch_size, context, n, np.ones_like(n))
            times = predicted_seconds(empty, H100, constants)
            made.append(dataclasses.replace(empty, seconds=times))
    return made


def test_a_fit_recovers_the_constants_of_synthetic_curves() -> None:
    truth = dataclasses.replace(
        H100_ATTENTION,
        bandwidth=0.8,
        flops=0.6,
        flops_fp8=0.35,
        partial_bandwidth=1.2,
        kernel_seconds=6e-6,
        quantize_seconds=3e-6,
    )
    fit = fit_attention(synthetic(truth), H100)
    assert fit.curves == 18
    assert fit.errors.rms_log_ratio_error < 0.002
    assert fit.errors.rms_log_error < 0.005
    for name in ("bandwidth", "flops", "flops_fp8", "partial_bandwidth", "kernel_seconds"):
        assert getattr(fit.constants, name) == pytest.approx(getattr(truth, name), rel=0.05)


def test_a_fit_bears_outliers() -> None:
    curves = synthetic(H100_ATTENTION)
    spoiled = curves[0].seconds.copy()
    spoiled[5] *= 3
    curves[0] = dataclasses.replace(curves[0], seconds=spoiled)
    fit = fit_attention(curves, H100)
    assert fit.constants.bandwidth == pytest.approx(H100_ATTENTION.bandwidth, rel=0.03)
    assert fit.constants.flops == pytest.approx(H100_ATTENTION.flops, rel=0.03)


def test_one_curve_moves_only_what_it_shows() -> None:
    truth = dataclasses.replace(H100_ATTENTION, bandwidth=0.7)
    curve = synthetic(truth)[4]
    assert (curve.batch_size, curve.context) == (8, 16384)
    constants = fit_attention([curve], H100).constants
    assert constants.bandwidth == pytest.approx(0.7, rel=0.05)
    assert constants.flops == pytest.approx(H100_ATTENTION.flops, rel=0.2)
    assert constants.flops_fp8 == H100_ATTENTION.flops_fp8


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(FitError, match="no attention curves"):
        fit_attention([], H100)
    with pytest.raises(FitError, match="3 or more"):
        AttentionCurve(LLAMA_8B, 1, 64, array(1, 2), array(1, 1))
    with pytest.raises(FitError, match="ascend from 1"):
        AttentionCurve(LLAMA_8B, 1, 64, array(2, 3, 4), array(1, 1, 1))
    with pytest.raises(FitError, match="above 0"):
        AttentionCurve(LLAMA_8B, 1, 64, array(1, 2, 3), array(1, 0, 1))


def test_score_by_hand() -> None:
    cells = [Boundary(10, 12, 100, 2), Boundary(10, 13, 12, 2), Boundary(4, 4, 8, 2)]
    result = score(cells)
    assert result.cells == 3
    assert result.within_step == pytest.approx(2 / 3)
    assert result.median_error == pytest.approx(0.2)
    assert result.idle_within_step == pytest.approx(1 / 3)
    assert result.idle_median_error == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no cells"):
        score([])


def reference(model: str, folder: Path) -> KernelSamples:
    plain = folder / f"{model}.jsonl"
    plain.write_bytes(gzip.decompress((REFERENCE / f"{model}.jsonl.gz").read_bytes()))
    return read_samples(plain)


@pytest.mark.parametrize(
    ("model", "level", "ratio"),
    [
        ("llama-3.1-8b", 0.08, 0.06),
        ("llama-3.1-70b", 0.08, 0.06),
        ("qwen3-1.7b", 0.08, 0.06),
        ("qwen3-30b-a3b", 0.08, 0.06),
        ("llama-3.1-8b-fp8", 0.21, 0.21),
    ],
)
def test_19_of_20_real_medians(model: str, level: float, ratio: float, tmp_path: Path) -> None:
    """Largest relative errors of t(N) and t(N) / t(1) but for one time in 20."""
    curves = attention_curves(reference(model, tmp_path))
    assert len(curves) == 12
    assert {curve.heads.fp8 for curve in curves} == {"fp8" in model}
    errors = [
        np.log(predicted_seconds(curve, H100, H100_ATTENTION) / curve.seconds) for curve in curves
    ]
    assert np.quantile(np.abs(np.concatenate(errors)), 0.95) < level
    assert np.quantile(np.abs(np.concatenate([e - e[0] for e in errors])), 0.95) < ratio


def test_predictions_beat_idle_compute_on_a_reference_model(tmp_path: Path) -> None:
    cells = [
        boundary(c, H100, epsilon, lambda c: predicted_seconds(c, H100, H100_ATTENTION))
        for c in attention_curves(reference("llama-3.1-8b", tmp_path))
        for epsilon in (0.1, 0.2)
    ]
    result = score(cells)
    assert result.within_step >= 0.9
    assert result.median_error <= 0.1
    assert result.idle_median_error > 1


def test_curves_of_a_model_without_attention_timings(tmp_path: Path) -> None:
    assert attention_curves(reference("mixtral-8x7b", tmp_path)) == ()


@pytest.mark.parametrize("batch_size", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("context", [1024, 4096, 16384])
def test_the_triton_kernel_without_its_segments_is_hardly_faster(
    batch_size: int, context: int
) -> None:
    """At two positions it walks the cache unsplit: only the sum over segments is saved."""
    heads = AttentionHeads(8, 4, 128, 128, 512.0, False)
    positions = np.array([1.0, 2.0])
    constants = AttentionConstants()
    terms = attention_terms(
        hardware_by_name("MI300X"),
        heads,
        batch_size=batch_size,
        cached_tokens=context + positions,
        positions=positions,
        constants=constants,
        backend=ATTENTION_BACKENDS["TRITON_ATTN"],
    )
    one, two = (fixed_seconds(heads, constants) + sum_terms(terms)).tolist()
    assert two > 0.95 * one
    if batch_size == 1:
        assert two > 2 * one, "8 work tiles on 304 units leave memory idle"
