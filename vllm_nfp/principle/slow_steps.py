"""Counts of tokens at which the library takes a slow kernel for products of some widths.

cuBLAS chooses a kernel from tables by T and the product's sizes. At a few T from 256 on it chooses
badly: the product then takes much longer than with one more or one less captured size. No form in T
has these steps, and other releases of the library have them elsewhere. So they are entries, each
found in timings of one release on one GPU: benchmarks/prediction/product_steps.py finds and tests
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.layer_parts import Gemm
from vllm_nfp.principle.terms import FloatArray, Terms, sum_terms

MOST_SLOWDOWN = 8.0
LARGEST = 1 << 24
"""Tokens and outputs."""


@dataclass(frozen=True, slots=True)
class SlowStep:
    """One such count.

    Raises:
        ValueError: if a bound does not ascend from 1, or it is no slowdown.
    """

    tokens: int
    least_inputs: int
    least_outputs: int
    most_outputs: int
    slowdown: float
    """Time over that of the fitted form, the kernel's own start left out."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= LARGEST:
            raise ValueError(
                f"tokens of a slow step must lie from 1 to {LARGEST}, not {self.tokens}"
            )
        if not 1 <= self.least_inputs <= LARGEST:
            raise ValueError(
                f"inputs of a slow step must lie from 1 to {LARGEST}, not {self.least_inputs}"
            )
        if not 1 <= self.least_outputs <= self.most_outputs <= LARGEST:
            raise ValueError(
                f"outputs of a slow step must ascend, from 1 to {LARGEST}, not "
                f"{self.least_outputs} to {self.most_outputs}"
            )
        if not 1.0 <= self.slowdown <= MOST_SLOWDOWN:
            raise ValueError(
                f"slowdown must lie from 1 to {MOST_SLOWDOWN:g}, not {self.slowdown:g}"
            )


def with_slow_steps(
    terms: Terms, steps: Sequence[SlowStep], gemm: Gemm, tokens: FloatArray
) -> Terms:
    """Seconds by limit, with what slow steps add to ``tile``.

    Args:
        terms: seconds at each T, each of shape [n].
        tokens: T, shape [n].
    """
    factor = np.ones_like(tokens)
    for step in steps:
        wide = step.least_outputs <= gemm.outputs <= step.most_outputs
        if wide and gemm.inputs >= step.least_inputs:
            factor = np.where(tokens == step.tokens, step.slowdown, factor)
    return {**terms, "tile": terms["tile"] + (factor - 1.0) * sum_terms(terms)}
