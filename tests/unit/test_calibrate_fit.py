"""Fits: constants come back from curves made of them, and nonsense is refused in a sentence."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from vllm_nfp.calibrate.curves import gemm_curves, shape_of
from vllm_nfp.calibrate.errors import FitError, fit_errors
from vllm_nfp.calibrate.fit import FitResult, PartFit, fit
from vllm_nfp.calibrate.fit_attention import attention_curves, predicted_seconds
from vllm_nfp.calibrate.fit_gemm import (
    GemmCurve,
    fit_fp8_gemm,
    fit_gemm,
    gemm_errors,
    product_seconds,
)
from vllm_nfp.calibrate.plans import TOKENS
from vllm_nfp.calibrate.points import Curve, Kernel, KernelSamples, Series, read_samples
from vllm_nfp.calibrate.reference_models import REFERENCE
from vllm_nfp.principle.calibration import H100_CALIBRATION
from vllm_nfp.principle.gemm import Fp8GemmConstants, GemmConstants
from vllm_nfp.principle.hardware import hardware_by_name
from vllm_nfp.principle.hardware_file import Target, target_of
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.tiled import TiledConstants

H100 = hardware_by_name("H100-SXM")
START = Target(H100, H100_CALIBRATION)
H200 = target_of("H200")
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = RESULTS / "2026-11-24-h100-kernels" / "reference"
SIZES = ((4096, 6144), (4096, 28672), (14336, 4096), (2048, 12288), (8192, 57344), (4096, 128256))


@cache
def reference() -> tuple[KernelSamples, ...]:
    return tuple(read_samples(path) for path in sorted(FOLDER.glob("*.jsonl.gz")))


@cache
def h200_products() -> list[GemmCurve]:
    """FP8 products of the reference model, as they ran on an H200."""
    path = RESULTS / "2026-11-28-h200-calibration" / "samples" / "llama-3.1-8b-fp8.jsonl.gz"
    return [curve for curve in gemm_curves(H200.hardware, [read_samples(path)]) if curve.fp8]


@cache
def reference_fit() -> FitResult:
    return fit(reference(), START)


def part(result: FitResult, name: str) -> PartFit:
    return next(part for part in result.parts if part.part == name)


def products(constants: GemmConstants, noise: float = 0.0, fp8: bool = False) -> list[GemmCurve]:
    rng = np.random.default_rng(0)
    tokens = np.array(TOKENS, dtype=float)
    curves = []
    for inputs, outputs in SIZES:
        gemm = Gemm(inputs, outputs, 1.0 if fp8 else 2.0, fp8)
        blank = GemmCurve((gemm,), tokens, np.ones_like(tokens), np.zeros_like(tokens))
        seconds = product_seconds(H100, constants, blank)
        scatter = np.exp(noise * rng.standard_normal(len(tokens)))
        curves.append(dataclasses.replace(blank, seconds=seconds * scatter))
    return curves


TRUE = GemmConstants(
    bandwidth=0.78, flops=0.66, output_traffic=1.2, input_traffic=3.0, wave_loss=0.4,
    sharpness=8.0, kernel_seconds=6e-6, selection_loss=0.0,
)  # fmt: skip


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.03), (0.01, 0.1)])
def test_product_constants_come_back(noise: float, tolerance: float) -> None:
    found, error = fit_gemm(H100, products(TRUE, noise), GemmConstants())
    for name in ("bandwidth", "flops", "kernel_seconds"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=tolerance), name
    assert error < 0.001 + 2 * noise
    # What was scattered is told as scatter.
    assert found.selection_loss == pytest.approx(noise, abs=0.004)


def test_few_points_leave_the_scatter_as_it_was() -> None:
    few = [
        GemmCurve(c.gemms, c.tokens[:5], c.seconds[:5], c.extra_seconds[:5]) for c in products(TRUE)
    ]
    found, _ = fit_gemm(H100, few, GemmConstants(selection_loss=0.07))
    assert found.selection_loss == 0.07


def test_tiles_are_fitted_where_the_device_has_them() -> None:
    start = GemmConstants(tiles=TiledConstants())
    true = TiledConstants(bandwidth=0.8, flops=0.7, l2_bandwidth=3.0, kernel_seconds=5e-6)
    curves = products(dataclasses.replace(start, tiles=true))[:3]
    found, error = fit_gemm(H100, curves, start)
    assert error < 0.02
    assert found.tiles is not None
    assert found.tiles.bandwidth == pytest.approx(0.8, rel=0.05)
    assert gemm_errors(curves, H100, found).rms_log_ratio_error < 0.02
    assert gemm_errors(curves, H100, start).rms_log_ratio_error > 0.05
    assert dataclasses.replace(found, tiles=start.tiles) == start, "nothing else is touched"


def test_a_share_of_tiles_at_the_end_of_its_range_is_refused() -> None:
    """Of A100's figures the H100's products would take more than all."""
    target = target_of("A100-SXM4-80GB")
    slow = dataclasses.replace(target.hardware, memory_bytes_per_second=1e12)
    result = fit(reference()[:1], dataclasses.replace(target, hardware=slow))
    notes = part(result, "gemm").notes
    assert any("bandwidth ended at 1" in note for note in notes), notes
    assert result.target.calibration.gemm == target.calibration.gemm


def test_fp8_steps_come_back() -> None:
    true = Fp8GemmConstants(
        bandwidth=0.7, kernel_seconds=5e-6, tile_slowdown=(1.0, 1.2, 1.5), row_tile_slowdown=0.95
    )
    curves = products(GemmConstants(fp8=true), fp8=True)
    found = fit_fp8_gemm(H100, curves, Fp8GemmConstants())
    assert found.bandwidth == pytest.approx(0.7, rel=0.02)
    assert found.kernel_seconds == pytest.approx(5e-6, rel=0.1)
    assert found.tile_slowdown == pytest.approx((1.0, 1.2, 1.5), rel=0.05)
    assert found.row_tile_slowdown == pytest.approx(0.95, rel=0.1)


def test_fp8_steps_that_fall_again_come_back() -> None:
    """Two tiles that run together are fastest where the tokens fill both."""
    edges, steps = (16, 64, 128, 192, 256, 384, 512), (1.0, 1.1, 1.3, 2.0, 1.7, 2.9, 2.3)
    start = dataclasses.replace(Fp8GemmConstants(), tile_tokens=edges, tile_slowdown=steps)
    flat = dataclasses.replace(start, tile_slowdown=(1.0,) * len(edges), flops=0.9)
    true = dataclasses.replace(start, bandwidth=0.7, kernel_seconds=5e-6, flops=0.9)
    curves = products(GemmConstants(fp8=true), fp8=True)
    found = fit_fp8_gemm(H100, curves, flat)
    assert found.tile_slowdown == pytest.approx(steps, rel=0.05)
    short = [
        GemmCurve(c.gemms, c.tokens[kept], c.seconds[kept], c.extra_seconds[kept])
        for c in curves
        for kept in (c.tokens <= edges[-1],)
    ]
    found = fit_fp8_gemm(H100, short, flat)
    assert found.row_tile_slowdown == flat.row_tile_slowdown, "nothing says how it goes on"


def test_products_faster_than_the_data_sheet_are_refused() -> None:
    fast = [dataclasses.replace(c, seconds=c.seconds / 3)
            for c in products(GemmConstants(), fp8=True)]  # fmt: skip
    with pytest.raises(FitError, match=r"bandwidth must lie from 0\.05 to 1, not"):
        fit_fp8_gemm(H100, fast, Fp8GemmConstants())


def test_fp8_without_points_between_edges_is_refused() -> None:
    short = [GemmCurve(c.gemms, c.tokens[:16], c.seconds[:16], c.extra_seconds[:16])
             for c in products(GemmConstants(), fp8=True)]  # fmt: skip
    with pytest.raises(FitError, match="a point from 17 to 64 tokens"):
        fit_fp8_gemm(H100, short, Fp8GemmConstants())


def test_parts_without_curves_are_refused_by_name() -> None:
    with pytest.raises(FitError, match="16-bit product"):
        fit_gemm(H100, [], GemmConstants())
    with pytest.raises(FitError, match="FP8 product"):
        fit_fp8_gemm(H100, products(TRUE), Fp8GemmConstants())
    with pytest.raises(FitError, match="no curve"):
        fit_errors([])


@pytest.mark.parametrize(
    "changes",
    [
        {"bandwidth": 1.01}, {"flops": 0.0}, {"sharpness": 0.5}, {"kernel_seconds": -1e-9},
        {"selection_loss": float("nan")}, {"wave_loss": float("inf")},
    ],
)  # fmt: skip
def test_impossible_product_constants_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must lie from"):
        GemmConstants(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_tokens": (16, 64)}, "as many"),
        ({"tile_tokens": (), "tile_slowdown": ()}, "one or more"),
        ({"tile_tokens": (64, 16, 128)}, "ascend"),
        ({"tile_slowdown": (1.0, float("nan"), 2.0)}, "tile_slowdown must lie"),
        ({"row_tile": 0}, "row_tile must lie"),
    ],
)
def test_impossible_fp8_constants_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fp8GemmConstants(**changes)


def test_reference_fit_is_near_the_defaults_and_as_good() -> None:
    result = reference_fit()
    found, defaults = result.target.calibration, H100_CALIBRATION
    assert found.fitted
    assert found.source == "89 curves on NVIDIA H100 80GB HBM3, vLLM 0.32.0, 2026-11-24"
    assert result.curves == 89
    assert [p.curves for p in result.parts] == [22, 5, 60, 2]
    for one in result.parts:
        assert one.after.rms_log_ratio_error <= one.before.rms_log_ratio_error + 1e-4
    for name in ("gemm", "attention", "experts"):
        before = dataclasses.asdict(getattr(defaults, name))
        after = dataclasses.asdict(getattr(found, name))
        before.pop("fp8", None), after.pop("fp8", None)
        assert (before.pop("tiles", None), after.pop("tiles", None)) == (None, None)
        # They are not fitted: kept as they were.
        assert before.pop("slow_steps", None) == after.pop("slow_steps", None)
        assert after == pytest.approx(before, rel=0.07), name
    assert found.gemm.selection_loss == pytest.approx(0.02, abs=0.005)


def test_what_ships_for_fp8_products_is_what_the_fit_gives() -> None:
    assert part(reference_fit(), "fp8_gemm").fitted
    found, ships = reference_fit().target.calibration.gemm.fp8, H100_CALIBRATION.gemm.fp8
    assert found.tile_slowdown == pytest.approx(ships.tile_slowdown, rel=0.01)
    assert found.bandwidth == pytest.approx(ships.bandwidth, rel=0.01)
    assert found.kernel_seconds == pytest.approx(ships.kernel_seconds, rel=0.01)


def test_what_ships_for_fp8_products_on_an_h200_is_what_the_fit_gives() -> None:
    ships = H200.calibration.gemm.fp8
    flat = dataclasses.replace(ships, tile_slowdown=(1.0,) * len(ships.tile_tokens))
    found = fit_fp8_gemm(H200.hardware, h200_products(), flat)
    assert found.tile_slowdown == pytest.approx(ships.tile_slowdown, rel=0.01)
    assert found.bandwidth == pytest.approx(ships.bandwidth, rel=0.01)
    assert found.kernel_seconds == pytest.approx(ships.kernel_seconds, rel=0.01)


def test_fp8_products_count_by_the_time_that_they_take() -> None:
    """One product steps by 1.2, one eight times as large by 1.6: the fit is near the larger one."""
    flat = dataclasses.replace(
        Fp8GemmConstants(kernel_seconds=1e-7), tile_tokens=(16, 64), tile_slowdown=(1.0, 1.0)
    )
    tokens = np.array([1.0, 2.0, 4.0, 32.0])
    curves = []
    for outputs, step in ((4096, 1.2), (8 * 4096, 1.6)):
        gemm = Gemm(4096, outputs, 1.0, fp8=True)
        true = GemmConstants(fp8=dataclasses.replace(flat, tile_slowdown=(1.0, step)))
        curve = GemmCurve((gemm,), tokens, np.ones(4), np.zeros(4))
        curves.append(dataclasses.replace(curve, seconds=product_seconds(H100, true, curve)))
    found = fit_fp8_gemm(H100, curves, flat)
    assert found.tile_slowdown[1] == pytest.approx((1.2 * 1.6**8) ** (1 / 9), rel=0.01)


def test_kept_where_the_start_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_nfp.calibrate.fit.fit_fp8_gemm", lambda *_: Fp8GemmConstants())
    eight_bit = [samples for samples in reference() if samples.model.endswith("-fp8")]
    result = fit(eight_bit, Target(H100, H100_CALIBRATION))
    fp8 = part(result, "fp8_gemm")
    assert fp8.fitted
    assert "the initial constants match the curves better" in fp8.notes[0]
    assert result.target.calibration.gemm.fp8 == H100_CALIBRATION.gemm.fp8


def test_far_starts_come_to_the_same_errors() -> None:
    far = dataclasses.replace(
        H100_CALIBRATION,
        gemm=dataclasses.replace(H100_CALIBRATION.gemm, bandwidth=0.6, flops=0.4),
        experts=dataclasses.replace(H100_CALIBRATION.experts, bandwidth=0.6, flops=0.4),
    )
    result = fit(reference(), Target(H100, far))
    for name in ("gemm", "experts"):
        near, other = part(reference_fit(), name).after, part(result, name).after
        assert other.rms_log_ratio_error == pytest.approx(near.rms_log_ratio_error, rel=0.1)


def test_a_part_without_curves_keeps_its_constants() -> None:
    moe = [samples for samples in reference() if samples.model == "mixtral-8x7b"]
    start = dataclasses.replace(
        H100_CALIBRATION, gemm=dataclasses.replace(H100_CALIBRATION.gemm, bandwidth=0.5)
    )
    result = fit(moe, Target(H100, start))
    assert [(p.part, p.fitted) for p in result.parts] == [
        ("gemm", False), ("fp8_gemm", False), ("attention", False), ("experts", True),
    ]  # fmt: skip
    calibration = result.target.calibration
    assert not calibration.fitted
    assert calibration.gemm == start.gemm
    assert calibration.source.endswith("not fitted: gemm, fp8_gemm, attention")
    assert part(result, "gemm").notes == ("no curves: constants are kept",)


def test_no_samples_at_all_keep_everything() -> None:
    result = fit([], START)
    assert not any(p.fitted for p in result.parts)
    assert result.target.calibration.gemm == H100_CALIBRATION.gemm


def test_times_that_no_device_like_this_has_are_refused() -> None:
    slow = [
        dataclasses.replace(samples, curves=tuple(
            dataclasses.replace(c, seconds=tuple(tuple(s * 40 for s in p) for p in c.seconds))
            for c in samples.curves))
        for samples in reference()
    ]  # fmt: skip
    result = fit(slow, START)
    assert "bandwidth ended at 0.3, the end of its range" in part(result, "gemm").notes[-1]
    assert not any(p.fitted for p in result.parts)
    for name in ("gemm", "attention", "experts"):
        assert "not fitted (" in part(result, name).notes[-1]
    assert result.target.calibration.origins == H100_CALIBRATION.origins, "of what was there"
    assert dataclasses.replace(result.target.calibration, source="", fitted=True) == (
        dataclasses.replace(H100_CALIBRATION, source="")
    )


def test_noise_alone_does_not_break_a_fit() -> None:
    rng = np.random.default_rng(3)
    positions = (1, 2, 3, 4, 8, 16, 32, 64)
    kernels = (Kernel.LINEAR, Kernel.DENSE_FFN, Kernel.ATTENTION, Kernel.MOE_FFN)
    noisy = [
        KernelSamples(
            plan.label, plan.config, {"arguments": dict(plan.arguments)},
            tuple(Curve(Series(k), positions,
                        tuple((float(10 ** rng.uniform(-6, -2)),) for _ in positions),
                        1024, 4096, 8 << 20) for k in kernels),
        )
        for plan in REFERENCE
    ]  # fmt: skip
    result = fit(noisy, START)
    assert len(result.parts) == 4
    for one in result.parts:
        assert one.fitted or one.notes


def test_unusable_curves_are_counted() -> None:
    short = Curve(Series(Kernel.ATTENTION, 1, 64), (1, 2), ((1e-5,), (1e-5,)))
    sizeless = Curve(Series(Kernel.LINEAR), (1, 2, 3), ((1e-5,),) * 3, 0, 0, 8 << 20)
    config = REFERENCE[0].config
    result = fit([KernelSamples("m", config, {}, (short, sizeless))], START)
    assert "1 curves left out; the first: m: attention at" in part(result, "attention").notes[0]
    assert "has no sizes" in part(result, "gemm").notes[0]
    unknown = fit([KernelSamples("m", {"model_type": "?"}, {}, (short,))], START)
    assert "left out" in part(unknown, "attention").notes[0]


def test_attention_takes_its_backend() -> None:
    samples = next(s for s in reference() if s.model == "llama-3.1-8b")
    other = dataclasses.replace(
        samples, environment={**samples.environment, "attention_backend": "FLASH_ATTN_2"}
    )
    three, two = attention_curves(samples), attention_curves(other)
    assert three[0].backend is not None and three[0].backend.name == "FLASH_ATTN_3"
    constants = H100_CALIBRATION.attention
    first, second = (
        [predicted_seconds(curve, H100, constants).tolist() for curve in curves]
        for curves in (three, two)
    )
    assert first != second
    cpu = dataclasses.replace(samples, environment={"attention_backend": "CPU_ATTN"})
    with pytest.raises(FitError, match="'CPU_ATTN', whose tiles are not modelled"):
        attention_curves(cpu)


def test_several_devices_are_refused() -> None:
    other = {"device": {"name": "NVIDIA H200"}}
    samples = [*reference(), KernelSamples("m", {}, other, ())]
    with pytest.raises(FitError, match="several devices"):
        fit(samples, START)


def test_samples_of_models_give_shapes_and_curves() -> None:
    fp8 = next(s for s in reference() if s.model == "llama-3.1-8b-fp8")
    assert shape_of(fp8).fp8
    assert shape_of(fp8).kv_bytes == 1
    curves = gemm_curves(H100, [fp8])
    assert sum(curve.fp8 for curve in curves) == 5
    assert all(curve.tokens[0] == 1 for curve in curves)


def test_errors_are_logarithms() -> None:
    ones = np.ones(4)
    found = fit_errors([(2 * ones, ones), (ones, 2 * ones)])
    assert found.rms_log_error == pytest.approx(math.log(2))
    assert found.rms_log_ratio_error == 0
