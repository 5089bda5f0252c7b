"""Warms shapes up and captures their CUDA graphs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vllm_nfp.probe import marks
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.cuda_graph import Graph, GraphPool
from vllm_nfp.probe.device_memory import DeviceMemory
from vllm_nfp.probe.runtime import Runtime
from vllm_nfp.probe.shapes import PreparedShape


class Capturer:
    """Runs a shape for the first time, and captures it.

    Args:
        runtime: fills and runs batches.
        pool: where graphs lie.
        device: the device's memory.
        context: tokens in each sequence's cache meanwhile; graphs fit every context.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: GraphPool,
        device: DeviceMemory,
        context: int,
    ) -> None:
        self._forward = runtime.forward
        self._batches = runtime.batches
        self._prover = runtime.prover
        self._clock = runtime.clock
        self._ranks = runtime.ranks
        self._pool = pool
        self._device = device
        self._stream_has_run = False
        """The stream of vLLM's graphs has run what the probe's graphs hold."""
        self._context = context

    def warm_up(self, shape: PreparedShape, late: bool) -> None:
        """Run the shape once: kernels are then loaded and tuned when they are timed or captured.

        Args:
            late: the start is over. What is to be captured then runs in the graphs' memory, which
                its graph will use as well: the rest is the server's. And the run is proven to keep
                the KV cache; at the start the whole cache is summed up before and after all runs.

        Raises:
            GraphMemoryKeptError: if it has left something in the graphs' memory.
        """
        if shape.warm:
            return
        batch, context = shape.batch, self._context
        self._fill(batch)
        proving = self._prover.begin(batch, context) if late else None
        # The kernels of a capture: attention splits its work otherwise there.
        metadata = self._forward.metadata(batch, context, for_capture=shape.full)
        in_shared_pool = shape.full and self._pool.shared
        with self._place_of_first_run(late) if in_shared_pool else nullcontext():
            self._run(batch, metadata)
        self._stream_has_run = self._stream_has_run or in_shared_pool
        if proving is not None:
            self._prover.watch(proving.end(f"the first run of {shape.name}"))
        shape.warm = True

    def _place_of_first_run(self, late: bool) -> AbstractContextManager[None]:
        """Where what will be captured into vLLM's pool runs first.

        At the start the first such run takes the stream of the captures, and memory outside the
        pool. Libraries keep scratch for each stream that they run on: cuBLAS 32 MiB on Hopper. If
        no product in vLLM's own graphs is one of cuBLAS (FP8), the LM head's would be made in the
        pool otherwise. It would stay in the middle of what the widest graphs need in one piece: on
        an H200 the pool then grew by 256 MiB.
        """
        if late:
            return self._device.inside(self._pool.place)
        if self._stream_has_run:
            return nullcontext()
        return self._device.beside(self._pool.place)

    def _fill(self, batch: ProbeBatch) -> None:
        self._batches.fill(batch, self._context)
        self._forward.inputs.fill(batch)

    def _run(self, batch: ProbeBatch, metadata: dict[str, Any]) -> None:
        inputs = self._forward.inputs
        with inputs.in_place(batch):
            inputs.embed(batch)
            hidden = self._forward.run_model(batch, metadata)
            self._forward.run_head(batch, hidden)
        if self._forward.timed:
            with inputs.kept(batch):
                found = self._forward.run_modules(batch, metadata, external=False)
            marks.release(self._clock, found)

    def capture_step(self, shape: PreparedShape) -> None:
        """Capture the forward pass and the LM head as two graphs.

        Hidden states and logits lie in the pool and are forgotten: each replay of the head follows
        that of the forward pass at once, before any other graph can use their memory.

        With several ranks the head is no graph: it ends in a collective that vLLM itself never
        captures.
        """
        batch = shape.batch
        self._fill(batch)
        metadata = self._forward.metadata(batch, self._context, for_capture=True)
        where = self._pool.place
        step = Graph(where.pool)
        hidden = step.capture(
            lambda: self._forward.run_model(batch, metadata),
            where.stream,
            self._ranks,
            warm_up=False,
        )
        if self._ranks.alone:
            head = Graph(where.pool)
            head.capture(lambda: self._forward.run_head(batch, hidden), where.stream, warm_up=False)
            shape.head_graph = head  # not before: a shape without memory keeps no half of it
        else:
            shape.hidden = hidden
        shape.step_graph = step
        shape.fresh = True

    def capture_modules(self, shape: PreparedShape) -> None:
        """Capture the timed modules as a graph, with their marks inside."""
        batch = shape.batch
        self._fill(batch)
        metadata = self._forward.metadata(batch, self._context, for_capture=True)
        where = self._pool.place
        graph = Graph(where.pool)
        shape.module_marks = graph.capture(
            lambda: self._forward.run_modules(batch, metadata, external=_capturing()),
            where.stream,
            self._ranks,
            warm_up=False,
        )
        shape.module_graph = graph
        shape.fresh = True


def _capturing() -> bool:
    return bool(torch.cuda.is_current_stream_capturing())
