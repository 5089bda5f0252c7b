"""Where the probe's CUDA graphs take their memory: beside vLLM's own graphs.

vLLM captures all its graphs into one memory pool, so that graphs share the memory of their
activations. The probe's graphs join that pool. They add no activations of their own as long as they
are no larger than vLLM's largest graph. PyTorch's allocator reuses memory within one stream only,
so the probe also needs the stream that vLLM captured on. :class:`CaptureWatch` records both while
vLLM warms up.

It is safe because a probe runs after everything of one step has been enqueued and before anything
of the next, on the same stream. Whatever a graph of vLLM leaves in the pool (hidden states, those
for a drafter) is read by the sampler and the drafter of the same step, which are enqueued by then.
What outlives a step (sampled tokens, drafts, the buffers of a drafter) lies outside the pool, in
tensors that the sampler made or that were there before any capture; and what anybody still holds in
the pool is not given to another graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet


@dataclass(frozen=True, slots=True)
class GraphPlace:
    """A memory pool and the stream to capture on."""

    pool: Any
    stream: Any
    shared: bool
    """The pool is that of vLLM's graphs."""


class CaptureWatch:
    """Records into which pool, and on which stream, graphs are captured while it is open."""

    def __init__(self) -> None:
        self._patches = PatchSet()
        self._counts: Counter[tuple[Any, int]] = Counter()
        self._streams: dict[int, Any] = {}

    def __enter__(self) -> CaptureWatch:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> CaptureWatch:
        """Begin to record."""
        if torch.cuda.is_available():
            self._patches.wrap(targets.CAPTURE_BEGIN, self._recording)
        return self

    def close(self) -> None:
        """Stop recording; what was recorded stays."""
        self._patches.restore()

    def _recording(self, original: Any) -> Any:
        def capture_begin(graph: Any, pool: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.note(pool, torch.cuda.current_stream())
            return original(graph, pool, *args, **kwargs)

        return capture_begin

    def note(self, pool: Any, stream: Any) -> None:
        """A capture begins; those without a pool are left out, since nobody can join them."""
        if pool is not None:
            self._counts[tuple(pool), int(stream.cuda_stream)] += 1
            self._streams[int(stream.cuda_stream)] = stream

    @property
    def place(self) -> GraphPlace | None:
        """Where most graphs went; None if there were none."""
        if not self._counts:
            return None
        (pool, stream), _ = self._counts.most_common(1)[0]
        return GraphPlace(pool, self._streams[stream], shared=True)


def own_place(device: torch.device, beside: GraphPlace | None = None) -> GraphPlace:
    """A pool of the probe's own.

    On the stream of another place if there is one: cuBLAS keeps a workspace of tens of MiB for each
    stream that it has run on.
    """
    stream = torch.cuda.Stream(device) if beside is None else beside.stream
    return GraphPlace(torch.cuda.graph_pool_handle(), stream, shared=False)
