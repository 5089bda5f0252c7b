"""Enqueues runs of shapes on the serving stream, and reads their times once they are over."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from vllm_nfp.adapter.out_of_memory import maybe_out_of_memory, refused_without_memory
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe import marks
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.kv_proof import Proof
from vllm_nfp.probe.marks import ModuleMarks, StepMarks, timing_of
from vllm_nfp.probe.runtime import Runtime
from vllm_nfp.probe.shapes import PreparedShape, key_of
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError, Timing

logger = logging.getLogger("vllm.nfp")

HEAD_START_SECONDS = 2e-4
"""Shortest time that an idle stream is kept busy, so that the launch of a run is not timed with it.
"""
HEAD_START_SHARE = 1.25
"""Of the longest of the latest launches: the next one may take a little longer."""
LAUNCHES_KEPT = 16
LONGEST_HOLD_SECONDS = 0.01
GPU_CYCLES_PER_SECOND = 1.8e9
"""Roughly, of the GPUs of today; only the length of a hold depends on it."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A launched run whose marks are to be read."""

    shape: Shape
    prepared: PreparedShape
    step: StepMarks
    modules: ModuleMarks
    written: bool
    """Each sequence reads the context of a real one; True where that does not matter."""
    proof: Proof | None = None
    """That the run kept the KV cache, where it is the first of its kind."""


def hold_stream(seconds: float) -> None:
    """Keep the current stream busy for roughly this long, LONGEST_HOLD_SECONDS at most."""
    torch.cuda._sleep(int(min(seconds, LONGEST_HOLD_SECONDS) * GPU_CYCLES_PER_SECOND))


