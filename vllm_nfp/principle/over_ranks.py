"""How vLLM splits a model over ranks.

- Tensor parallelism splits heads, widths and vocabulary over ``tensor_parallel_size`` ranks; a
  data-parallel replica has its own copy of all this.
- Routed experts are split over all ``tensor_parallel_size`` x ``data_parallel_size`` ranks
  together: every expert in as many slices, or, with ``expert_parallel`` (vLLM's
  ``--enable-expert-parallel``), every rank whole experts of its own.
- So the experts of a rank see the tokens of all data-parallel replicas, the rest only its own.
"""

from __future__ import annotations

import math


class OverRanks:
    """What follows from the numbers of ranks and experts of a shape."""

    __slots__ = ()

    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel: bool
    num_experts: int
    experts_per_token: int

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel ranks of all data-parallel ranks."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def expert_parallel_size(self) -> int:
        """Ranks that share the experts out among them; 1: none does."""
        return self.num_ranks if self.expert_parallel else 1

    @property
    def expert_tensor_parallel_size(self) -> int:
        """Ranks that each hold a slice of the same expert."""
        return 1 if self.expert_parallel else self.num_ranks

    @property
    def local_experts(self) -> int:
        """Routed experts of which a rank holds weights: of the fullest rank, if uneven."""
        return math.ceil(self.num_experts / self.expert_parallel_size)

    @property
    def local_experts_per_token(self) -> float:
        """Experts of a rank that a token meets, on average over tokens under uniform routing."""
        if not self.num_experts:
            return 0.0
        return self.experts_per_token * self.local_experts / self.num_experts
