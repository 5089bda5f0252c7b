"""Fits the constants of routed experts to timed MoE modules; needs scipy, imported for the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vllm_nfp.calibrate.errors import FitError, FitErrors, check_curve, fit_errors
from vllm_nfp.principle.expert_kernels import served_config
from vllm_nfp.principle.experts import (
    BOUNDS,
    ROUTED_KERNELS,
    SHARED_STREAM_TOKENS,
    ExpertConstants,
    expert_terms,
)
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.routing import Routing
from vllm_nfp.principle.shape import Gemm, ModelShape
from vllm_nfp.principle.terms import FloatArray, sum_terms

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Sequences for which growth over t(T = B) is weighed."""
DENSE_BANDWIDTH = 0.85
"""Fraction of the peak bandwidth for the weights of router and shared experts, for the fit."""
DENSE_SECONDS = 3.5e-6
"""Time of such a dense product in addition to reading its weights."""
_MIN_POINTS = 8
_LEVEL_WEIGHT = 0.3
_GROWTH_WEIGHT = 3.0
_GROWTH = 0.14
"""Logarithm of the growth that matters most: between 10 and 20 %."""
_GROWTH_WIDTH = 0.12
_LEAST_WEIGHT = 0.03
_TOLERANCE = 0.03
"""Error of log t from which the loss is linear: the number of active experts varies."""
_PRIOR_WEIGHT = 0.01
_DEVIATIONS: Mapping[str, float] = {
    "bandwidth": 0.1,
    "row_gap_bytes": 1.0,
    "flops": 0.3,
    "kept_l2": 0.5,
    "activation_bandwidth": 0.5,
    "kernel_seconds": 0.5,
}
"""Fitted constants, and the standard deviation of each one's logarithm around its initial value.

It decides what the curves leave open: only large experts show whether L2 keeps weights.
"""
_L2_DEVIATIONS: Mapping[str, float] = {"l2_bandwidth": 1.0, "narrow_loss": 1.0}
"""The same of what L2 costs, where it is known or shown."""
_L2_START: Mapping[str, float] = {"l2_bandwidth": 1.5, "narrow_loss": 0.3}
"""Assumed: where the search for it begins."""
_LEAST_L2 = 1.0
"""L2 is no slower than memory."""
_CLEARLY = 0.8
"""Loss over that without the rate of L2, up to which curves show one. It is 0.52 for the reference
models on an H200 and 1.01 on an H100, whose memory is slower (2026-11-28 and 2026-11-24)."""
_SMALLEST = 1e-9


@dataclass(frozen=True, slots=True)
class ExpertCurve:
    """Times of one layer's MoE module, router and shared experts included."""

    shape: ModelShape
    tokens: tuple[int, ...]
    """T, ascending."""
    seconds: tuple[float, ...]
    tuned: Mapping[int, Mapping[str, int]] | None = None
    """Content of the tuned configuration file that vLLM found; None: the one that it
    ships, if any."""

    def __post_init__(self) -> None:
        if not self.shape.num_moe_layers:
            raise FitError(f"{self.shape.name} has no experts")
        tokens, seconds = np.array(self.tokens, dtype=float), np.array(self.seconds, dtype=float)
        check_curve(f"the MoE FFN of {self.shape.name}", tokens, seconds, _MIN_POINTS)


def fit_experts(
    curves: Sequence[ExpertCurve], hardware: Hardware, start: ExpertConstants | None = None
) -> ExpertConstants:
    """Constants that describe the curves best, within their bounds.

    Minimises errors of log t(T) / t(B) for the steps of B sequences, most where the ratio lies
    near 1.1 and 1.2, and of log t with less weight; large errors count linearly. What the curves
    leave open stays near ``start``. Where ``start`` lacks the rate of L2, it is taken from curves
    that are described clearly better with one.

    Args:
        curves: one or more, of one device.
        hardware: its data sheet.
        start: where to begin; None: the defaults, fitted on an H100.

    Raises:
        FitError: if there is no curve.
        ImportError: without scipy.
    """
    if not curves:
        raise FitError("a fit of experts needs the curve of one MoE model or more")
    first = start or ExpertConstants()
    every = {**_DEVIATIONS, **_L2_DEVIATIONS}
    if first.l2_bandwidth:
        return _search(curves, hardware, first, every)[0]
    without, loss = _search(curves, hardware, first, _DEVIATIONS)
    found, lower = _search(curves, hardware, replace(first, **_L2_START), every)
    return found if lower < _CLEARLY * loss else without


