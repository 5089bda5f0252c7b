"""Routing as aiconfigurator's benchmarks of routed experts draw it (Apache-2.0).

Its collector (``collector/helper.py``) deals rows to experts before it times a step: *balanced* in
turns, or by a *power law*: a weight for each expert, drawn with density w ** -alpha from 0.01 to 2,
or from 1 to 0.8 T where there are more rows than experts; T k rows in proportion, rounded, and what
is missing to the experts with fewest. Few rows thus wake more experts than those of independent
tokens, many rows fewer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.principle.routing import IntArray

Floats = NDArray[np.float64]
DRAWS = 5
"""Steps that are drawn; a benchmark times one."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Experts of one rank whose rows a benchmark drew, as the kernels ask for them (``Routed``)."""

    num_experts: int
    experts_per_token: float
    routing: str
    """balanced, or power_law_ and alpha."""
    expert_parallel: bool = False

    def awake(self, tokens: Floats) -> Floats:
        """Experts with a row."""
        return self.blocks(tokens, np.full(tokens.shape, 1 << 30))

    def blocks(self, tokens: Floats, block_rows: IntArray) -> Floats:
        """Blocks of so many rows."""
        return np.array(
            [
                float(np.mean(np.sum(np.ceil(self._counts(int(count)) / rows), axis=1)))
                for count, rows in zip(tokens, block_rows, strict=True)
            ]
        )

    def _counts(self, tokens: int) -> IntArray:
        return _counts(self.routing, tokens, self.num_experts, round(self.experts_per_token))


@functools.lru_cache(maxsize=4096)
def _counts(routing: str, tokens: int, experts: int, chosen: int) -> IntArray:
    """Rows of each expert, shape [draws, experts]."""
    if routing == "balanced":
        return np.stack([_balanced(tokens, experts, chosen)])
    alpha = float(routing.removeprefix("power_law_"))
    generator = np.random.default_rng(0)
    return np.array([_power_law(tokens, experts, chosen, alpha, generator) for _ in range(DRAWS)])


def _balanced(tokens: int, experts: int, chosen: int) -> IntArray:
    stride = math.ceil(experts / chosen)
    token, slot = np.meshgrid(np.arange(tokens), np.arange(chosen), indexing="ij")
    first = token if tokens >= stride else (token * stride / tokens).astype(np.int64)
    counts: IntArray = np.bincount(((first + slot * stride) % experts).ravel(), minlength=experts)
    return counts


def _power_law(
    tokens: int, experts: int, chosen: int, alpha: float, generator: np.random.Generator
) -> IntArray:
    rows = tokens * chosen
    least, most = (1.0, 0.8 * tokens) if rows > experts else (0.01, 2.0)
    ends = least ** (1 - alpha), most ** (1 - alpha)
    weights = ((ends[1] - ends[0]) * generator.random(experts) + ends[0]) ** (1 / (1 - alpha))
    wanted = np.round(weights / weights.sum() * rows).astype(np.int64)
    counts: IntArray = np.minimum(wanted, tokens)
    for _ in range(max(0, rows - int(counts.sum()))):
        counts[np.argmin(counts)] += 1
    for _ in range(max(0, int(counts.sum()) - rows)):
        counts[np.argmax(counts)] -= 1
    return counts
