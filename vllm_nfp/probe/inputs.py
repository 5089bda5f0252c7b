"""What a run gives the model, and where: the probe's own tensors, or the runner's buffers.

A model takes token ids, or their embeddings where the server takes images or the like; and one
position for each token, or several equal ones where its rotary positions have several dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from vllm_nfp.adapter.dispatch import Execution
from vllm_nfp.adapter.inputs import TokenEmbedding, is_multimodal, takes_embeddings
from vllm_nfp.adapter.runner import RunnerView, StepBuffers
from vllm_nfp.probe.batch import ProbeBatch


class StepInputs:
    """The model's inputs for the batches of a runner.

    Args:
        view: the runner.
        buffers: its own.

    Raises:
        UnknownVllmError: if embedding token ids changes what cannot be put back.
    """

    def __init__(self, view: RunnerView, buffers: StepBuffers) -> None:
        self._buffers = buffers
        self._embedding = _embedding_of(view, buffers)
        sizes = view.vllm_config.compilation_config.cudagraph_capture_sizes
        self._most_captured = max(sizes or (), default=0)
        embeds, rotary = buffers.embeds, buffers.rotary
        self._embeds = None if embeds is None else torch.zeros_like(embeds[: self._most_captured])
        """What the probe's graphs read."""
        # As wide as the runner's: compiled code may hold the distance of its rows.
        self._rotary = None if rotary is None else torch.zeros_like(rotary)
        self._saved: list[torch.Tensor] | None = None

    def fill(self, batch: ProbeBatch) -> None:
        """Set the rotary positions of a batch; those of text are equal in all dimensions."""
        if self._rotary is not None:
            self._rotary[:, : len(batch.positions)].copy_(batch.positions)

    def embed(self, batch: ProbeBatch) -> None:
        """Embed the token ids, if the runner does, to where a CUDA graph will read them.

        As in serving this is a part of the step, and of no graph. To be called within
        :meth:`in_place`.
        """
        target = {
            Execution.FULL: self._embeds,
            Execution.PIECEWISE: self._buffers.embeds,
            Execution.NONE: None,
        }[batch.placement.execution]
        if self._embedding is not None and target is not None:
            target[: batch.tokens].copy_(self._embedding(batch.input_ids[: batch.tokens]))

    def own(self, batch: ProbeBatch) -> dict[str, Any]:
        """The model's arguments for a graph of the probe's own."""
        return self._arguments(batch, batch.input_ids, batch.positions, self._embeds, self._rotary)

    def live(self, batch: ProbeBatch) -> dict[str, Any]:
        """Those for one of vLLM's PIECEWISE graphs."""
        buffers = self._buffers
        return self._arguments(
            batch, buffers.input_ids, buffers.positions, buffers.embeds, buffers.rotary
        )

    def fresh(self, batch: ProbeBatch) -> dict[str, Any]:
        """Those for a run that embeds its tokens itself."""
        embeds = None if self._embedding is None else self._embedding(batch.input_ids)
        return self._arguments(batch, batch.input_ids, batch.positions, embeds, self._rotary)

    def _arguments(
        self,
        batch: ProbeBatch,
        ids: torch.Tensor,
        positions: torch.Tensor,
        embeds: torch.Tensor | None,
        rotary: torch.Tensor | None,
    ) -> dict[str, Any]:
        rows = batch.placement.padded_tokens
        no_ids = self._embedding is not None and not self._embedding.ids_too
        return {
            "input_ids": None if no_ids else ids[:rows],
            "positions": positions[:rows] if rotary is None else rotary[:, :rows],
            "intermediate_tensors": None,
            "inputs_embeds": None if embeds is None else embeds[:rows],
        }

    @contextmanager
    def kept(self, batch: ProbeBatch) -> Iterator[None]:
        """Have the model's own buffers, of what embedding writes, as they were afterwards."""
        tokens = batch.placement.padded_tokens
        with nullcontext() if self._embedding is None else self._embedding.kept(tokens):
            yield

    @contextmanager
    def in_place(self, batch: ProbeBatch) -> Iterator[None]:
        """Put the batch's inputs where its run will read them; only copies on the stream.

        A PIECEWISE graph reads the runner's own buffers. They hold the batch's inputs while the
        context lasts, and afterwards, byte by byte, what the last step left there: the next step
        may rely on that, since padding rows that it does not write are part of what it computes.
        Meanwhile all slots among them are padding: a graph that stores keys and values itself would
        otherwise store them where the last step did.
        """
        with self.kept(batch):
            if batch.placement.execution is not Execution.PIECEWISE:
                yield
                return
            rows, live = batch.placement.padded_tokens, self._buffers.tensors
            if self._saved is None or len(self._saved[0]) < rows:
                most = max(rows, self._most_captured)
                self._saved = [torch.empty_like(buffer[:most]) for buffer in live]
            _copy_rows(live, self._saved, rows)
            try:
                given = self._of(batch)
                _copy_rows(given, live[: len(given)], rows)
                yield
            finally:
                _copy_rows(self._saved, live, rows)

    def _of(self, batch: ProbeBatch) -> list[torch.Tensor]:
        """The batch's for each of the runner's buffers; embeddings are made later."""
        buffers = self._buffers
        rotary = () if self._rotary is None else (self._rotary.T,)
        mask = () if buffers.is_padding is None else (batch.is_padding,)
        slots = (batch.slots for _ in buffers.slots)
        return [batch.input_ids, batch.positions, *slots, *rotary, *mask]


def _embedding_of(view: RunnerView, buffers: StepBuffers) -> TokenEmbedding | None:
    model = view.vllm_config.model_config
    if buffers.embeds is None:
        return None
    assert takes_embeddings(model)
    return TokenEmbedding(view.model, is_multimodal(model), len(buffers.embeds), view.device)


def _copy_rows(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], rows: int) -> None:
    for source, target in zip(sources, targets, strict=True):
        target[:rows].copy_(source[:rows])
