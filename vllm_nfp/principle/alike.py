"""Routed experts where all positions of a sequence choose the same ones.

Positions of one sequence share its context, and their hidden states grow alike with depth. This is
the end of that: a step of B sequences activates the experts of B tokens. It has the rows of B x N
tokens all the same, so that an expert has N times the rows, and more blocks of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vllm_nfp.principle.routing import IntArray, Routing
from vllm_nfp.principle.terms import FloatArray

_MOST_CHANCE = 1.0 - 1e-12


@dataclass(frozen=True, slots=True)
class AlikeRouting:
    """The experts of one rank; a :class:`~vllm_nfp.principle.routing.Routed`.

    Attributes:
        routing: how the sequences reach them, each independent of the others.
        sequences: B, of all data-parallel replicas together. Each has T / B positions.
    """

    routing: Routing
    sequences: int

    @property
    def num_experts(self) -> int:
        """Experts of which the rank holds weights."""
        return self.routing.num_experts

    @property
    def experts_per_token(self) -> float:
        """Of them, those that a token meets on average."""
        return self.routing.experts_per_token

    @property
    def expert_parallel(self) -> bool:
        """Other ranks hold other experts."""
        return self.routing.expert_parallel

    def awake(self, tokens: FloatArray) -> FloatArray:
        """Distinct experts: those of one position of each sequence."""
        return self.routing.awake(np.full(tokens.shape, float(self.sequences)))

    def blocks(self, tokens: FloatArray, block_rows: IntArray) -> FloatArray:
        """Blocks: the sum over experts of E[ceil(m N / b)], where m sequences choose one."""
        experts = _experts_by_sequences(self.routing, self.sequences)
        rows = np.arange(self.sequences + 1.0) * (tokens / self.sequences)[:, None]
        blocks: FloatArray = np.ceil(rows / block_rows[:, None]) @ experts
        return blocks

    def rows_apart(self, tokens: FloatArray) -> FloatArray:
        """Rows from one to the next of an expert: one token, the sequence's next position."""
        return np.full(tokens.shape, self.experts_per_token)


@lru_cache(maxsize=256)
def _experts_by_sequences(routing: Routing, sequences: int) -> FloatArray:
    """Experts that m of so many sequences choose on average, m = 0, 1, ...: binomial chances."""
    chances, counts = routing.chances()
    chosen = np.arange(sequences + 1.0)
    steps = np.log((sequences + 1.0 - chosen[1:]) / chosen[1:])
    ways = np.concatenate([[0.0], np.cumsum(steps)])
    chance = np.clip(chances[:, None], 1e-12, _MOST_CHANCE)
    logs = ways + chosen * np.log(chance) + (sequences - chosen) * np.log1p(-chance)
    found: FloatArray = counts @ np.exp(logs)
    return found
