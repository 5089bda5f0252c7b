"""Fit the constants of :mod:`vllm_nfp.principle.attention` to kernel timings.

Only the fit itself needs scipy, the extra ``calibrate``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.calibrate.errors import FitError, FitErrors, check_curve, fit_errors
from vllm_nfp.calibrate.points import Kernel, KernelSamples
from vllm_nfp.principle.attention import (
    ATTENTION_BACKENDS,
    H100_ATTENTION,
    AttentionBackend,
    AttentionConstants,
    attention_terms,
    fixed_seconds,
)
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.shape import AttentionHeads
from vllm_nfp.principle.terms import FloatArray, sum_terms

TOLERANCES = (0.1, 0.2)
"""Epsilons that decide which errors weigh most, and at which fits are scored."""
FIT_BOUNDS = {
    "bandwidth": (0.3, 1.0),
    "flops": (0.1, 1.0),
    "overlap": (1.5, 20.0),
    "query_bandwidth": (0.05, 5.0),
    "partial_bandwidth": (0.05, 5.0),
    "exposed_blocks": (0.05, 8.0),
    "kernel_seconds": (1e-6, 1e-4),
    "wave_seconds": (1e-8, 1e-5),
    "combine_seconds": (1e-8, 2e-5),
}
_FP8_BOUNDS = {
    "flops_fp8": (0.05, 1.0),
    "one_warpgroup_fp8": (0.1, 1.5),
    "quantize_seconds": (1e-8, 2e-5),
}
_RATIO_ERROR = 0.02
"""Relative error of t(N) / t(1) that counts as 1: the repeatability of medians."""
_LEVEL_ERROR = 0.1
"""The same of t(N); wider, since NFP depends on ratios."""
_NEAR_BOUNDARY = 0.08
"""Width in log t(N) / t(1) of the added weight near each tolerance."""
_PRIOR = 0.05
"""Weight that keeps a constant's logarithm near its initial value, where no curve shows it."""
_LEAST_POSITIONS = 3


@dataclass(frozen=True, slots=True)
class AttentionCurve:
    """Measured attention times of one layer in one cell.

    Attributes:
        heads: one rank's heads.
        batch_size, context: sequences, and cached tokens before the step.
        positions: N, ascending from 1.
        seconds: t(N), one time for each.
        causal: False for blocks whose positions see one another.
        backend: whose kernel ran; None: FlashAttention 3.
    """

    heads: AttentionHeads
    batch_size: int
    context: int
    positions: FloatArray
    seconds: FloatArray
    causal: bool = True
    backend: AttentionBackend | None = None

    def __post_init__(self) -> None:
        cell = f"attention at batch size {self.batch_size}, context {self.context}"
        if self.batch_size < 1 or self.context < 0:
            raise FitError(f"{cell}: no such cell")
        check_curve(cell, self.positions, self.seconds, _LEAST_POSITIONS)


@dataclass(frozen=True, slots=True)
class AttentionFit:
    """Fitted constants, and their errors at the curves that they were fitted to."""

    constants: AttentionConstants
    errors: FitErrors
    curves: int


def attention_curves(
    samples: KernelSamples, heads: AttentionHeads | None = None
) -> tuple[AttentionCurve, ...]:
    """The attention curves of one model's samples, medians over passes.

    Args:
        samples: timings of one model.
        heads: its heads with a 16-bit cache; None: read from its config.

    Raises:
        ShapeError: if there are curves, no heads are given, and the config cannot be read.
        FitError: if a curve has too few points, or ran in a backend whose tiles are not modelled.
    """
    timed = [curve for curve in samples.curves if curve.series.kernel is Kernel.ATTENTION]
    if not timed:
        return ()
    if heads is None:
        heads = shape_from_config(samples.config).attention
    kv_cache_dtype = str(samples.arguments.get("kv_cache_dtype", "auto"))
    if kv_cache_dtype.startswith("fp8") and not heads.fp8:
        heads = dataclasses.replace(heads, token_bytes=heads.token_bytes / 2, fp8=True)
    backend = _backend_of(samples)
    return tuple(
        AttentionCurve(
            heads,
            curve.series.batch_size,
            curve.series.context,
            np.array(curve.positions, dtype=np.float64),
            np.array(curve.medians, dtype=np.float64),
            curve.series.causal,
            backend,
        )
        for curve in timed
    )


