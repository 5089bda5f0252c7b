"""Which blocks of the KV cache the sequences of a probe read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup, CellDoesNotFitError


class BlockReader:
    """Chooses which KV blocks each sequence of a probe reads.

    Args:
        group: the layers' group.
        seed: of the permutation that scatters the blocks, as a server that has run for a while
            has scattered them.
    """

    def __init__(self, group: AttentionGroup, device: torch.device, seed: int) -> None:
        self._group = group
        # Block 0 is vLLM's null block, which no sequence owns.
        order = np.random.default_rng(seed).permutation(np.arange(1, group.num_blocks))
        self._order = order.astype(np.int32)
        self._on_device = torch.from_numpy(self._order).to(device)

    def variants(self, batch_size: int, tokens: int) -> int:
        """Tables for this shape that share no block with one another."""
        return len(self._order) // self._group.blocks_needed(batch_size, tokens)

    def blocks(self, batch_size: int, tokens: int, variant: int = 0) -> np.ndarray[Any, Any]:
        """Numbers of the blocks that each sequence reads, int32 [batch_size, blocks], on the host.

        Raises:
            CellDoesNotFitError: if the pool has too few blocks.
        """
        return self._order[self._place(batch_size, tokens, variant)].reshape(batch_size, -1)

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
        needed = self._group.blocks_needed(batch_size, tokens)
        first = variant * needed
        if first + needed > len(self._order):
            raise CellDoesNotFitError(
                f"{batch_size} sequences of {tokens} tokens need {first + needed} distinct KV "
                f"blocks, the cache has {len(self._order)}"
            )
        return slice(first, first + needed)


def block_readers(
    groups: Sequence[AttentionGroup], device: torch.device, seed: int
) -> list[BlockReader]:
    """A reader for each group, each with another permutation."""
    return [BlockReader(group, device, seed + index) for index, group in enumerate(groups)]
