"""Runs a probe batch through the model: the whole step, and the timed modules of some layers.

The whole step takes the path that serving takes: the compiled model, in a CUDA graph where
serving would use one, then the LM head over all positions. It carries no marks inside.

The modules are timed in a second run, of the uncompiled model, in which only the sampled layers
work and the others hand their input on: that run is short, and its marks cost the step nothing.
On a GPU it is a CUDA graph of its own with the marks as external events inside. Collectives
between ranks get marks as well: their time is the module ``communication`` of their layer, and is
left out of the module that they happen in.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_nfp.adapter import communication, versions
from vllm_nfp.adapter import layers as layer_tools
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.dispatch import Execution
from vllm_nfp.adapter.layers import DecoderLayer
from vllm_nfp.adapter.light_ops import light_ops
from vllm_nfp.adapter.ranks import Alone, Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.probe.batch import AttentionGroup, ProbeBatch
from vllm_nfp.timing import Clock, Mark
from vllm_nfp.types import Module


@dataclass(frozen=True, slots=True)
class Interval:
    """Marks around one call of one module."""

    layer: int
    module: Module
    start: Mark
    end: Mark


@dataclass(slots=True)
class ModuleMarks:
    """The marks of one run of the timed modules."""

    intervals: list[Interval] = field(default_factory=list)
    empty: tuple[Mark, Mark] | None = None
    """Two marks with nothing between them: what a mark itself costs."""


@dataclass(slots=True)
class StepMarks:
    """The marks of one run of the whole step."""

    start: Mark
    after_forward: Mark
    end: Mark


class _Recorder:
    """Turns edges into intervals: a collective inside a module splits the module's in two.

    Args:
        mark: records a mark.
        intervals: takes what is found.
    """

    def __init__(self, mark: Callable[[], Mark], intervals: list[Interval]) -> None:
        self._mark = mark
        self._intervals = intervals
        self._layer: int | None = None
        self._open: dict[tuple[int, Module], Mark] = {}
        self._collective: Mark | None = None

    def on_layer(self, layer: int | None) -> None:
        """A timed layer begins, or has ended."""
        self._layer = layer

    def on_module(self, layer: int, module: Module, is_start: bool) -> None:
        """A module begins or has ended."""
        mark = self._mark()
        if is_start:
            self._open[layer, module] = mark
        else:
            self._add(layer, module, self._open.pop((layer, module)), mark)

    def on_collective(self, is_start: bool) -> None:
        """A collective begins or has ended; those outside the timed layers are not counted."""
        if self._layer is None:
            return
        mark = self._mark()
        if is_start:
            self._collective = mark
            for (layer, module), begun in self._open.items():
                self._add(layer, module, begun, mark)
        elif self._collective is not None:
            self._add(self._layer, Module.COMMUNICATION, self._collective, mark)
            self._collective = None
            self._open.update(dict.fromkeys(self._open, mark))

    def _add(self, layer: int, module: Module, start: Mark, end: Mark) -> None:
        self._intervals.append(Interval(layer, module, start, end))


class Forward:
    """Runs batches through the runner's model.

    Args:
        view: the runner.
        clock: for the marks.
        groups: attention groups with builders of the probe's own.
        all_layers: the model's decoder layers.
        timed: those whose modules are timed.

    Raises:
        UnknownVllmError: if the runner keeps its buffers elsewhere.
    """

    def __init__(
        self,
        view: RunnerView,
        clock: Clock,
        groups: Sequence[AttentionGroup],
        all_layers: Sequence[DecoderLayer],
        timed: Sequence[DecoderLayer],
    ) -> None:
        from vllm.v1.attention.backend import CommonAttentionMetadata

        self._view = view
        self._clock = clock
        self._groups = groups
        self._timed = timed
        self._metadata_class = CommonAttentionMetadata
        self._host_lengths = versions.HOST_LENGTH_FIELDS[0] in versions.metadata_fields()
        try:
            self._buffers = view.step_buffers()
        except AttributeError as error:
            raise UnknownVllmError(f"the {view.name} runner of this vLLM: {error}") from error
        self._kept: list[torch.Tensor] | None = None
        self._max_model_len = view.vllm_config.model_config.max_model_len
        chosen = {layer.index for layer in timed}
        rest = [layer for layer in all_layers if layer.index not in chosen]
        self._skipped = rest if all(map(layer_tools.can_skip, rest)) else []

    def metadata(self, batch: ProbeBatch, context: int, for_capture: bool) -> dict[str, Any]:
        """Attention metadata of the batch as it is filled now."""
        length = context + batch.positions_per_sequence
        return batch.attention_metadata(
            self._groups,
            self._metadata_class,
            self._max_model_len if for_capture else length,
            for_capture,
            padded=batch.placement.execution is Execution.FULL,
            host_lengths=self._host_lengths,
        )

    @contextmanager
    def in_place(self, batch: ProbeBatch) -> Iterator[None]:
        """Let the batch's inputs lie where its run will read them; only copies on the stream.

        A PIECEWISE graph reads the runner's own buffers. They hold the batch's inputs while the
        context lasts, and afterwards, byte by byte, what the last step left there: the next one
        may count on that, and a padding row that it does not write is part of what it computes.
        The slots among them are all padding meanwhile: a graph that stores keys and values itself
        would store them where the last step did.
        """
        if batch.placement.execution is not Execution.PIECEWISE:
            yield
            return
        rows, live = batch.placement.padded_tokens, self._buffers.tensors
        if self._kept is None or len(self._kept[0]) < rows:
            sizes = self._view.vllm_config.compilation_config.cudagraph_capture_sizes or ()
            most = max((rows, *sizes))
            self._kept = [torch.empty_like(buffer[:most]) for buffer in live]
        own = (batch.input_ids, batch.positions, *(batch.slots for _ in self._buffers.slots))
        _copy_rows(live, self._kept, rows)
        try:
            # The runner may mark no padding.
            _copy_rows((*own, batch.is_padding)[: len(live)], live, rows)
            yield
        finally:
            _copy_rows(self._kept, live, rows)

    @contextmanager
    def slots_of_a_step(self) -> Iterator[None]:
        """Let the runner's slots name entries of the KV cache, as a step leaves them.

        For the proof at the start: before the first step they are all padding, and a graph that
        stores where they say would be seen to store nothing.
        """
        slots = self._buffers.slots
        kept = [buffer.clone() for buffer in slots]
        entries = min(group.num_blocks * group.block_tokens for group in self._groups)
        for buffer in slots:
            first = torch.arange(len(buffer), dtype=buffer.dtype, device=buffer.device)
            buffer.copy_(first.remainder_(entries))
        try:
            yield
        finally:
            for buffer, before in zip(slots, kept, strict=True):
                buffer.copy_(before)

    def run_model(self, batch: ProbeBatch, metadata: dict[str, Any]) -> torch.Tensor:
        """The forward pass, as serving launches it; hidden states of all positions.

        To be called within :meth:`in_place`.
        """
        execution = batch.placement.execution
        with self.context(metadata, batch, execution, compiled=True):
            if execution is not Execution.PIECEWISE:
                return self._call(batch.input_ids, batch.positions)
            rows, shared = batch.placement.padded_tokens, self._buffers
            return self._call(
                shared.input_ids[:rows], shared.positions[:rows], self._view.run_piecewise
            )

    def run_head(self, batch: ProbeBatch, hidden: torch.Tensor) -> None:
        """The LM head over every position, as verification needs it."""
        self._view.model.compute_logits(hidden[: batch.tokens])

    def run_modules(
        self, batch: ProbeBatch, metadata: dict[str, Any], external: bool
    ) -> ModuleMarks:
        """The timed layers, with marks around their modules.

        Args:
            external: the marks are recorded into a CUDA graph.
        """
        marks = ModuleMarks()
        recorder = _Recorder(lambda: self._clock.mark(external), marks.intervals)
        with ExitStack() as stack:
            stack.enter_context(layer_tools.skipped(self._skipped))
            stack.enter_context(layer_tools.fused_ops(self._timed))
            stack.enter_context(light_ops())
            stack.enter_context(layer_tools.observed(self._timed, recorder.on_module))
            stack.enter_context(layer_tools.entered(self._timed, recorder.on_layer))
            stack.enter_context(communication.watched(recorder.on_collective))
            stack.enter_context(self.context(metadata, batch, Execution.NONE, compiled=False))
            self._call(batch.input_ids, batch.positions)
            marks.empty = (self._clock.mark(external), self._clock.mark(external))
        return marks

    def _call(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        run: Callable[[dict[str, Any]], Any] | None = None,
    ) -> torch.Tensor:
        inputs = {
            "input_ids": input_ids,
            "positions": positions,
            "intermediate_tensors": None,
            "inputs_embeds": None,
        }
        output = self._view.model(**inputs) if run is None else run(inputs)
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, torch.Tensor)
        return hidden

    @contextmanager
    def context(
        self, metadata: dict[str, Any], batch: ProbeBatch, execution: Execution, compiled: bool
    ) -> Iterator[None]:
        """vLLM's forward context for the batch.

        Only PIECEWISE graphs are chosen through it; a FULL graph is captured and replayed around
        a forward pass that knows of no graph.
        """
        from vllm.config.compilation import CUDAGraphMode
        from vllm.forward_context import BatchDescriptor, get_forward_context, set_forward_context

        piecewise = execution is Execution.PIECEWISE
        tokens = len(batch.positions)
        with set_forward_context(
            metadata,
            self._view.vllm_config,
            num_tokens=tokens,
            cudagraph_runtime_mode=CUDAGraphMode.PIECEWISE if piecewise else CUDAGraphMode.NONE,
            batch_descriptor=BatchDescriptor(num_tokens=tokens) if piecewise else None,
            slot_mapping=batch.slot_mapping(self._groups),
            skip_compiled=not compiled,
            is_padding=None if self._buffers.is_padding is None else batch.is_padding,
        ):
            if not compiled:
                # MoE layers take their names from this list in turn, which skipped layers upset;
                # without it each layer uses its own.
                get_forward_context().all_moe_layers = None
            yield


def _copy_rows(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], rows: int) -> None:
    for source, target in zip(sources, targets, strict=True):
        target[:rows].copy_(source[:rows])


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
