"""Runs a probe batch through the model: the whole step, and the timed modules of some layers.

The whole step takes the path that serving takes: the compiled model, in a CUDA graph where
serving would use one, then the LM head over all positions. It carries no marks inside.

The modules are timed in a second run, of the uncompiled model, in which only the sampled layers
work and the others return their input. That run is short, and its marks cost the step nothing.
On a GPU it is a CUDA graph of its own, with the marks as external events inside. Collectives
between ranks get marks as well. Their time is that of the module ``communication`` of their layer,
and does not count for the module that calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from vllm_nfp.adapter import communication, versions
from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.connectors import without_connector
from vllm_nfp.adapter.dispatch import Execution
from vllm_nfp.adapter.forward_context import forward_context, metadata_class
from vllm_nfp.adapter.layer_hooks import can_skip, entered, fused_ops, observed, skipped
from vllm_nfp.adapter.layers import DecoderLayer
from vllm_nfp.adapter.light_ops import light_ops
from vllm_nfp.adapter.lora import Adapters
from vllm_nfp.adapter.model_tensors import ModelTensors
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.inputs import StepInputs
from vllm_nfp.probe.marks import IntervalRecorder, ModuleMarks
from vllm_nfp.probe.states import ProbeStates
from vllm_nfp.timing import Clock


class Forward:
    """Runs batches through the runner's model.

    Args:
        view: the runner.
        clock: for the marks.
        groups: attention groups with builders of the probe's own.
        all_layers: the model's decoder layers.
        timed: those whose modules are timed.
        states: what layers with a recurrent state work on; None: the model has none.

    Raises:
        UnknownVllmError: if the runner keeps its buffers elsewhere, or embeds in an unknown way.
    """

    def __init__(
        self,
        view: RunnerView,
        clock: Clock,
        groups: Sequence[AttentionGroup],
        all_layers: Sequence[DecoderLayer],
        timed: Sequence[DecoderLayer],
        states: ProbeStates | None = None,
    ) -> None:
        self._view = view
        self._clock = clock
        self._groups = groups
        self._states = states
        self.timed = timed
        self.num_layers = len(all_layers)
        self._metadata_class = metadata_class()
        self._host_lengths = versions.HOST_LENGTH_FIELDS[0] in versions.metadata_fields()
        try:
            self._buffers = view.step_buffers()
            self._adapters = Adapters(view)
        except AttributeError as error:
            raise UnknownVllmError(f"the {view.name} runner of this vLLM: {error}") from error
        self.inputs = StepInputs(view, self._buffers)
        """What runs give the model."""
        self._max_model_len = view.vllm_config.model_config.max_model_len
        self._tensors = ModelTensors(view.model)
        chosen = {layer.index for layer in timed}
        rest = [layer for layer in all_layers if layer.index not in chosen]
        self._skipped = rest if all(map(can_skip, rest)) else []

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
            states=self._states,
        )

    @contextmanager
    def slots_of_a_step(self) -> Iterator[None]:
        """Have the runner's slots name entries of the KV cache, as a step leaves them.

        For the proof at the start. Before the first step they are all padding, so that a graph
        which stores where they say would store nothing.
        """
        slots = self._buffers.slots
        kept = [buffer.clone() for buffer in slots]
        entries = min(group.num_blocks * group.block_tokens for group in self._groups)
        for buffer in slots:
            # Made on the host, since on a GPU `remainder` would load a kernel for this alone.
            buffer.copy_(torch.arange(len(buffer), dtype=buffer.dtype).remainder_(entries))
        try:
            yield
        finally:
            for buffer, before in zip(slots, kept, strict=True):
                buffer.copy_(before)

    def run_model(self, batch: ProbeBatch, metadata: dict[str, Any]) -> torch.Tensor:
        """The forward pass, as serving launches it; hidden states of all positions.

        To be called within :meth:`StepInputs.in_place`, after :meth:`StepInputs.embed`.
        """
        execution = batch.placement.execution
        with self.context(metadata, batch, execution, compiled=True):
            if execution is Execution.PIECEWISE:
                return _hidden(self._view.run_piecewise(self.inputs.live(batch)))
            inputs = self.inputs.own if execution is Execution.FULL else self.inputs.fresh
            return _hidden(self._view.model(**inputs(batch)))

    def run_head(self, batch: ProbeBatch, hidden: torch.Tensor) -> None:
        """The LM head over every position, as verification needs it."""
        with self._adapters.aside():
            self._view.model.compute_logits(hidden[: batch.tokens])

    def run_modules(
        self, batch: ProbeBatch, metadata: dict[str, Any], external: bool
    ) -> ModuleMarks:
        """The timed layers, with marks around their modules.

        Args:
            external: the marks are recorded into a CUDA graph.
        """
        marks = ModuleMarks()
        recorder = IntervalRecorder(lambda: self._clock.mark(external), marks.intervals)
        with ExitStack() as stack:
            stack.enter_context(self._tensors.kept())
            stack.enter_context(skipped(self._skipped))
            stack.enter_context(fused_ops(self.timed))
            stack.enter_context(light_ops())
            stack.enter_context(observed(self.timed, recorder.on_module))
            stack.enter_context(entered(self.timed, recorder.on_layer))
            stack.enter_context(communication.watched(recorder.on_collective))
            stack.enter_context(self.context(metadata, batch, Execution.NONE, compiled=False))
            self._view.model(**self.inputs.fresh(batch))
            marks.empty = (self._clock.mark(external), self._clock.mark(external))
        return marks

    @contextmanager
    def context(
        self, metadata: dict[str, Any], batch: ProbeBatch, execution: Execution, compiled: bool
    ) -> Iterator[None]:
        """vLLM's forward context for the batch, without adapters, connectors and live states."""
        aside, config = self._adapters.aside(), self._view.vllm_config
        with aside, self._own_states(batch), without_connector(config), forward_context(
            config,
            metadata,
            len(batch.positions),
            batch.slot_mapping(self._groups),
            None if self._buffers.is_padding is None else batch.is_padding,
            piecewise=execution is Execution.PIECEWISE,
            compiled=compiled,
            has_lora=self._view.marks_lora,
        ):  # fmt: skip
            yield

    def _own_states(self, batch: ProbeBatch) -> AbstractContextManager[None]:
        if self._states is None:
            return nullcontext()
        return self._states.lent(batch.batch_size, batch.positions_per_sequence)


def _hidden(output: Any) -> torch.Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden
