"""Which blocks of the KV cache the sequences of a probe read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup, CellDoesNotFitError
from vllm_nfp.probe.written_blocks import WrittenBlocks


@dataclass(frozen=True, slots=True)
class Read:
    """What the sequences of a batch read of one group."""

    blocks: np.ndarray[Any, Any]
    """Numbers of the blocks, int32 [batch_size, blocks], on the host."""
    written: bool
    """Each sequence reads what a real one has written, or it does not matter what it reads."""


class BlockReader:
    """Chooses which KV blocks each sequence of a probe reads.

    Args:
        group: the layers' group.
        seed: of the permutation that scatters the blocks, as a server that has run for a while
            has scattered them.
        written: contexts of real sequences, to be read where there are enough; None: what blocks
            hold does not matter.
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
        # Block 0 is vLLM's null block, which no sequence owns.
        order = np.random.default_rng(seed).permutation(np.arange(1, group.num_blocks))
        self._order = order.astype(np.int32)
        self._on_device = torch.from_numpy(self._order).to(device)

    def variants(self, batch_size: int, tokens: int) -> int:
        """Tables for this shape that share no block with one another."""
        return len(self._order) // self._group.blocks_needed(batch_size, tokens)

    def fill(self, table: torch.Tensor, batch_size: int, tokens: int, variant: int = 0) -> Read:
        """Write the block table into the first rows of ``table``, zeros into all the rest.

        Enqueued on the stream; makes no tensor on the device, so that no number of shapes takes
        more of its memory.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        place = self._place(batch_size, tokens, variant)
        width = self._group.blocks_needed(1, tokens)
        table.zero_()
        target = table[:batch_size, :width]
        own = None
        if self._written is not None:
            own = self._written.sequences(self._group, batch_size, width, variant)
        if own is None:
            target.copy_(self._on_device[place].view(batch_size, -1))
            return Read(self._order[place].reshape(batch_size, -1), self._written is None)
        rows = torch.from_numpy(own)
        # Pinned memory is taken anew: PyTorch gives it to nobody else until the copy is over.
        target.copy_(rows.pin_memory() if table.is_cuda else rows, non_blocking=True)
        return Read(own, True)

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
    """A reader for each group, each with another permutation.

    Args:
        written: see :class:`BlockReader`.
    """
    return [BlockReader(group, device, seed + at, written) for at, group in enumerate(groups)]
