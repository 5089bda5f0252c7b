"""Fits the constants of dense products to timed curves; needs scipy, nothing else does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vllm_nfp.calibrate.errors import FitError, FitErrors, check_curve, fit_errors
from vllm_nfp.calibrate.fit_tiles import fit_tiles
from vllm_nfp.principle.gemm import FP8_BOUNDS, Fp8GemmConstants, GemmConstants, gemm_seconds
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.terms import FloatArray
from vllm_nfp.principle.tiled import TiledConstants

MOST_TOKENS = 640
"""Longer steps are past every boundary, and would decide the fit by arithmetic alone."""
BASELINE_TOKENS = 4
"""Times up to here are one point, less noisy than T = 1 alone."""
_SLOWDOWNS = np.geomspace(1.0, FP8_BOUNDS["row_tile_slowdown"][1], 2000)
"""That are tried, 0.14 % apart."""
_LEAST_POINTS = 3
_LEAST_SCATTER_POINTS = 20
_ONE_DEVIATION = 0.8413  # of a normal distribution lies below one deviation above its median
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
FIT_BOUNDS = dict(zip(_FITTED, zip(_LOWEST, _HIGHEST, strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class GemmCurve:
    """Times of products that follow each other, such as those of an FFN.

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

    def __post_init__(self) -> None:
        check_curve("a curve of dense products", self.tokens, self.seconds, _LEAST_POINTS)

    @property
    def fp8(self) -> bool:
        """Whether any product is one of FP8 weights."""
        return any(gemm.fp8 for gemm in self.gemms)


def fit_gemm(
    hardware: Hardware, curves: Sequence[GemmCurve], start: GemmConstants
) -> tuple[GemmConstants, float]:
    """Constants that fit 16-bit curves best, and the mean absolute weighted error of the fit.

    ``selection_loss`` is read off the residuals, see :func:`selection_loss`. ``selection_tokens``
    and the FP8 constants are kept. If ``start`` has ``tiles``, these alone are fitted.

    Raises:
        FitError: if there is no curve of 16-bit products.
        ImportError: without scipy.
    """
    from scipy.optimize import least_squares

    plain = [curve for curve in curves if not curve.fp8]
    if not plain:
        raise FitError("there is no curve of a 16-bit product to fit to")
    if start.tiles is not None:
        return _fit_tiled(hardware, plain, start)

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
    smooth = constants_of(found.x)
    scatter = selection_loss(hardware, plain, smooth)
    constants = replace(smooth, selection_loss=start.selection_loss if scatter is None else scatter)
    return constants, float(np.mean(np.abs(found.fun)))


def _fit_tiled(
    hardware: Hardware, curves: Sequence[GemmCurve], start: GemmConstants
) -> tuple[GemmConstants, float]:
    def errors(tiles: TiledConstants) -> FloatArray:
        tried = replace(start, tiles=tiles, selection_loss=0.0)
        return np.concatenate([_errors(hardware, tried, curve) for curve in curves])

    tiles = fit_tiles(errors, len(curves))
    return replace(start, tiles=tiles), float(np.mean(np.abs(errors(tiles))))


def selection_loss(
    hardware: Hardware, curves: Sequence[GemmCurve], smooth: GemmConstants
) -> float | None:
    """Scatter above the smooth curve: the upper end of the middle 68 % of t(T) / t(1).

    That is one standard deviation, taken from ranks so that a few slow points do not make it, over
    all points from ``selection_tokens`` on whose ratio is near a boundary. ``smooth`` are constants
    with no selection loss.

    Returns None if there are fewer than 20 such points.
    """
    low, high = _BOUNDARY_RATIOS
    residuals: list[FloatArray] = []
    for curve in curves:
        model = product_seconds(hardware, smooth, curve)
        ratio = curve.seconds / _baseline_seconds(curve.tokens, curve.seconds)
        near = (curve.tokens >= smooth.selection_tokens) & (curve.tokens <= MOST_TOKENS)
        near &= (ratio > low) & (ratio < high)
        residuals.append((np.log(ratio) - np.log(model / model[0]))[near])
    found = np.concatenate(residuals)
    if len(found) < _LEAST_SCATTER_POINTS:
        return None
    return max(0.0, float(np.expm1(np.quantile(found, _ONE_DEVIATION))))


def product_seconds(hardware: Hardware, constants: GemmConstants, curve: GemmCurve) -> FloatArray:
    """The model's seconds at a curve's own points."""
    seconds: FloatArray = curve.extra_seconds + np.sum(
        [gemm_seconds(hardware, constants, gemm, curve.tokens) for gemm in curve.gemms], axis=0
    )
    return seconds


