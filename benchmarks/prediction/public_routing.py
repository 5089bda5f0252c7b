"""Routing as aiconfigurator's benchmarks of routed experts draw it (Apache-2.0).

Its collector (``collector/helper.py``) deals rows to experts before it times a step: *balanced* in
turns, or by a *power law*: a weight for each expert, drawn with density w ** -alpha from 0.01 to 2,
or from 1 to 0.8 T where there are more rows than experts; T k rows in proportion, rounded, and what
is missing to the experts with fewest. Few rows thus wake more experts than those of independent
tokens, many rows fewer. The rows become a router's scores, one for each dealt expert and zero for
all others. DeepSeek's router then keeps the experts of the best groups alone, and fills up with
other experts of these; of equal ones it takes the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.principle.routing import IntArray, Routing

Floats = NDArray[np.float64]
GROUPED, GROUPS = ("DeepSeek-V3", "DeepSeek-R1"), (8, 4)
"""Models whose config has n_group and topk_group, and what they are."""
DIRECT_RELEASE = (0, 14)
"""Up to this release of vLLM the benchmark called the kernels without a router."""
DRAWS = 5
"""Steps that are drawn; a benchmark times one."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Experts of one rank whose rows a benchmark drew, as the kernels ask for them (``Routed``)."""

    num_experts: int
    experts_per_token: float
    routing: str
    """balanced, or power_law_ and alpha."""
    groups: tuple[int, int] | None = None
    """Groups of experts, and how many of them a token's experts may come from."""
    expert_parallel: bool = False

    def awake(self, tokens: Floats) -> Floats:
        """Experts with a row."""
        return self.blocks(tokens, np.full(tokens.shape, 1 << 30))

    def blocks(self, tokens: Floats, block_rows: IntArray) -> Floats:
        """Blocks of so many rows."""
        key = (self.routing, self.num_experts, round(self.experts_per_token), self.groups)
        return np.array(
            [
                _blocks(int(count), int(rows), *key)
                for count, rows in zip(tokens, block_rows, strict=True)
            ]
        )

    def rows_apart(self, tokens: Floats) -> Floats:
        """As of independent tokens."""
        return Routing(self.num_experts, self.experts_per_token).rows_apart(tokens)


@functools.lru_cache(maxsize=1 << 16)
def _blocks(
    tokens: int,
    rows: int,
    routing: str,
    experts: int,
    chosen: int,
    groups: tuple[int, int] | None,
) -> float:
    counts = _counts(routing, tokens, experts, chosen, groups)
    return float(np.mean(np.sum(np.ceil(counts / rows), axis=1)))


@functools.lru_cache(maxsize=4096)
def _counts(
    routing: str, tokens: int, experts: int, chosen: int, groups: tuple[int, int] | None
) -> IntArray:
    """Rows of each expert, shape [draws, experts]."""
    if routing == "balanced":
        dealt = [_balanced(tokens, experts, chosen)]
    else:
        alpha = float(routing.removeprefix("power_law_"))
        generator = np.random.default_rng(0)
        dealt = [_power_law(tokens, experts, chosen, alpha, generator) for _ in range(DRAWS)]
    kept = dealt if groups is None else [_of_best_groups(one, experts, *groups) for one in dealt]
    return np.stack([np.bincount(one.ravel(), minlength=experts) for one in kept])


def _balanced(tokens: int, experts: int, chosen: int) -> IntArray:
    """Experts of each token, shape [tokens, chosen]."""
    stride = math.ceil(experts / chosen)
    token, slot = np.meshgrid(np.arange(tokens), np.arange(chosen), indexing="ij")
    first = token if tokens >= stride else (token * stride / tokens).astype(np.int64)
    dealt: IntArray = (first + slot * stride) % experts
    return dealt


def _of_best_groups(dealt: IntArray, experts: int, groups: int, best: int) -> IntArray:
    """What a router takes of dealt experts: those of the groups with the best two scores each."""
    tokens, chosen = dealt.shape
    scores = np.zeros((tokens, experts))
    np.put_along_axis(scores, dealt, 1.0, axis=1)
    members = scores.reshape(tokens, groups, -1)
    of_group = np.sort(members, axis=2)[:, :, -2:].sum(axis=2)
    taken = np.argsort(-of_group, axis=1, kind="stable")[:, :best]
    allowed = np.full(of_group.shape, -1.0)
    np.put_along_axis(allowed, taken, 0.0, axis=1)
    scores = (members + 2 * allowed[:, :, None]).reshape(tokens, experts)
    found: IntArray = np.argsort(-scores, axis=1, kind="stable")[:, :chosen]
    return found


def _power_law(
    tokens: int, experts: int, chosen: int, alpha: float, generator: np.random.Generator
) -> IntArray:
    """Experts of each token, shape [tokens, chosen]."""
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
    largest = np.argsort(-counts, kind="stable")
    flat = np.repeat(largest, counts[largest])
    dealt: IntArray = flat.reshape(chosen, tokens).T
    return dealt


def dealt_rows(one: Mapping[str, Any], release: tuple[int, int]) -> Drawn:
    """The rows of a public set."""
    sizes = one["essentials"]
    grouped = one["model"].startswith(GROUPED) and release > DIRECT_RELEASE
    return Drawn(sizes["experts"], sizes["topk"], sizes["routing"], GROUPS if grouped else None)
