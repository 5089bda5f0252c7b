"""Decode batches of B sequences x N positions that touch nothing of the live server's.

All tensors are the probe's own: token ids, positions, lengths, block tables and slot mappings,
and so are the attention metadata builders. Blocks of the KV cache are read, as many distinct ones
as such a batch would read, in scattered order; the slot mapping is all padding, so that no block
is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter import bindings, versions
from vllm_nfp.adapter.dispatch import Placement

PAD_SLOT = -1
"""vLLM's slot for tokens whose keys and values are not stored."""


class CellDoesNotFitError(RuntimeError):
    """The KV cache has too few blocks for the cell, or the model too short a context."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Layers that share attention metadata, with a builder of the probe's own."""

    builder: Any
    layer_names: tuple[str, ...]
    block_tokens: int
    """Tokens in a block as the kernels see it."""
    num_blocks: int
    """Blocks in the pool as the kernels see it."""


def own_groups(
    attn_groups: Sequence[Sequence[Any]], num_blocks: int, vllm_config: Any, device: torch.device
) -> tuple[AttentionGroup, ...]:
    """Groups like the runner's, with metadata builders made anew.

    The runner's builders keep buffers that captured graphs read; the probe must not share them.

    Raises:
        CellDoesNotFitError: if a group's blocks cannot be addressed one by one.
        UnknownVllmError: if its kind, or how its builder is called, is unknown.
    """
    groups = []
    for runner_group in (group for groups_of_spec in attn_groups for group in groups_of_spec):
        live = runner_group.metadata_builders[0]
        # Releases before 0.32 pack no layers together and lack the attribute.
        if getattr(runner_group, "kernel_block_stride", 0):
            raise CellDoesNotFitError("the KV cache packs layers of different page sizes together")
        spec = live.kv_cache_spec
        bindings.check_kv_cache_kind(spec)
        bindings.check_builder(live)
        names = tuple(runner_group.layer_names)
        builder = _new_builder(type(live), spec, names, vllm_config, device)
        _share_scratch(live, builder)
        per_block = runner_group.kv_cache_spec.block_size // spec.block_size
        groups.append(AttentionGroup(builder, names, spec.block_size, num_blocks * per_block))
    return tuple(groups)


