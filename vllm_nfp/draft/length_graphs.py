"""Which CUDA graphs vLLM finds for the draft lengths of a table, and which it should find.

vLLM's V2 runner captures FULL graphs of uniform decode steps for every length of a table. For a
number of tokens its dispatch looks at those graphs alone that have the next number of tokens
captured for any length (``CudaGraphManager._init_candidates``, worker/gpu/cudagraph_utils.py, the
same in 0.32.0 and 0.33.0). With the lengths 1, 2, 3, 4, 6, 8, a step of 15 requests with 2 drafts
has 45 tokens. Captured with 45 are 4 and 8 drafts, so the step runs as PIECEWISE with 48, although
there is a FULL graph of 48 tokens for 16 requests with 2 drafts. Two things follow:

- the step takes longer than on a server whose only length is 2;
- the first pass of an EAGLE or MTP drafter asks with the padded 48 tokens and the same 15 requests
  (spec_decode/target_dependent_ar/speculator.py, ``propose``). It finds its FULL graph of 16
  requests, and replays it on the attention metadata of 15, which is made for PIECEWISE without
  padding. FlashAttention 3's scheduler writes its metadata for the given requests alone
  (hopper/flash_prepare_scheduler.cu: ``batch_idx < num_batch``) into memory that is not set. The
  graph reads that of the sixteenth, and its kernels work on as many blocks as lie there. On an H200
  the server then made no token for 0.3 to 10 s (docs/draft-results.md).

:func:`with_every_length` adds to each number of tokens the next FULL graph of every length. Both
passes find the same one then, as they do on a server of one length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar

Key: TypeAlias = tuple[int, int]
"""(tokens of a step, active LoRA adapters)."""


class Graph(Protocol):
    """A CUDA graph, as vLLM describes it (``BatchExecutionDescriptor``)."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the step that it was captured for."""

    @property
    def num_reqs(self) -> int | None:
        """Requests of that step; None: any number (PIECEWISE)."""

    @property
    def uniform_token_count(self) -> int | None:
        """Tokens of each of these requests; None: any split."""


G = TypeVar("G", bound=Graph)


def with_every_length(candidates: Mapping[Key, Sequence[G]]) -> dict[Key, list[G]]:
    """The graphs to choose from, with the next one of each uniform length added.

    Args:
        candidates: by key, in the order of choice: FULL graphs, of which those of uniform steps
            have a ``uniform_token_count``, then PIECEWISE ones. Each has at least as many tokens
            as its key.
    """
    found: dict[Key, list[G]] = {}
    following: dict[tuple[int, int], G] = {}
    """By active adapters and tokens of each request: the smallest graph at larger keys."""
    for tokens, loras in sorted(candidates, reverse=True):
        own = candidates[tokens, loras]
        uniform = [graph for graph in own if graph.uniform_token_count is not None]
        for graph in sorted(uniform, key=_tokens, reverse=True):
            following[loras, graph.uniform_token_count or 0] = graph
        there = {graph.uniform_token_count for graph in uniform}
        added = [
            graph
            for (of, length), graph in following.items()
            if of == loras and length not in there
        ]
        found[tokens, loras] = [
            *uniform,
            *sorted(added, key=_tokens),
            *(graph for graph in own if graph.uniform_token_count is None),
        ]
    return found


def uniform_lengths(candidates: Mapping[Key, Sequence[G]]) -> tuple[int, ...]:
    """Tokens of each request in the graphs of uniform steps, ascending."""
    counts = {graph.uniform_token_count for graphs in candidates.values() for graph in graphs}
    return tuple(sorted(count for count in counts if count is not None))


def _tokens(graph: Graph) -> int:
    return graph.num_tokens
