"""From kernel samples to the curves that the predictor's constants are fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vllm_nfp.calibrate.errors import FitError
from vllm_nfp.calibrate.fit_experts import ExpertCurve
from vllm_nfp.calibrate.fit_gemm import GemmCurve
from vllm_nfp.calibrate.points import Curve, Kernel, KernelSamples
from vllm_nfp.principle.ffn import activation_seconds
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.shape import Gemm, ModelShape

SMALLEST_WEIGHT_BYTES = 4 << 20
"""Smaller matrices, such as routers, take no time but their kernel's own."""
FFN_WEIGHT = 2.0
"""Whole FFNs are what is predicted; they count more than single products."""


def shape_of(samples: KernelSamples) -> ModelShape:
    """The shape of the model that was timed, with its quantization.

    Raises:
        ShapeError: if its config.json gives none.
    """
    arguments = samples.arguments
    fp8 = arguments.get("quantization") == "fp8"
    kv_bits = 8 if str(arguments.get("kv_cache_dtype", "")).startswith("fp8") else None
    return shape_from_config(samples.config, weight_bits=8 if fp8 else 16, kv_bits=kv_bits)


def gemm_curves(hardware: Hardware, all_samples: Sequence[KernelSamples]) -> list[GemmCurve]:
    """Curves of linear layers, LM heads and dense FFNs.

    Raises:
        ShapeError: if a config gives no shape.
        FitError: if a curve has too few points or sizes that do not fit its model.
    """
    return [curve for samples in all_samples for curve in _gemm_curves(hardware, samples)]


def expert_curves(all_samples: Sequence[KernelSamples]) -> list[ExpertCurve]:
    """Curves of MoE modules, taken to have run with the tiles that vLLM takes by default.

    Raises:
        ShapeError: if a config gives no shape.
        FitError: if a curve has too few points, or its model no experts.
    """
    return [
        ExpertCurve(shape_of(samples), curve.positions, curve.medians)
        for samples in all_samples
        for curve in samples.curves
        if curve.series.kernel is Kernel.MOE_FFN
    ]


def _gemm_curves(hardware: Hardware, samples: KernelSamples) -> Iterator[GemmCurve]:
    shape = shape_of(samples)
    for curve in samples.curves:
        tokens = np.array(curve.positions, dtype=np.float64)
        seconds = np.array(curve.medians)
        if curve.series.kernel is Kernel.DENSE_FFN:
            if not shape.num_dense_layers:
                raise FitError(f"{samples.model!r:.80} has no dense FFN, and a curve of one")
            extra = activation_seconds(hardware, shape, tokens)
            gemms = shape.dense_ffn_gemms
            yield GemmCurve(gemms, tokens, seconds, extra, FFN_WEIGHT)
        elif curve.series.kernel in (Kernel.LINEAR, Kernel.LM_HEAD) and (
            curve.weight_bytes >= SMALLEST_WEIGHT_BYTES
        ):
            yield GemmCurve((_gemm_of(curve),), tokens, seconds, np.zeros_like(tokens))


def _gemm_of(curve: Curve) -> Gemm:
    if not curve.inputs or not curve.outputs:
        raise FitError(f"{curve.series.kernel} {curve.series.name!r:.80} has no sizes")
    bytes_each = curve.weight_bytes / (curve.inputs * curve.outputs)
    # Scales make an FP8 matrix a little larger than a byte for each weight.
    fp8 = bytes_each < 1.5
    return Gemm(curve.inputs, curve.outputs, 1.0 if fp8 else bytes_each, fp8)
