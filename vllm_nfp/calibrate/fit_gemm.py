"""Fits the constants of dense products to timed curves; needs scipy, nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vllm_nfp.principle.gemm import Fp8GemmConstants, GemmConstants, gemm_seconds
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.terms import FloatArray

MOST_TOKENS = 640
"""Longer steps are past every boundary and would draw the fit to pure arithmetic."""
BASELINE_TOKENS = 4
"""Times up to here are one point: the baseline, less noisy than T = 1 alone."""
_BOUNDARY_RATIOS = (1.0, 1.35)
_FITTED = (
    "bandwidth",
    "flops",
    "output_traffic",
    "input_traffic",
    "wave_loss",
    "sharpness",
    "kernel_seconds",
)
_LOWEST = (0.3, 0.2, 0.0, 0.0, 0.0, 2.0, 1e-7)
_HIGHEST = (1.0, 1.0, 6.0, 8.0, 2.0, 14.0, 3e-5)


@dataclass(frozen=True, slots=True)
class GemmCurve:
    """Times of one or more products that follow each other, such as those of an FFN.

    Attributes:
        gemms: the products.
        tokens: T, ascending, from 1.
        seconds: of all products together, shape of ``tokens``.
        extra_seconds: of what else was timed with them, such as an activation.
        weight: of this curve in the fit.
    """

    gemms: tuple[Gemm, ...]
    tokens: FloatArray
    seconds: FloatArray
    extra_seconds: FloatArray
    weight: float = 1.0


def fit_gemm(
    hardware: Hardware, curves: Sequence[GemmCurve], start: GemmConstants
) -> tuple[GemmConstants, float]:
    """Constants that fit 16-bit curves best, and the mean absolute error of log t(T) / t(1).

    Raises:
        ValueError: if there is no curve of 16-bit products.
    """
    from scipy.optimize import least_squares

    plain = [curve for curve in curves if not any(g.fp8 for g in curve.gemms)]
    if not plain:
        raise ValueError("no curve of a 16-bit product to fit")

    def constants_of(values: FloatArray) -> GemmConstants:
        given: dict[str, Any] = dict(zip(_FITTED, map(float, values), strict=True))
        # The scatter is no part of the smooth curve that is fitted.
        return replace(start, selection_loss=0.0, **given)

    def errors(values: FloatArray) -> FloatArray:
        constants = constants_of(values)
        return np.concatenate([_errors(hardware, constants, curve) for curve in plain])

    first = np.array([getattr(start, name) for name in _FITTED])
    found = least_squares(
        errors,
        np.clip(first, _LOWEST, _HIGHEST),
        bounds=(_LOWEST, _HIGHEST),
        x_scale=np.maximum(first, 1e-6),
        loss="soft_l1",
        f_scale=0.03,
    )
    constants = replace(constants_of(found.x), selection_loss=start.selection_loss)
    return constants, float(np.mean(np.abs(found.fun)))


def fit_fp8_gemm(
    hardware: Hardware, curves: Sequence[GemmCurve], start: Fp8GemmConstants
) -> Fp8GemmConstants:
    """Steps of FP8 products: medians of the ratios between their edges."""
    eight_bit = [curve for curve in curves if all(g.fp8 for g in curve.gemms)]
    if not eight_bit:
        return start
    slowdown = [1.0]
    for low, high in zip(start.tile_tokens, start.tile_tokens[1:], strict=False):
        slowdown.append(max(slowdown[-1], _median_ratio(eight_bit, low, high)))
    last = start.tile_tokens[-1]
    per_row_tile = _median_ratio(eight_bit, last, 2 * start.row_tile) / 2
    bandwidth, kernel_seconds = _baseline(hardware, eight_bit)
    return replace(
        start,
        tile_slowdown=tuple(slowdown),
        row_tile_slowdown=per_row_tile,
        bandwidth=bandwidth,
        kernel_seconds=kernel_seconds,
    )


def _errors(hardware: Hardware, constants: GemmConstants, curve: GemmCurve) -> FloatArray:
    """Weighted errors of log t(T) / t(1), and of log t(1)."""
    used = curve.tokens <= MOST_TOKENS
    tokens, seconds = curve.tokens[used], curve.seconds[used]
    model = curve.extra_seconds[used] + np.sum(
        [gemm_seconds(hardware, constants, gemm, tokens) for gemm in curve.gemms], axis=0
    )
    baseline = float(np.median(seconds[tokens <= BASELINE_TOKENS]))
    ratio = seconds / baseline
    low, high = _BOUNDARY_RATIOS
    weight = np.where((ratio > low) & (ratio < high), 1.0, 0.4) * curve.weight
    shape_error = weight * (np.log(model / model[0]) - np.log(ratio))
    return np.append(shape_error, 2.4 * curve.weight * np.log(model[0] / baseline))


def _median_ratio(curves: Sequence[GemmCurve], above: int, up_to: int) -> float:
    """Median over the curves of t(T) / t(1) between two edges."""
    ratios = [
        np.median(curve.seconds[(curve.tokens > above) & (curve.tokens <= up_to)])
        / np.median(curve.seconds[curve.tokens <= BASELINE_TOKENS])
        for curve in curves
    ]
    return float(np.median(ratios))


def _baseline(hardware: Hardware, curves: Sequence[GemmCurve]) -> tuple[float, float]:
    """Bandwidth share and kernel time from t(1) = products x t0 + bytes / rate, least squares."""
    counts = np.array([len(curve.gemms) for curve in curves], dtype=float)
    ideal = np.array(
        [
            sum(g.weight_traffic for g in curve.gemms) / hardware.memory_bytes_per_second
            for curve in curves
        ]
    )
    taken = np.array(
        [
            np.median((curve.seconds - curve.extra_seconds)[curve.tokens <= BASELINE_TOKENS])
            for curve in curves
        ]
    )
    (kernel, inverse), *_ = np.linalg.lstsq(
        np.column_stack([counts / taken, ideal / taken]), np.ones_like(taken), rcond=None
    )
    return float(np.clip(1 / max(inverse, 1e-9), 0.3, 1.0)), float(max(kernel, 1e-7))
