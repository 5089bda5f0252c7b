"""GPU time of drafting, by the kernel models of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.drafter.drafter import Drafter
from vllm_nfp.principle.ffn import KERNEL_SECONDS
from vllm_nfp.principle.gemm import gemm_seconds
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.step import Step
from vllm_nfp.principle.terms import FloatArray

RUN_KERNELS = 6
"""Small kernels of a run beside its layers (vLLM 0.32, ``target_dependent_ar/speculator.py`` and
the models): two norms and a concatenation before, a norm and the choice of a token after, and the
next run's inputs. Those of the layers themselves are in the step's model."""
_HEAD = "LM head"


@dataclass(frozen=True, slots=True)
class Drafting:
    """GPU seconds of drafting at one batch size and context.

    Attributes:
        seconds: t_draft(K) for K = 0, 1, ...; at K = 0 a drafter runs all the same.
        calls: runs of the drafter for each K.
    """

    seconds: tuple[float, ...]
    calls: tuple[int, ...]


def drafting(
    drafter: Drafter,
    target: Target,
    serving: Serving,
    batch_size: int,
    context: int,
    longest: int,
) -> Drafting:
    """Predict t_draft(K) for K = 0 to ``longest``.

    Args:
        drafter: what drafts.
        target: the device of each rank.
        serving: how the server runs steps; the drafter has CUDA graphs of the same sizes.
        batch_size: sequences in the step.
        context: tokens in the cache of each sequence before the step.
        longest: largest K, 0 or more.

    Raises:
        PredictionError: for an attention backend that the drafter cannot use.
    """
    positions = np.arange(1, longest + 2, dtype=np.float64)
    step = Step(drafter.shape, target, serving, batch_size, context, positions)
    parts = {name: part.seconds() for name, part in step.parts().items()}
    head = parts.pop(_HEAD)
    tokens = batch_size * positions
    products = _products(drafter.each, target, tokens)
    run = np.sum([*parts.values(), products], axis=0) + RUN_KERNELS * KERNEL_SECONDS
    once = _products(drafter.once, target, tokens)
    lengths = np.arange(longest + 1, dtype=np.float64)
    return Drafting(
        tuple((once + _TIMES[drafter.runs](run, head, lengths)).tolist()),
        tuple(drafter.calls(int(k)) for k in lengths),
    )


def _products(gemms: Sequence[Gemm], target: Target, tokens: FloatArray) -> FloatArray:
    constants = target.calibration.gemm
    seconds = np.zeros_like(tokens)
    for gemm in gemms:
        seconds += gemm_seconds(target.hardware, constants, gemm, tokens)
    return seconds


def _chain(run: FloatArray, head: FloatArray, lengths: FloatArray) -> FloatArray:
    seconds: FloatArray = run + head[0] + np.maximum(0, lengths - 1) * (run[0] + head[0])
    return seconds


def _modules(run: FloatArray, head: FloatArray, lengths: FloatArray) -> FloatArray:
    seconds: FloatArray = np.maximum(1, lengths) * (run + head[0])
    return seconds


def _parallel(run: FloatArray, head: FloatArray, lengths: FloatArray) -> FloatArray:
    """K = 0 runs over the anchor alone; the head sees the K drafted positions."""
    seconds: FloatArray = run + head[np.maximum(0, lengths - 1).astype(int)]
    return seconds


_TIMES: dict[str, Callable[[FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "chain": _chain,
    "modules": _modules,
    "parallel": _parallel,
}
