"""Lets each draft length of a table find the CUDA graphs that vLLM has captured for it.

vLLM 0.33 captures FULL graphs of uniform decode steps for every length of a table. For a number of
tokens its dispatch looks at those graphs alone that have the next number of tokens captured for any
length (``CudaGraphManager._init_candidates``, worker/gpu/cudagraph_utils.py:383). With the lengths
1, 2, 3, 4, 6, 8, a step of 15 requests with 2 drafts has 45 tokens. Captured with 45 are 4 and 8
drafts, so the step runs as PIECEWISE with 48, although there is a FULL graph of 48 tokens for 16
requests with 2 drafts. Two things follow:

- the step takes longer than on a server whose only length is 2;
- the drafter's first pass asks with the padded 48 tokens and the same 15 requests
  (spec_decode/target_dependent_ar/speculator.py, ``propose``). It finds its FULL graph of 16
  requests, and replays it on the attention metadata of 15, which is made for PIECEWISE without
  padding. FlashAttention 3's scheduler writes its metadata for the given requests alone
  (hopper/flash_prepare_scheduler.cu: ``batch_idx < num_batch``) into memory that is not set. The
  graph reads that of the sixteenth, and its kernels work on as many blocks as lie there. On an H200
  the server then made no token for 0.3 to 10 s (docs/draft-results.md).

:func:`install` adds to each number of tokens the next FULL graph of every length. Both passes find
the same one then, as they do on a server of one length.

Under adaptive verification the model's FULL graphs have as many requests as tokens, and the
drafter's have as many as were captured with uniform steps. Where all drafts are admitted, the
drafter replays a FULL graph on metadata of another number of requests, whose parts lie elsewhere.
:func:`guard_drafter` lets it replay none then, here and wherever the requests differ.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

AS_IS_VARIABLE = "NFP_BENCH_AS_IS"
"""What extensions read: 1 leaves vLLM's choice of graphs as it is."""
Key: TypeAlias = tuple[int, int]
"""(tokens of a step, active LoRAs)."""


def with_every_length(candidates: Mapping[Key, Sequence[Any]]) -> dict[Key, list[Any]]:
    """The graphs to choose from, with the next one of each uniform length added.

    Args:
        candidates: by key, in the order of choice: FULL graphs, of which those of uniform steps
            have a ``uniform_token_count``, then PIECEWISE ones.
    """
    found: dict[Key, list[Any]] = {}
    following: dict[tuple[int, int], Any] = {}
    """By active LoRAs and tokens of each request: the smallest graph at larger keys."""
    for tokens, loras in sorted(candidates, reverse=True):
        own = candidates[tokens, loras]
        uniform = [graph for graph in own if graph.uniform_token_count is not None]
        for graph in sorted(uniform, key=lambda one: one.num_tokens, reverse=True):
            following[loras, graph.uniform_token_count] = graph
        there = {graph.uniform_token_count for graph in uniform}
        added = [
            graph
            for (of, length), graph in following.items()
            if of == loras and length not in there
        ]
        found[tokens, loras] = [
            *uniform,
            *sorted(added, key=lambda one: one.num_tokens),
            *(graph for graph in own if graph.uniform_token_count is None),
        ]
    return found


def guard_drafter() -> None:
    """Let drafters of this process replay FULL graphs on metadata of their number of requests only.

    The first pass of EAGLE and MTP heads then runs as PIECEWISE, which reads its own metadata.
    """
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
        SpeculatorCudaGraphManager,
    )
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
        TargetDependentARSpeculator,
    )

    propose, dispatch = TargetDependentARSpeculator.propose, SpeculatorCudaGraphManager.dispatch

    @functools.wraps(propose)
    def guarded_propose(self: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self.prefill_cudagraph_manager is not None:
            self.prefill_cudagraph_manager.bench_requests = input_batch.num_reqs_after_padding
        return propose(self, input_batch, *args, **kwargs)

    @functools.wraps(dispatch)
    def guarded_dispatch(
        self: Any, num_reqs: int, num_tokens: int, uniform: int | None, *args: Any, **kwargs: Any
    ) -> Any:
        found = dispatch(self, num_reqs, num_tokens, uniform, *args, **kwargs)
        prepared = getattr(self, "bench_requests", None)  # None: of the passes after the first
        if prepared is None or found.num_reqs in (None, prepared):
            return found
        return dispatch(self, num_reqs, num_tokens, None, *args, **kwargs)

    TargetDependentARSpeculator.propose = guarded_propose
    SpeculatorCudaGraphManager.dispatch = guarded_dispatch


def install() -> None:
    """Change the managers of CUDA graphs that this process makes from now on; V2 runner."""
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    original = CudaGraphManager._init_candidates

    @functools.wraps(original)
    def init_candidates(self: Any) -> None:
        original(self)
        self._candidates = with_every_length(self._candidates)

    CudaGraphManager._init_candidates = init_candidates