class Launcher:
    """Launches shapes that were made ready; waits for nothing.

    Args:
        runtime: fills and runs batches.
        availability: the shapes, and which of them have graphs.
        device: that they run on.
    """

    def __init__(self, runtime: Runtime, availability: Availability, device: torch.device) -> None:
        self._forward = runtime.forward
        self._batches = runtime.batches
        self._prover = runtime.prover
        self._clock = runtime.clock
        self._alone = runtime.ranks.alone
        self._shapes = availability.shapes
        self._graphs = availability.graphs
        self._server = availability.limits.server
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._module_launch_seconds = LONGEST_HOLD_SECONDS / 2
        self._launch_seconds: deque[float] = deque(maxlen=LAUNCHES_KEPT)
        """From the start of a step to the end of its graph's launch, on the host."""
        self._earlier_work_hides_launches = True
        """No launch behind other work took longer yet than that work."""

    def launch(self, shape: Shape, draw: int = 0) -> Ticket:
        """Enqueue the step and the modules of one shape.

        Args:
            draw: which tokens to run on; runs of the same number share theirs as far as they go.

        Raises:
            RefusedForNowError: if memory does not suffice at the moment.
            ShapeRefusedError: if the KV cache does not suffice.
            KvCacheWrittenError: if an earlier run has changed the KV cache.
        """
        if self._alone:  # others would wait for a launch that all have agreed on
            self._prover.check()
        with refused_without_memory():
            maybe_out_of_memory()
            prepared = self._prepared_for(shape)
            return self._launch(shape, prepared, self._inputs(shape, prepared, draw))

    def can_launch(self, shape: Shape) -> bool:
        """Do all of a launch that can fail, without running anything; False if it is refused.

        Memory that the run will ask for is asked for here, and left in PyTorch's reserve.

        Raises:
            KvCacheWrittenError: if an earlier run has changed the KV cache.
        """
        self._prover.check()
        try:
            with refused_without_memory():
                maybe_out_of_memory()
                prepared = self._prepared_for(shape)
                self._inputs(shape, prepared)
                self._clock.release(self._clock.mark())
                if self._on_gpu:
                    size = self._bytes_of_run(prepared)
                    torch.empty(size, dtype=torch.uint8, device=self._device)
        except ShapeRefusedError as refused:
            logger.info("vllm-nfp: %s is refused: %s", shape, refused)
            return False
        return True

    def _bytes_of_run(self, prepared: PreparedShape) -> int:
        """At least what a run takes at a time beside its graphs: logits, and a layer's inside.

        Logits are made in parts and put together; a layer holds its input, residual, and what its
        widest part reads and writes.
        """
        server, tokens = self._server, len(prepared.batch.positions)
        per_token = 2 * server.vocabulary
        if prepared.step_graph is None:
            per_token += 8 * server.hidden_size + 4 * server.widest_layer
        return 2 * tokens * per_token

    def _prepared_for(self, shape: Shape) -> PreparedShape:
        key = key_of(shape)
        prepared = self._shapes[key]
        if prepared.busy:
            raise RefusedForNowError(f"{shape} is still running")
        if self._shapes.started and prepared.full and prepared.step_graph is None:
            raise ShapeRefusedError(f"{shape} has no CUDA graph")
        self._graphs.use(key)
        return prepared

    def _inputs(self, shape: Shape, prepared: PreparedShape, draw: int = 0) -> dict[str, Any]:
        """Fill the batch; its attention metadata."""
        maybe_fail("prepare")
        self._batches.fill(prepared.batch, shape.context, draw)
        self._forward.inputs.fill(prepared.batch)
        metadata = self._forward.metadata(prepared.batch, shape.context, for_capture=False)
        maybe_fail("forward")
        return metadata

    def _launch(self, shape: Shape, prepared: PreparedShape, metadata: dict[str, Any]) -> Ticket:
        as_graph = prepared.step_graph is not None
        proving = self._prover.begin_if_first(prepared.batch, shape.context, as_graph)
        idle = self._on_gpu and (proving is not None or torch.cuda.current_stream().query())
        hold = idle or not self._earlier_work_hides_launches
        if hold:
            self._hold_stream(self._head_start())
        if prepared.fresh:
            self._upload(prepared)
        step = self._run_step(prepared, metadata)
        if step.waited and not hold:
            self._earlier_work_hides_launches = False
        modules = self._run_modules(prepared, metadata)
        proof = None if proving is None else proving.end(f"a run of {prepared.name}")
        return Ticket(shape, prepared, step, modules, prepared.batch.written, proof)

    def _upload(self, prepared: PreparedShape) -> None:
        """Run fresh graphs once, untimed.

        In recorded runs the first timed run of a shape took 0.5 % longer at the median, and in 6 of
        35 cases 55 % or more (benchmarks/results/2026-11-24-h100, dense).
        """
        prepared.fresh = False
        with self._forward.inputs.in_place(prepared.batch):
            for graph in (prepared.step_graph, prepared.head_graph, prepared.module_graph):
                if graph is not None:
                    graph.replay()
            if prepared.step_graph is not None and prepared.head_graph is None:
                assert prepared.hidden is not None
                self._forward.run_head(prepared.batch, prepared.hidden)

    def _run_step(self, prepared: PreparedShape, metadata: dict[str, Any]) -> StepMarks:
        # Moving inputs is no part of the step: it lies outside the marks.
        with self._forward.inputs.in_place(prepared.batch):
            start = self._clock.mark()
            self._forward.inputs.embed(prepared.batch)
            hidden, waited = prepared.hidden, False
            if prepared.step_graph is not None:
                begun = time.perf_counter()
                prepared.step_graph.replay()
                self._launch_seconds.append(time.perf_counter() - begun)
                waited = self._clock.reached(start)
            else:
                hidden = self._forward.run_model(prepared.batch, metadata)
            after_forward = self._clock.mark()
            if prepared.head_graph is not None:
                prepared.head_graph.replay()
            else:
                assert hidden is not None
                self._forward.run_head(prepared.batch, hidden)
            return StepMarks(start, after_forward, self._clock.mark(), waited)

    def _head_start(self) -> float:
        """Seconds for which the device is kept busy while a step is launched."""
        longest = max(self._launch_seconds, default=0.0)
        return max(HEAD_START_SECONDS, HEAD_START_SHARE * longest)

    def _run_modules(self, prepared: PreparedShape, metadata: dict[str, Any]) -> ModuleMarks:
        with self._forward.inputs.kept(prepared.batch):
            return self._launch_modules(prepared, metadata)

    def _launch_modules(self, prepared: PreparedShape, metadata: dict[str, Any]) -> ModuleMarks:
        if prepared.module_graph is not None:
            assert prepared.module_marks is not None
            prepared.module_graph.replay()
            prepared.busy = True
            return prepared.module_marks
        if not self._forward.timed:
            return ModuleMarks()
        self._hold_stream(self._module_launch_seconds)
        begun = time.perf_counter()
        found = self._forward.run_modules(prepared.batch, metadata, external=False)
        self._module_launch_seconds = time.perf_counter() - begun
        return found

    def _hold_stream(self, seconds: float) -> None:
        """Keep the GPU busy for this long, so that what follows is launched ahead of it.

        A module's time is that of its kernels; without a graph the gaps between launches would
        be timed with them.
        """
        if self._on_gpu:
            hold_stream(seconds)

    def poll(self, ticket: Ticket) -> Timing | None:
        """The timing, once the device has passed the run's last mark.

        Raises:
            KvCacheWrittenError: if the run, or an earlier one, has changed the KV cache.
        """
        self._prover.check()
        step, modules, proof = ticket.step, ticket.modules, ticket.proof
        last = modules.empty[1] if modules.empty else step.end
        if not (self._clock.ready(step.end) and self._clock.ready(last)):
            return None
        if proof is not None and not self._clock.ready(proof.mark):
            return None
        execution = str(ticket.prepared.batch.placement.execution)
        timing = timing_of(self._clock, ticket.shape, step, modules, execution, ticket.written)
        self._give_back_marks(ticket)
        if proof is not None:
            self._prover.judge(proof)
        return timing

    def discard(self, ticket: Ticket) -> None:
        """Give a ticket up unread: its marks are recorded again before anyone reads them."""
        self._give_back_marks(ticket)
        if ticket.proof is not None:
            self._prover.watch(ticket.proof)

    def _give_back_marks(self, ticket: Ticket) -> None:
        ticket.prepared.busy = False
        marks.release(self._clock, ticket.step, ticket.modules)