def gemm_errors(
    curves: Sequence[GemmCurve], hardware: Hardware, constants: GemmConstants
) -> FitErrors:
    """Errors of constants at curves, up to :data:`MOST_TOKENS`.

    Raises FitError without curves.
    """
    return fit_errors(
        (product_seconds(hardware, constants, c)[used], c.seconds[used])
        for c in curves
        for used in (c.tokens <= MOST_TOKENS,)
    )


def fit_fp8_gemm(
    hardware: Hardware, curves: Sequence[GemmCurve], start: Fp8GemmConstants
) -> Fp8GemmConstants:
    """Steps of FP8 products: between two edges, what makes t(T) / t(1) err least.

    Raises:
        FitError: without a curve of FP8 products or a point between two edges, or for a constant
            out of its bounds.
    """
    eight_bit = [curve for curve in curves if all(g.fp8 for g in curve.gemms)]
    if not eight_bit:
        raise FitError("there is no curve of an FP8 product to fit to")
    bandwidth, kernel_seconds = _baseline(hardware, eight_bit)
    try:
        known = replace(start, bandwidth=bandwidth, kernel_seconds=kernel_seconds)
        slowdown = [
            _slowdown(hardware, eight_bit, known, low, high)
            for low, high in itertools.pairwise(start.tile_tokens)
        ]
        per_row_tile = start.row_tile_slowdown
        last, beyond = start.tile_tokens[-1], start.tile_tokens[-1] + start.row_tile
        if any((curve.tokens > last).any() for curve in eight_bit):
            row_tiles = math.ceil(beyond / start.row_tile)
            per_row_tile = _slowdown(hardware, eight_bit, known, last, beyond) / row_tiles
        return replace(known, tile_slowdown=(1.0, *slowdown), row_tile_slowdown=per_row_tile)
    except ValueError as error:
        raise FitError(f"FP8 products: {error}") from None


def _errors(hardware: Hardware, constants: GemmConstants, curve: GemmCurve) -> FloatArray:
    """Weighted errors of log t(T) / t(1), and of log t(1)."""
    used = curve.tokens <= MOST_TOKENS
    seconds = curve.seconds[used]
    model = product_seconds(hardware, constants, curve)[used]
    baseline = _baseline_seconds(curve.tokens, curve.seconds)
    ratio = seconds / baseline
    low, high = _BOUNDARY_RATIOS
    weight = np.where((ratio > low) & (ratio < high), 1.0, 0.4) * curve.weight
    shape_error = weight * (np.log(model / model[0]) - np.log(ratio))
    return np.append(shape_error, 2.4 * curve.weight * np.log(model[0] / baseline))


def _slowdown(
    hardware: Hardware, curves: Sequence[GemmCurve], known: Fp8GemmConstants, above: int, up_to: int
) -> float:
    """Time of the weights between two edges over that at few tokens, least squares.

    Curves count by the seconds that they take at few tokens, as they do in a step: the steps of
    small products are higher, and would move those of an FFN.
    """
    total = np.zeros_like(_SLOWDOWNS)
    points = 0
    for curve in curves:
        inside = (curve.tokens > above) & (curve.tokens <= up_to)
        points += int(inside.sum())
        baseline = _baseline_seconds(curve.tokens, curve.seconds)
        ratio = curve.seconds[inside] / baseline
        fixed = float(np.median(curve.extra_seconds)) + len(curve.gemms) * known.kernel_seconds
        weights = sum(g.weight_traffic for g in curve.gemms)
        weights /= hardware.memory_bytes_per_second * known.bandwidth
        model = (fixed + weights * _SLOWDOWNS) / (fixed + weights)
        errors = np.log(model)[:, None] - np.log(ratio)
        total += (curve.weight * baseline * errors**2).sum(axis=1)
    if not points:
        raise FitError(f"no curve of an FP8 product has a point from {above + 1} to {up_to} tokens")
    return float(_SLOWDOWNS[total.argmin()])


def _baseline_seconds(tokens: FloatArray, seconds: FloatArray) -> float:
    return float(np.median(seconds[tokens <= BASELINE_TOKENS]))


def _baseline(hardware: Hardware, curves: Sequence[GemmCurve]) -> tuple[float, float]:
    """Bandwidth fraction, kernel time from t(1) = products x t0 + bytes / rate, least squares."""
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
    if inverse <= 0 or kernel < 0:
        raise FitError("times of FP8 products do not grow with the bytes of their weights")
    return float(1 / inverse), float(kernel)
