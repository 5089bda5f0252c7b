"""Decode batches of B sequences x N positions that touch nothing of the live server's.

All tensors are the probe's own: token ids, positions, lengths, block tables and slot mappings,
and so are the attention metadata builders. Blocks of the KV cache are read, as many distinct ones
as such a batch would read, in scattered order; the slot mapping is all padding, so that no block
is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.dispatch import GraphRules, Placement, place
from vllm_nfp.probe.kv_blocks import BlockReader
from vllm_nfp.probe.states import ProbeStates
from vllm_nfp.probe.token_pool import TokenPool

PAD_SLOT = -1
"""vLLM's slot for tokens whose keys and values are not stored."""


class ProbeBatch:
    """The inputs of one probe shape; lengths and blocks change, addresses do not.

    Args:
        batch_size: B sequences.
        positions: N positions per sequence.
        placement: with the padding that vLLM would add.
        widths: block-table columns of each group.
        causal: a position sees those before it; False: all of the block, as diffusion decodes.
        tables: block tables to share with other shapes that never run at the same time, of at least
            as many rows as sequences and ``widths`` columns; None: tables of its own.
    """

    def __init__(
        self,
        batch_size: int,
        positions: int,
        placement: Placement,
        widths: Sequence[int],
        device: torch.device,
        causal: bool = True,
        tables: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self.causal = causal
        self.batch_size = batch_size
        self.positions_per_sequence = positions
        self.placement = placement
        self.tokens = batch_size * positions
        padded, sequences = placement.padded_tokens, placement.padded_sequences
        self.input_ids = torch.zeros(padded, dtype=torch.int32, device=device)
        self.positions = torch.zeros(padded, dtype=torch.int64, device=device)
        offsets = torch.arange(positions, dtype=torch.int64).repeat(batch_size)
        self._offsets = _without_waiting(offsets, device)
        starts = torch.clamp(torch.arange(sequences + 1) * positions, max=self.tokens)
        self.query_start_cpu = starts.to(torch.int32)
        self.query_start = _without_waiting(self.query_start_cpu, device)
        self.seq_lens = torch.zeros(sequences, dtype=torch.int32, device=device)
        self.seq_lens_cpu = torch.zeros(sequences, dtype=torch.int32)
        self.slots = torch.full((padded,), PAD_SLOT, dtype=torch.int64, device=device)
        self.is_padding = torch.zeros(padded, dtype=torch.bool, device=device)
        self.is_padding[self.tokens :] = True
        self.is_prefilling = torch.zeros(sequences, dtype=torch.bool)
        self.tables = tuple(
            torch.zeros((sequences, width), dtype=torch.int32, device=device)
            if tables is None
            else tables[index][:sequences]
            for index, width in enumerate(widths)
        )
        self.blocks: tuple[np.ndarray[Any, Any], ...] = ()
        """Numbers of the KV blocks that it is filled with, int32 [batch_size, blocks] by group."""
        self.written = False
        """Each sequence reads the context of a real one; True where that does not matter."""

    def fill(
        self,
        context: int,
        readers: Sequence[BlockReader],
        tokens: TokenPool,
        variant: int = 0,
        draw: int = 0,
    ) -> None:
        """Set context length, blocks and token ids; enqueued on the stream, waits for nothing.

        Args:
            context: tokens already in each sequence's KV cache.
            variant: which of the disjoint sets of KV blocks to read.
            draw: number of the draw from the token pool.
        """
        length = context + self.positions_per_sequence
        torch.add(self._offsets, context, out=self.positions[: self.tokens])
        self.seq_lens[: self.batch_size].fill_(length)
        self.seq_lens_cpu[: self.batch_size].fill_(length)
        read = [
            reader.fill(table, self.batch_size, length, variant)
            for table, reader in zip(self.tables, readers, strict=True)
        ]
        self.blocks = tuple(one.blocks for one in read)
        self.written = all(one.written for one in read)
        self.input_ids[: self.tokens].copy_(tokens.draw(self.tokens, draw))

    def attention_metadata(
        self,
        groups: Sequence[AttentionGroup],
        metadata_class: type,
        max_seq_len: int,
        for_capture: bool,
        padded: bool,
        host_lengths: bool = False,
        states: ProbeStates | None = None,
    ) -> dict[str, Any]:
        """Attention metadata for each layer, built as the runner builds it.

        Args:
            metadata_class: vLLM's CommonAttentionMetadata.
            max_seq_len: longest sequence; the longest possible one for a capture.
            for_capture: build what a CUDA graph may keep.
            padded: count padding as part of the batch, as FULL graphs do.
            host_lengths: this vLLM takes :data:`versions.HOST_LENGTH_FIELDS`.
            states: those of layers that keep a state in place of a cache; None: there are none.
        """
        sequences = len(self.seq_lens) if padded else self.batch_size
        common = self._common(sequences, max_seq_len, padded)
        if host_lengths:
            starts, lengths = common["query_start_loc_cpu"], self.seq_lens_cpu[:sequences]
            computed = lengths - (starts[1:] - starts[:-1])
            common.update(zip(versions.HOST_LENGTH_FIELDS, (lengths, computed), strict=True))
        result: dict[str, Any] = {}
        for group, table in zip(groups, self.tables, strict=True):
            metadata = metadata_class(**common, block_table_tensor=table[:sequences])
            if for_capture:
                built = group.builder.build_for_cudagraph_capture(metadata)
            else:
                built = group.builder.build(0, metadata)
            result.update(dict.fromkeys(group.layer_names, built))
        if states is not None:
            shape = (self.batch_size, self.positions_per_sequence)
            result.update(states.metadata(*shape, metadata_class, common, for_capture))
        return result

    def _common(self, sequences: int, max_seq_len: int, padded: bool) -> dict[str, Any]:
        """Metadata that all groups share; with the block table, ``versions.METADATA_FIELDS``."""
        return {
            "query_start_loc": self.query_start[: sequences + 1],
            "query_start_loc_cpu": self.query_start_cpu[: sequences + 1],
            "seq_lens": self.seq_lens[:sequences],
            "seq_lens_cpu_upper_bound": self.seq_lens_cpu[:sequences],
            "num_reqs": sequences,
            "num_actual_tokens": len(self.positions) if padded else self.tokens,
            "max_query_len": self.positions_per_sequence,
            "max_seq_len": max_seq_len,
            "causal": self.causal,
            "is_prefilling": self.is_prefilling[:sequences],
            "positions": self.positions,
            "slot_mapping": self.slots,
        }

    def slot_mapping(self, groups: Sequence[AttentionGroup]) -> dict[str, torch.Tensor]:
        """Slots by layer, all padding."""
        return {name: self.slots for group in groups for name in group.layer_names}


def _without_waiting(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; from memory that is not pinned, the copy would wait for the real step."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


class BatchBuilder:
    """Builds the batch of each shape, and fills it before a run.

    Args:
        rules: how the server would launch a step.
        readers: choose the KV blocks of each group.
        widths: block-table columns of each group, as many as the longest allowed context needs.
        tokens: what the batches run on.
        most_sequences: of the largest batch, with padding.
    """

    def __init__(
        self,
        rules: GraphRules,
        readers: Sequence[BlockReader],
        widths: Sequence[int],
        tokens: TokenPool,
        device: torch.device,
        causal: bool,
        most_sequences: int,
    ) -> None:
        self._rules = rules
        self._readers = readers
        self._widths = widths
        self._tokens = tokens
        self._device = device
        self._causal = causal
        self._most_sequences = most_sequences
        self._tables: tuple[torch.Tensor, ...] | None = None

    def build(self, batch_size: int, positions: int) -> ProbeBatch:
        """The batch of a shape, placed and padded as serving would."""
        placement = place(self._rules, batch_size, positions)
        return ProbeBatch(
            batch_size,
            positions,
            placement,
            self._widths,
            self._device,
            self._causal,
            self._shared_tables(placement.padded_sequences),
        )

    def _shared_tables(self, sequences: int) -> tuple[torch.Tensor, ...]:
        """Block tables for all shapes: no two run at the same time.

        Graphs hold their address, so that they are made once, for the largest batch.
        """
        if self._tables is None:
            rows = max(sequences, self._most_sequences)
            self._tables = tuple(
                torch.zeros((rows, width), dtype=torch.int32, device=self._device)
                for width in self._widths
            )
        return self._tables

    def fill(self, batch: ProbeBatch, context: int, draw: int = 0) -> None:
        """Give a batch its context length, KV blocks and token ids; see :meth:`ProbeBatch.fill`.

        Raises:
            CellDoesNotFitError: if the KV cache has too few blocks.
        """
        batch.fill(context, self._readers, self._tokens, draw=draw)

    def close(self) -> None:
        """Give up the buffers that batches share."""
        self._readers, self._tables = (), None


def most_sequences(rules: GraphRules, batch_sizes: Iterable[int], grid: Iterable[int]) -> int:
    """Sequences of the largest batch of these shapes, with padding; 0 if there are none."""
    counts = list(grid)
    return max(
        (place(rules, b, n).padded_sequences for b in batch_sizes for n in counts), default=0
    )