def _new_builder(
    kind: type, spec: Any, layer_names: Sequence[str], vllm_config: Any, device: torch.device
) -> Any:
    extra = {}
    # Builders before 0.29 have no such attribute and take no width.
    if getattr(kind, "requires_block_table_width", False):
        extra["block_table_width"] = -(-vllm_config.model_config.max_model_len // spec.block_size)
    return kind(spec, list(layer_names), vllm_config, device, **extra)


def _share_scratch(live: Any, builder: Any) -> None:
    """Let both use one scratch buffer, as vLLM lets its own builders: it is hundreds of MiB."""
    scratch = getattr(live, "_get_workspace_buffer", None)
    take = getattr(builder, "set_workspace_buffer", None)
    if scratch is not None and take is not None:
        take(scratch())


class BlockReader:
    """Chooses which KV blocks each sequence of a probe reads.

    Args:
        group: the layers' group.
        width: block-table columns, as many as the longest allowed context needs.
        seed: of the permutation that scatters the blocks, as a server that has run for a while
            has scattered them.
    """

    def __init__(self, group: AttentionGroup, width: int, device: torch.device, seed: int) -> None:
        self._group = group
        self._width = width
        self._device = device
        # Block 0 is vLLM's null block, which no sequence owns.
        order = np.random.default_rng(seed).permutation(np.arange(1, group.num_blocks))
        self._order = order.astype(np.int32)
        self._on_device = torch.from_numpy(self._order).to(device)

    def blocks_needed(self, batch_size: int, tokens: int) -> int:
        """Distinct blocks that ``batch_size`` sequences of ``tokens`` tokens read."""
        return batch_size * -(-tokens // self._group.block_tokens)

    def variants(self, batch_size: int, tokens: int) -> int:
        """Tables for this shape that share no block with one another."""
        return len(self._order) // self.blocks_needed(batch_size, tokens)

    def blocks(self, batch_size: int, tokens: int, variant: int = 0) -> np.ndarray[Any, Any]:
        """Numbers of the blocks that each sequence reads, int32 [batch_size, blocks], on the host.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        return self._order[self._place(batch_size, tokens, variant)].reshape(batch_size, -1)

    def table(self, batch_size: int, tokens: int, variant: int = 0) -> torch.Tensor:
        """Block table of shape [batch_size, width], int32, each block used once.

        Args:
            variant: tables of different variants share no block.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        table = torch.zeros((batch_size, self._width), dtype=torch.int32, device=self._device)
        self.fill(table, batch_size, tokens, variant)
        return table

    def fill(self, table: torch.Tensor, batch_size: int, tokens: int, variant: int = 0) -> None:
        """Write the block table into the first rows of ``table``, zeros into all the rest.

        Enqueued on the stream; makes no tensor, so that no number of shapes takes more memory.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        place = self._place(batch_size, tokens, variant)
        blocks = self._on_device[place].view(batch_size, -1)
        table.zero_()
        table[:batch_size, : blocks.shape[1]].copy_(blocks)

    def _place(self, batch_size: int, tokens: int, variant: int) -> slice:
        """Where in the order the blocks of a shape are."""
        needed = self.blocks_needed(batch_size, tokens)
        first = variant * needed
        if first + needed > len(self._order):
            raise CellDoesNotFitError(
                f"{batch_size} sequences of {tokens} tokens need {first + needed} distinct KV "
                f"blocks, the cache has {len(self._order)}"
            )
        return slice(first, first + needed)


GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Multiples of it, without their whole parts, lie evenly between 0 and 1, however many they are."""


class TokenBag:
    """Token ids that probes run on: those of recent prompts, random ones until there are any.

    Identical ids would send all tokens to the same experts; the ids of live prompts route as the
    server's own traffic does. They never leave the worker.

    Args:
        vocab_size: ids are below this.
        size: ids kept.
    """

    def __init__(self, vocab_size: int, size: int, device: torch.device, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._begin = float(rng.random())
        self._vocab_size = vocab_size
        # Twice over, so that a batch can start anywhere without wrapping.
        self._host = torch.empty(2 * size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._size = size
        self._fill = 0
        self._device_ids = torch.empty(2 * size, dtype=torch.int32, device=device)
        self._write(0, rng.integers(0, vocab_size, size, dtype=np.int32))
        self._changed = True

    def _write(self, start: int, ids: np.ndarray[Any, Any]) -> None:
        values = torch.from_numpy(ids)
        end = start + len(ids)
        self._host[start:end] = values
        self._host[start + self._size : end + self._size] = values

    def add(self, token_ids: Sequence[int]) -> None:
        """Take in (part of) a live prompt; ids out of range are left out."""
        ids = np.asarray(token_ids[: self._size], dtype=np.int64)
        ids = ids[(ids >= 0) & (ids < self._vocab_size)].astype(np.int32)
        first = ids[: self._size - self._fill]
        self._write(self._fill, first)
        rest = ids[len(first) :]
        if len(rest):
            self._write(0, rest)
        self._fill = (self._fill + len(ids)) % self._size
        self._changed = self._changed or len(ids) > 0

    def draw(self, count: int, number: int = 0) -> torch.Tensor:
        """``count`` token ids on the device.

        Args:
            number: draws of the same number begin at the same place, others spread over the bag.
        """
        if self._changed:
            self._device_ids.copy_(self._host, non_blocking=True)
            self._changed = False
        if count > self._size:
            raise CellDoesNotFitError(f"{count} tokens in a step exceed the bag of {self._size}")
        start = int(self._size * ((self._begin + number * GOLDEN_RATIO) % 1.0))
        return self._device_ids[start : start + count]


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
        self._offsets = torch.arange(positions, dtype=torch.int64).repeat(batch_size).to(device)
        starts = torch.clamp(torch.arange(sequences + 1) * positions, max=self.tokens)
        self.query_start_cpu = starts.to(torch.int32)
        self.query_start = self.query_start_cpu.to(device)
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

    def fill(
        self,
        context: int,
        readers: Sequence[BlockReader],
        bag: TokenBag,
        variant: int = 0,
        draw: int = 0,
    ) -> None:
        """Set context length, blocks and token ids; enqueued on the stream, waits for nothing.

        Args:
            context: tokens already in each sequence's KV cache.
            variant: which of the disjoint sets of KV blocks to read.
            draw: number of the draw from the bag.
        """
        length = context + self.positions_per_sequence
        torch.add(self._offsets, context, out=self.positions[: self.tokens])
        self.seq_lens[: self.batch_size].fill_(length)
        self.seq_lens_cpu[: self.batch_size].fill_(length)
        for table, reader in zip(self.tables, readers, strict=True):
            reader.fill(table, self.batch_size, length, variant)
        self.blocks = tuple(r.blocks(self.batch_size, length, variant) for r in readers)
        self.input_ids[: self.tokens].copy_(bag.draw(self.tokens, draw))

    def attention_metadata(
        self,
        groups: Sequence[AttentionGroup],
        metadata_class: type,
        max_seq_len: int,
        for_capture: bool,
        padded: bool,
        host_lengths: bool = False,
    ) -> dict[str, Any]:
        """Attention metadata for each layer, built as the runner builds it.

        Args:
            metadata_class: vLLM's CommonAttentionMetadata.
            max_seq_len: longest sequence; the longest possible one for a capture.
            for_capture: build what a CUDA graph may keep.
            padded: count padding as part of the batch, as FULL graphs do.
            host_lengths: this vLLM takes :data:`versions.HOST_LENGTH_FIELDS`.
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
