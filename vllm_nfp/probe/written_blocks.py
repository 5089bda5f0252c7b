"""Which blocks of the KV cache hold the contexts of real sequences.

What blocks hold decides the time of a model with experts. With depth the hidden states of a
sequence take on what its context has in common. So positions of one sequence choose fewer distinct
experts than as many sequences do. Blocks without content have nothing in common, and blocks of many
sequences mixed make all sequences of a probe alike: both are unlike real steps (docs/measured.md).
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.steps import BlocksTaken

LENGTHS_SECONDS = 1.0
"""Least time between two counts of what a sequence may read: one takes a step 0.2 ms, and more with
long contexts."""
Numbers: TypeAlias = "np.ndarray[Any, Any]"
MOST_CONTEXTS = 512
"""Contexts that are kept of a group, the latest ones: bounds the time of a choice."""
LEAST_PART = 0.8
"""Of the blocks that a sequence of a probe reads, its context must hold so many. The first ones
are read twice in place of the rest, of which the L2 cache may hold some: a choice, not a fit."""


class WrittenBlocks:
    """Notes the blocks that steps fill for the requests that they begin.

    All groups take blocks from one pool, and a block has one group at a time. Blocks that requests
    fill later, chunk by chunk or while they decode, are not noted.

    Args:
        groups: of the layers that the probe gives block tables; at least one.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self, groups: Sequence[AttentionGroup], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.block_tokens = {g.kv_cache_group: g.block_tokens * g.kernel_blocks for g in groups}
        """Tokens in a block as the scheduler sees it, of each group that is noted."""
        num_blocks = groups[0].num_blocks // groups[0].kernel_blocks
        self._contexts: dict[int, OrderedDict[int, Numbers]] = {
            group: OrderedDict() for group in self.block_tokens
        }
        """Blocks of each context by its serial number, of each group."""
        self._owner = np.zeros(num_blocks, dtype=np.int64)
        """Serial number of the context that each block belongs to; 0: none."""
        self._serial = 0
        self._now = now
        self._lengths: tuple[int, ...] = ()
        self._counted, self._changed = -math.inf, False

    def add(self, taken: BlocksTaken) -> None:
        """Note the blocks of a new request; numbers of no block of the pool are left out.

        Other contexts end before the first of these blocks. Which, is seen when it is asked for:
        this runs in steps that read prompts.
        """
        whole, rest = (
            numbers[(numbers > 0) & (numbers < len(self._owner))]
            for numbers in (taken.whole, taken.rest)
        )
        self._changed = True
        self._owner[rest] = self._owner[whole] = 0
        contexts = self._contexts.get(taken.group)
        if contexts is None or not len(whole):
            return
        self._serial += 1
        self._owner[whole] = self._serial
        contexts[self._serial] = whole.astype(np.int32)
        if len(contexts) > MOST_CONTEXTS:
            contexts.popitem(last=False)

    def _kept(self, group: int) -> list[Numbers]:
        """What is left of the contexts, the latest first: blocks in the order of the tokens.

        None is forgotten here, though nothing may be left of it: ranks ask at different moments,
        and have to forget the same ones.
        """
        contexts = self._contexts[group]
        if not contexts:
            return []
        serials, numbers = list(contexts), list(contexts.values())
        sizes = np.array([len(one) for one in numbers])
        ends = np.cumsum(sizes)
        lost = np.flatnonzero(self._owner[np.concatenate(numbers)] != np.repeat(serials, sizes))
        of, first = np.unique(np.searchsorted(ends, lost, side="right"), return_index=True)
        left = lost[first] - (ends - sizes)[of]
        # Cut, so that all together hold no more blocks than the pool.
        for place, size in zip(of.tolist(), left.tolist(), strict=True):
            contexts[serials[place]] = numbers[place] = numbers[place][:size].copy()
        return [one for one in reversed(numbers) if len(one)]

    def sequences(
        self, group: AttentionGroup, batch_size: int, blocks: int, variant: int = 0
    ) -> Numbers | None:
        """Blocks that so many sequences read, each those of a context of its own; or None.

        The latest contexts come first.

        Args:
            blocks: of each sequence, as the kernels see them.
            variant: sets of contexts that share none, as far as there are enough of them.

        Returns:
            int32 [batch_size, blocks]; None where too few contexts are long enough.
        """
        split = group.kernel_blocks
        least = LEAST_PART * blocks / split
        found = [one for one in self._kept(group.kv_cache_group) if len(one) >= least]
        if len(found) < batch_size:
            return None
        begin = variant * batch_size % (len(found) - batch_size + 1)
        chosen = found[begin : begin + batch_size]
        return np.stack([_as_long(numbers, split, blocks) for numbers in chosen])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that a sequence may have to read each context, the most first.

        Of several groups the one counts that allows fewer. Counted again after LENGTHS_SECONDS.
        """
        if self._changed and (now := self._now()) >= self._counted + LENGTHS_SECONDS:
            self._counted, self._changed = now, False
            each = [
                sorted((tokens * len(one) for one in self._kept(group)), reverse=True)
                for group, tokens in self.block_tokens.items()
            ]
            self._lengths = tuple(int(min(some) / LEAST_PART) for some in zip(*each, strict=False))
        return self._lengths


def _as_long(numbers: Numbers, split: int, blocks: int) -> Numbers:
    """A context's blocks as the kernels see them, so many; the first ones again at the end."""
    if split > 1:
        numbers = (numbers[:, None] * split + np.arange(split, dtype=np.int32)).ravel()
    return numbers[:blocks] if len(numbers) >= blocks else np.resize(numbers, blocks)


def written_blocks(view: RunnerView, groups: Sequence[AttentionGroup]) -> WrittenBlocks | None:
    """Notes for the KV cache of a runner; None for a model without experts.

    A model without experts takes as long whatever its KV blocks hold.
    """
    has_experts = bool(view.vllm_config.compilation_config.static_all_moe_layers)
    return WrittenBlocks(groups) if has_experts and groups else None
