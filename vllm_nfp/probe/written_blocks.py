"""Which blocks of the KV cache hold what real steps have written.

What blocks hold decides the time of a model with experts. On blocks that were never written, the
positions of one sequence choose their experts independently of each other. On written ones they
share a context, their hidden states grow alike with depth, and they choose fewer distinct experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.steps import BlocksTaken

NOBODY = -1
"""No group has written the block, as far as is known."""


class WrittenBlocks:
    """Notes which KV cache group has last written each block.

    All groups take blocks from one pool, and a block has one group at a time. Blocks that requests
    take later, while they decode, are not noted: an earlier note stays, and with several groups the
    block may then hold keys and values of another group's layers, which real steps wrote as well.

    Args:
        groups: of the layers that the probe gives block tables; at least one.
    """

    def __init__(self, groups: Sequence[AttentionGroup]) -> None:
        self.block_tokens = {g.kv_cache_group: g.block_tokens * g.kernel_blocks for g in groups}
        """Tokens in a block as the scheduler sees it, of each group that is noted."""
        num_blocks = groups[0].num_blocks // groups[0].kernel_blocks
        self._writer = np.full(num_blocks, NOBODY, dtype=np.int16)
        self.changes = 0
        """Grows whenever the answer of :meth:`of` changes."""

    def add(self, taken: BlocksTaken) -> None:
        """Note the blocks of a new request; numbers of no block of the pool are left out."""
        whole, rest = (
            numbers[(numbers > 0) & (numbers < len(self._writer))]
            for numbers in (taken.whole, taken.rest)
        )
        new = whole[self._writer[whole] != taken.group]
        # Where the group itself had written before, that content is still there.
        before = self._writer[rest]
        lost = rest[(before != taken.group) & (before != NOBODY)]
        if len(new) or len(lost):
            self._writer[new] = taken.group
            self._writer[lost] = NOBODY
            self.changes += 1

    def of(self, group: AttentionGroup) -> np.ndarray[Any, Any]:
        """Whether each block, as the kernels see it, was written: bool [group.num_blocks]."""
        return np.repeat(self._writer == group.kv_cache_group, group.kernel_blocks)


def written_blocks(view: RunnerView, groups: Sequence[AttentionGroup]) -> WrittenBlocks | None:
    """Notes for the KV cache of a runner; None for a model without experts.

    A model without experts takes as long whatever its KV blocks hold.
    """
    has_experts = bool(view.vllm_config.compilation_config.static_all_moe_layers)
    return WrittenBlocks(groups) if has_experts and groups else None