def _backend_of(samples: KernelSamples) -> AttentionBackend | None:
    name = samples.environment.get("attention_backend")
    if name is None:
        return None
    if not isinstance(name, str) or name not in ATTENTION_BACKENDS:
        raise FitError(f"attention ran in {name!r:.80}, whose tiles are not modelled")
    return ATTENTION_BACKENDS[name]


def predicted_seconds(
    curve: AttentionCurve,
    hardware: Hardware,
    constants: AttentionConstants,
    backend: AttentionBackend | None = None,
) -> FloatArray:
    """t(N) of the model at a curve's own points, in its own backend unless one is given."""
    terms = attention_terms(
        hardware,
        curve.heads,
        batch_size=curve.batch_size,
        cached_tokens=curve.context + curve.positions,
        positions=curve.positions,
        constants=constants,
        backend=backend or curve.backend,
        causal=curve.causal,
    )
    return fixed_seconds(curve.heads, constants) + sum_terms(terms)


def fit_attention(
    curves: Sequence[AttentionCurve],
    hardware: Hardware,
    start: AttentionConstants = H100_ATTENTION,
) -> AttentionFit:
    """Fit the constants to curves, each with its backend's tiles, from and towards ``start``.

    The constants of all caches are fitted first, to the 16-bit curves (to all if there are none),
    then those of an 8-bit cache alone. Errors of t(N) / t(1) near the tolerances weigh most, and
    the loss is robust. A constant that no curve shows stays near its initial value.

    Raises:
        FitError: without curves.
        ImportError: without scipy.
    """
    if not curves:
        raise FitError("there are no attention curves to fit to")
    plain = [curve for curve in curves if not curve.heads.fp8]
    eight_bits = [curve for curve in curves if curve.heads.fp8]
    constants = _fit(plain or eight_bits, hardware, start, FIT_BOUNDS)
    if eight_bits:
        constants = _fit(eight_bits, hardware, constants, _FP8_BOUNDS)
    return AttentionFit(constants, attention_errors(curves, hardware, constants), len(curves))


def attention_errors(
    curves: Sequence[AttentionCurve], hardware: Hardware, constants: AttentionConstants
) -> FitErrors:
    """Errors of constants at curves.

    Raises:
        FitError: without curves.
    """
    return fit_errors((predicted_seconds(c, hardware, constants), c.seconds) for c in curves)


def _fit(
    curves: Sequence[AttentionCurve],
    hardware: Hardware,
    start: AttentionConstants,
    bounds: dict[str, tuple[float, float]],
) -> AttentionConstants:
    """Least squares over the logarithms of the named constants, the others as they are."""
    from scipy.optimize import least_squares

    names = list(bounds)
    low, high = np.log(np.array([bounds[name] for name in names])).T
    given = np.array([max(getattr(start, name), 1e-12) for name in names])
    origin = np.clip(np.log(given), low + 1e-6, high - 1e-6)

    def constants_at(point: FloatArray) -> AttentionConstants:
        values = {name: float(v) for name, v in zip(names, np.exp(point), strict=True)}
        return dataclasses.replace(start, **values)

    def residuals(point: FloatArray) -> FloatArray:
        constants = constants_at(point)
        parts = [_residuals(curve, hardware, constants) for curve in curves]
        together: FloatArray = np.concatenate([*parts, _PRIOR * (point - origin)])
        return together

    solved = least_squares(residuals, origin, bounds=(low, high), loss="soft_l1", x_scale=0.1)
    return constants_at(solved.x)


def _residuals(
    curve: AttentionCurve, hardware: Hardware, constants: AttentionConstants
) -> FloatArray:
    level, ratio = _log_errors(curve, hardware, constants)
    measured = np.log(curve.seconds / curve.seconds[0])
    distance = np.min([np.abs(measured - math.log1p(e)) for e in TOLERANCES], axis=0)
    weight = 0.25 + np.exp(-((distance / _NEAR_BOUNDARY) ** 2))
    # By the root of their number: a curve counts the same however densely it was taken.
    both: FloatArray = np.concatenate([weight * ratio / _RATIO_ERROR, level / _LEVEL_ERROR])
    return both / math.sqrt(len(level))


def _log_errors(
    curve: AttentionCurve, hardware: Hardware, constants: AttentionConstants
) -> tuple[FloatArray, FloatArray]:
    """Errors of log t(N) and of log t(N) / t(1), predicted over measured."""
    level = np.log(predicted_seconds(curve, hardware, constants) / curve.seconds)
    return level, level - level[0]
