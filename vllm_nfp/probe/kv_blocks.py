"""Which blocks of the KV cache the sequences of a probe read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup, CellDoesNotFitError
from vllm_nfp.probe.written_blocks import WrittenBlocks


class BlockReader:
    """Chooses which KV blocks each sequence of a probe reads.

    Args:
        group: the layers' group.
        seed: of the permutation that scatters the blocks, as a server that has run for a while
            has scattered them.
        written: blocks to read before all others; None: what blocks hold does not matter.
    """

    def __init__(
        self,
        group: AttentionGroup,
        device: torch.device,
        seed: int,
        written: WrittenBlocks | None = None,
    ) -> None:
        self._group = group
        self._written = written
        self._seen_changes = 0
        # Block 0 is vLLM's null block, which no sequence owns.
        order = np.random.default_rng(seed).permutation(np.arange(1, group.num_blocks))
        self._scatter = self._order = order.astype(np.int32)
        self._first_unwritten = 0 if written is not None else len(order)
        """Place in the order up to which all blocks were written, or need not be."""
        self._on_device = torch.empty(len(order), dtype=torch.int32, device=device)
        self._send()

    def variants(self, batch_size: int, tokens: int) -> int:
        """Tables for this shape that share no block with one another."""
        return len(self._order) // self._group.blocks_needed(batch_size, tokens)

    def blocks(self, batch_size: int, tokens: int, variant: int = 0) -> np.ndarray[Any, Any]:
        """Numbers of the blocks that the latest :meth:`fill` of this shape gave each sequence.

        Returns:
            int32 [batch_size, blocks], on the host.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        return self._order[self._place(batch_size, tokens, variant)].reshape(batch_size, -1)

    def all_written(self, batch_size: int, tokens: int, variant: int = 0) -> bool:
        """Whether real steps wrote all of :meth:`blocks`; True where that does not matter.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        end: int = self._place(batch_size, tokens, variant).stop
        return end <= self._first_unwritten

    def fill(self, table: torch.Tensor, batch_size: int, tokens: int, variant: int = 0) -> None:
        """Write the block table into the first rows of ``table``, zeros into all the rest.

        Enqueued on the stream; makes no tensor on the device, so that no number of shapes takes
        more of its memory. Blocks that were written since the last call come first from now on.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        place = self._place(batch_size, tokens, variant)
        self._put_written_first()
        blocks = self._on_device[place].view(batch_size, -1)
        table.zero_()
        table[:batch_size, : blocks.shape[1]].copy_(blocks)

    def _put_written_first(self) -> None:
        """Written blocks before the others, both in the order of the permutation."""
        if self._written is None or self._written.changes == self._seen_changes:
            return
        self._seen_changes = self._written.changes
        # By take and compress, which are faster here than indexing: this delays a step.
        written = self._written.of(self._group).take(self._scatter)
        # A new array: batches that were filled before show a part of the old one.
        parts = (self._scatter.compress(written), self._scatter.compress(~written))
        self._order = np.concatenate(parts)
        self._first_unwritten = int(np.count_nonzero(written))
        self._send()

    def _send(self) -> None:
        """Copy the order to the device; enqueued on the stream.

        Pinned memory is taken anew: PyTorch gives it to nobody else until the copy is over.
        """
        order = torch.from_numpy(self._order)
        if self._on_device.device.type != "cpu":
            order = order.pin_memory()
        self._on_device.copy_(order, non_blocking=True)

    def _place(self, batch_size: int, tokens: int, variant: int) -> slice:
        """Where in the order the blocks of a shape are."""
        needed = self._group.blocks_needed(batch_size, tokens)
        first = variant * needed
        if first + needed > len(self._order):
            raise CellDoesNotFitError(
                f"{batch_size} sequences of {tokens} tokens need {first + needed} distinct KV "
                f"blocks, the cache has {len(self._order)}"
            )
        return slice(first, first + needed)


def block_readers(
    groups: Sequence[AttentionGroup],
    device: torch.device,
    seed: int,
    written: WrittenBlocks | None = None,
) -> list[BlockReader]:
    """A reader for each group, each with another permutation."""
    return [BlockReader(group, device, seed + i, written) for i, group in enumerate(groups)]
