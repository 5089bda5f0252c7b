"""Fits all constants of a device to its samples; parts without curves keep theirs.

Needs scipy, the extra ``calibrate``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vllm_nfp.calibrate import fit_attention as attention_fit
from vllm_nfp.calibrate import fit_gemm as gemm_fit
from vllm_nfp.calibrate.curves import expert_curves, gemm_curves
from vllm_nfp.calibrate.errors import FitError, FitErrors
from vllm_nfp.calibrate.fit_attention import attention_curves, attention_errors, fit_attention
from vllm_nfp.calibrate.fit_experts import expert_errors, fit_experts
from vllm_nfp.calibrate.fit_gemm import fit_fp8_gemm, fit_gemm, gemm_errors
from vllm_nfp.calibrate.points import KernelSamples
from vllm_nfp.calibrate.provenance import MOST_TEXT, date_of, device_of, environment_of, first_text
from vllm_nfp.principle import experts as expert_model
from vllm_nfp.principle.calibration import OWN_RUNS, Calibration
from vllm_nfp.principle.gemm import GemmConstants
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.shape import ShapeError
from vllm_nfp.principle.tiled import TILED_BOUNDS

WORST_LOG_ERROR = math.log(2)
"""Constants whose times are off by more than a factor of 2 (root mean square) are refused."""
_SHARES = ("bandwidth", "flops")
"""Fractions of the data sheet's figures. A fit that ends at the end of the range has failed."""
_RANGES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "gemm": gemm_fit.FIT_BOUNDS,
    "attention": attention_fit.FIT_BOUNDS,
    "experts": expert_model.BOUNDS,
}
_ORIGINS = {"fp8_gemm": "gemm.fp8"}
"""Parts whose name among the origins of the constants is another."""
Constants = TypeVar("Constants")
CurveT = TypeVar("CurveT")


@dataclass(frozen=True, slots=True)
class PartFit:
    """The result of one part's fit.

    Attributes:
        part: ``gemm``, ``fp8_gemm``, ``attention`` or ``experts``.
        curves: usable curves.
        fitted: whether the constants describe this device's curves; False: they are the initial
            ones, and no curve supports them.
        before, after: errors at the part's curves with the initial constants and with the result;
            None where nothing could be compared.
        notes: one line each: why the part was not fitted, which curves were left out.
    """

    part: str
    curves: int
    fitted: bool
    before: FitErrors | None = None
    after: FitErrors | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FitResult:
    """New constants, and the result of each part."""

    target: Target
    """The device with its new constants and what they were measured on."""
    parts: tuple[PartFit, ...]

    @property
    def curves(self) -> int:
        """Curves that constants were fitted to."""
        return sum(part.curves for part in self.parts if part.fitted)


def fit(all_samples: Sequence[KernelSamples], target: Target) -> FitResult:
    """Fit each part's constants to its curves, from those of ``target`` on.

    A part keeps its initial constants, with a note that gives the reason, if

    - it has no curves, or they cannot be fitted;
    - a constant leaves its bounds, or a fraction ends at one of them;
    - times are off by a factor of 2;
    - the initial constants have smaller errors, both of t(N) and of t(N) / t(1).

    Raises:
        FitError: if the samples come from several devices.
        ImportError: without scipy.
    """
    device = device_of(all_samples)
    start, hardware = target.calibration, target.hardware
    gemms, gemm_notes = _collect(all_samples, lambda one: gemm_curves(hardware, [one]))
    plain = [curve for curve in gemms if not curve.fp8]
    eight_bit = [curve for curve in gemms if curve.fp8]
    gemm, gemm_part = _fit_part(
        "gemm",
        plain,
        start.gemm,
        lambda: fit_gemm(hardware, plain, start.gemm)[0],
        lambda constants: gemm_errors(plain, hardware, constants),
        gemm_notes,
    )
    gemm, fp8_part = _fit_part(
        "fp8_gemm",
        eight_bit if hardware.fp8_flops is not None else [],
        gemm,
        lambda: dataclasses.replace(gemm, fp8=fit_fp8_gemm(hardware, eight_bit, gemm.fp8)),
        lambda constants: gemm_errors(eight_bit, hardware, constants),
    )
    heads, attention_notes = _collect(all_samples, attention_curves)
    attention, attention_part = _fit_part(
        "attention",
        heads,
        start.attention,
        lambda: fit_attention(heads, hardware, start.attention).constants,
        lambda constants: attention_errors(heads, hardware, constants),
        attention_notes,
    )
    moes, expert_notes = _collect(all_samples, lambda one: expert_curves([one]))
    experts, expert_part = _fit_part(
        "experts",
        moes,
        start.experts,
        lambda: fit_experts(moes, hardware, start.experts),
        lambda constants: expert_errors(moes, hardware, constants),
        expert_notes,
    )
    parts = (gemm_part, fp8_part, attention_part, expert_part)
    calibration = Calibration(
        source=_source(all_samples, device, parts),
        # FP8 may be missing: not every device has it.
        fitted=gemm_part.fitted and attention_part.fitted and expert_part.fitted,
        gemm=gemm,
        attention=attention,
        experts=experts,
        link=start.link,
        quantized_experts=start.quantized_experts,
        origins=_origins(start, parts),
    )
    environment = environment_of(all_samples, device)
    return FitResult(Target(hardware, calibration, environment), parts)


