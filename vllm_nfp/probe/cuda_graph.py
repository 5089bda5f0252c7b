"""CUDA graphs of the probe's own, and the memory pool that they lie in."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.ranks import Alone, Ranks


class GraphPool:
    """The memory pool that the probe's graphs go to: vLLM's, or one of the probe's own.

    Args:
        place: pool and stream of vLLM's graphs; None: the probe's have a pool of their own.
        own_place: makes a pool of the probe's own, on the stream of another one if one is given.
    """

    def __init__(
        self, place: GraphPlace | None, own_place: Callable[[GraphPlace | None], GraphPlace]
    ) -> None:
        self._place = place
        self._own_place = own_place

    @property
    def exists(self) -> bool:
        """A pool is there already, vLLM's or the probe's own."""
        return self._place is not None

    @property
    def shared(self) -> bool:
        """The probe's graphs lie in the pool of vLLM's."""
        return self._place is not None and self._place.shared

    @property
    def place(self) -> GraphPlace:
        """The pool and its stream; makes one if there is none."""
        if self._place is None:
            self._place = self._own_place(None)
        return self._place

    def forget_own(self) -> None:
        """The probe's last graph is gone, and PyTorch forgets a memory pool with it."""
        if not self.shared:
            self._place = None

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Let graphs go to a pool that is thrown away: what a pool has grown by, it keeps."""
        kept = self._place
        self._place = self._own_place(kept)
        try:
            yield
        finally:
            self._place = kept


class Graph:
    """A CUDA graph of the probe's own.

    Args:
        pool: memory pool that the graph shares with others.
    """

    def __init__(self, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture(
        self,
        run: Callable[[], Any],
        stream: Any,
        ranks: Ranks | None = None,
        warm_up: bool = True,
    ) -> Any:
        """Capture a run, after one to warm up if asked for; returns what the captured one returned.

        Without a warm-up it waits for nothing: what is captured must have run before.
        """
        stream.wait_stream(torch.cuda.current_stream())
        if warm_up:
            with torch.cuda.stream(stream):
                run()
                stream.synchronize()
        with (ranks or Alone()).capturing(stream), _no_garbage_collection():
            # Thread-local: a capture must not trip over other threads' CUDA calls.
            self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = run()
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def replay(self) -> None:
        """Enqueue the graph on the current stream."""
        self._graph.replay()

    def reset(self) -> None:
        """Give up what the graph holds; it must not be running."""
        self._graph.reset()


class SmallGraphs:
    """Captures runs that take little memory, into one pool of their own."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of a run, after one to warm up; returns what replays it."""
        graph = Graph(self._pool)
        graph.capture(run, self._stream)
        return graph.replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a capture could free CUDA objects, which would break it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