def _search(
    curves: Sequence[ExpertCurve],
    hardware: Hardware,
    first: ExpertConstants,
    fitted: Mapping[str, float],
) -> tuple[ExpertConstants, float]:
    """The best constants and their loss; ``fitted`` has the deviation of each that is varied."""
    from scipy.optimize import least_squares

    centre = np.array([max(getattr(first, name), _SMALLEST) for name in fitted])
    bounds = {**BOUNDS, "l2_bandwidth": (_LEAST_L2, BOUNDS["l2_bandwidth"][1])}
    least, most = (np.array([bounds[name][side] for name in fitted]) for side in (0, 1))
    deviations = np.array(list(fitted.values()))

    def constants(logs: FloatArray) -> ExpertConstants:
        values = np.clip(centre * np.exp(logs), least, most)
        return replace(first, **dict(zip(fitted, values.tolist(), strict=True)))

    def errors(logs: FloatArray) -> FloatArray:
        tried = constants(logs)
        parts = [_errors(curve, hardware, tried) for curve in curves]
        return np.concatenate([*parts, _PRIOR_WEIGHT * logs / deviations])

    lowest = np.log(np.maximum(least, centre * _SMALLEST) / centre) - _SMALLEST
    highest = np.log(most / centre) + _SMALLEST
    found = least_squares(
        errors, np.zeros(len(centre)), bounds=(lowest, highest), loss="soft_l1", f_scale=_TOLERANCE
    )
    return constants(np.asarray(found.x)), float(found.cost)


def expert_errors(
    curves: Sequence[ExpertCurve], hardware: Hardware, constants: ExpertConstants
) -> FitErrors:
    """Errors of constants at curves.

    Raises:
        FitError: without curves.
    """
    return fit_errors(
        (
            module_seconds(c.shape, hardware, constants, np.array(c.tokens, dtype=float), c.tuned),
            np.array(c.seconds),
        )
        for c in curves
    )


def module_seconds(
    shape: ModelShape,
    hardware: Hardware,
    constants: ExpertConstants,
    tokens: FloatArray,
    tuned: Mapping[int, Mapping[str, int]] | None = None,
) -> FloatArray:
    """Seconds of one layer's MoE module; dense products by a plain roofline.

    Up to SHARED_STREAM_TOKENS shared experts run on a second stream. Their weights are then read
    while small kernels leave memory idle; only the rest of that time is added.
    """
    routing = Routing(
        shape.local_experts,
        shape.local_experts_per_token,
        expert_parallel=shape.expert_parallel_size > 1,
    )
    config = served_config(
        hardware,
        shape.quantization,
        tokens,
        routing.num_experts,
        routing.experts_per_token,
        shape.expert_gemms[-1].inputs,
        tuned,
    )
    terms = expert_terms(
        hardware,
        constants,
        shape.expert_gemms,
        tokens,
        routing,
        hidden_size=shape.hidden_size,
        config=config,
    )
    router, *shared = shape.shared_gemms
    fixed = DENSE_SECONDS + ROUTED_KERNELS * constants.kernel_seconds
    seconds = sum_terms(terms) + fixed + _dense_reading(hardware, [router])
    if not shared:
        return seconds
    reading = _dense_reading(hardware, shared)
    # Activation between the shared products, and the sum of both outputs.
    alone = reading + DENSE_SECONDS * len(shared) + constants.kernel_seconds
    beside = max(0.0, reading - fixed)
    shown = np.where(tokens <= SHARED_STREAM_TOKENS, beside, alone)
    total: FloatArray = seconds + shown + constants.kernel_seconds
    return total


def _dense_reading(hardware: Hardware, gemms: Sequence[Gemm]) -> float:
    amount = float(sum(gemm.weight_traffic for gemm in gemms))
    return amount / (hardware.memory_bytes_per_second * DENSE_BANDWIDTH)


def _errors(curve: ExpertCurve, hardware: Hardware, constants: ExpertConstants) -> FloatArray:
    tokens = np.array(curve.tokens, dtype=np.float64)
    measured = np.log(np.array(curve.seconds))
    predicted = np.log(module_seconds(curve.shape, hardware, constants, tokens, curve.tuned))
    errors = predicted - measured
    parts = [_LEVEL_WEIGHT * errors]
    for batch_size in BATCH_SIZES:
        first = np.flatnonzero(tokens == batch_size)
        if first.size:
            cell = (tokens % batch_size == 0) & (tokens >= batch_size)
            growth = measured[cell] - measured[first[0]]
            closeness = np.exp(-(((growth - _GROWTH) / _GROWTH_WIDTH) ** 2)) + _LEAST_WEIGHT
            weight = _GROWTH_WEIGHT * closeness / np.sqrt(cell.sum())
            parts.append(weight * (errors[cell] - errors[first[0]]))
    return np.concatenate(parts)