def _origins(start: Calibration, parts: Sequence[PartFit]) -> dict[str, str]:
    """What the parts rest on: this run where they were fitted, else what they did before."""
    own = {_ORIGINS.get(part.part, part.part): OWN_RUNS for part in parts if part.fitted}
    return {**start.origins, **own}


def _fit_part(
    part: str,
    curves: Sequence[object],
    start: Constants,
    fit_constants: Callable[[], Constants],
    errors_with: Callable[[Constants], FitErrors],
    notes: Sequence[str] = (),
) -> tuple[Constants, PartFit]:
    """The part's constants, new or initial, and the result of the fit."""
    if not curves:
        return start, PartFit(part, 0, False, notes=(*notes, "no curves: constants are kept"))
    before = errors_with(start)
    try:
        found = fit_constants()
        _check_shares(part, found)
        after = errors_with(found)
        # NaN compares false with everything: it is refused here as well.
        if not after.rms_log_error <= WORST_LOG_ERROR:
            raise FitError(
                f"the fit misses the times by a factor of {math.exp(after.rms_log_error):.3g}"
            )
    except ValueError as error:  # FitError, or a refusal of the constants' own class
        kept = f"not fitted ({error}): constants are kept"
        return start, PartFit(part, len(curves), False, before, before, (*notes, kept))
    if _worse(after, before):
        kept = (
            f"the initial constants match the curves better than the fitted ones "
            f"({before.rms_log_ratio_error:.1%} against {after.rms_log_ratio_error:.1%}): "
            f"they are kept"
        )
        return start, PartFit(part, len(curves), True, before, before, (*notes, kept))
    return found, PartFit(part, len(curves), True, before, after, tuple(notes))


def _check_shares(part: str, constants: object) -> None:
    ranges = _RANGES.get(part, {})
    if part == "gemm" and isinstance(constants, GemmConstants) and constants.tiles is not None:
        constants, ranges = constants.tiles, TILED_BOUNDS
    for name in _SHARES if ranges else ():
        value, (least, most) = getattr(constants, name), ranges[name]
        if value < 1.001 * least or value > 0.999 * most:
            raise FitError(
                f"{name} ended at {value:.3g}, the end of its range from {least} to {most}"
            )


def _worse(one: FitErrors, other: FitErrors) -> bool:
    return (
        one.rms_log_error > other.rms_log_error
        and one.rms_log_ratio_error > other.rms_log_ratio_error
    )


def _collect(
    all_samples: Sequence[KernelSamples], make: Callable[[KernelSamples], Sequence[CurveT]]
) -> tuple[list[CurveT], list[str]]:
    """Curves of all samples, and a note if there were others that cannot be used."""
    found: list[CurveT] = []
    refused: list[str] = []
    for one in _single_curves(all_samples):
        try:
            found += make(one)
        except (FitError, ShapeError) as error:
            refused.append(f"{one.model[:MOST_TEXT]}: {error}")
    if not refused:
        return found, []
    return found, [f"{len(refused)} curves left out; the first: {refused[0]}"]


def _single_curves(all_samples: Sequence[KernelSamples]) -> Iterator[KernelSamples]:
    for samples in all_samples:
        for curve in samples.curves:
            yield dataclasses.replace(samples, curves=(curve,))


def _source(all_samples: Sequence[KernelSamples], device: str, parts: Sequence[PartFit]) -> str:
    vllm = first_text(all_samples, "vllm") or "unknown"
    curves = sum(part.curves for part in parts if part.fitted)
    text = f"{curves} curves on {device[:MOST_TEXT] or 'an unnamed device'}, vLLM {vllm}"
    date = date_of(all_samples)
    text += f", {date}" if date else ""
    kept = [part.part for part in parts if not part.fitted]
    return f"{text}; not fitted: {', '.join(kept)}" if kept else text
