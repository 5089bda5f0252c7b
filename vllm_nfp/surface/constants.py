"""Hyperparameters that ship, from ``python -m benchmarks.answers.replay_fit benchmarks/results``.

Fitted on all recorded families of models, H100 alone; the set named ``all`` in
benchmarks/results/2026-11-27-cost-surface/hyperparameters.json, with three digits. The scores of
docs/surface.md come from the other sets of that file, in which the scored family has no part.
``launch`` is a choice, not a fit: recorded hosts scatter by 0.2 around the expected launch times,
but all had the same kind of processor.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.surface.kernel import Hyperparameters, ShapeKernel, TokenKernel

RECORDED = Hyperparameters(
    dense_ffn=TokenKernel(0.00988, 0.00583, 0.701, 0.0024, 0.113, 275.0, 0.0577),
    moe_ffn=TokenKernel(0.0102, 0.0154, 0.901, 0.0108, 0.0005, 1000.0, 0.02),
    communication=TokenKernel(0.19, 0.121, 5.0, 0.0106, 0.00102, 866.0, 0.5),
    other=TokenKernel(0.0325, 0.0247, 1.71, 0.00533, 0.1, 200.0, 0.1),
    attention=ShapeKernel(0.0723, 0.0714, 2.11, 6.0, 2.09, 0.0122, 0.312),
    step=ShapeKernel(0.002, 0.0052, 1.0, 1.0, 1.5, 0.0005, 0.1),
    launch=0.4,
)
QUANTIZED = replace(
    RECORDED,
    dense_ffn=TokenKernel(0.00988, 0.014, 0.701, 0.00257, 0.22, 275.0, 0.0577),
    other=TokenKernel(0.0325, 0.002, 1.71, 0.0128, 0.173, 200.0, 0.1),
)
"""For quantized weights: the set named ``all:quantized``, from FP8 models alone. Their products
change kernels at more places than the prediction knows."""
GENERIC = RECORDED.wider(6.0)
"""For :func:`vllm_nfp.surface.prior.generic_prior`. The factor is a choice, not a fit."""


OTHER_WITH_EXPERTS = TokenKernel(0.0325, 0.25, 1.0, 0.00533, 0.1, 200.0, 0.1)
"""Where experts are routed: :data:`RECORDED` but for the second and third figure, a choice, not a
fit. In a whole step of Qwen3-30B-A3B on an H200, what is neither experts nor attention took 0.7
times the prediction at 32 tokens, 1.3 times at 128 and 1.6 times at 256
(benchmarks/results/2026-11-28-h200x2-at-defaults/moe, which was looked at)."""


def recorded_for(shape: ModelShape) -> Hyperparameters:
    """How far :func:`vllm_nfp.surface.prior.predicted_prior` errs for a model."""
    found = RECORDED if shape.quantization == "none" else QUANTIZED
    return with_experts(found) if shape.num_moe_layers else found


def with_experts(hyper: Hyperparameters) -> Hyperparameters:
    """Those of a model whose experts are routed."""
    return replace(hyper, other=OTHER_WITH_EXPERTS)
