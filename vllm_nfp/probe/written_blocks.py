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
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.steps import BlocksTaken

LENGTHS_SECONDS = 0.25
"""Least time between two counts of what a sequence may read: one takes 0.1 ms of a step, and what
asks for it, the agenda, is made no more often."""
Numbers: TypeAlias = "np.ndarray[Any, Any]"
MOST_CONTEXTS = 512
"""Contexts that are kept of a group, the latest ones: bounds the time of a choice."""
LEAST_PART = 0.8
"""Of the blocks that a sequence of a probe reads, its context must hold so many. The first ones
are read twice in place of the rest, of which the L2 cache may hold some: a choice, not a fit."""


@dataclass(slots=True)
class _Context:
    """Blocks of one sequence, in the order of its tokens."""

    numbers: Numbers
    valid: int
    """Of the first ones: the others belong to another sequence by now."""


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
        self._contexts: dict[int, OrderedDict[int, _Context]] = {
            group: OrderedDict() for group in self.block_tokens
        }
        self._owner = np.zeros(num_blocks, dtype=np.int64)
        """Serial number of the context that each block belongs to; 0: none."""
        self._place = np.zeros(num_blocks, dtype=np.int64)
        """Of each block in its context."""
        self._serial = 0
        self._now = now
        self._lengths: tuple[int, ...] = ()
        self._counted, self._changed = -math.inf, False

    def add(self, taken: BlocksTaken) -> None:
        """Note the blocks of a new request; numbers of no block of the pool are left out."""
        whole, rest = (
            numbers[(numbers > 0) & (numbers < len(self._owner))]
            for numbers in (taken.whole, taken.rest)
        )
        self._changed = True
        self._lose(whole)
        self._lose(rest)
        contexts = self._contexts.get(taken.group)
        if contexts is None or not len(whole):
            return
        self._serial += 1
        self._owner[whole], self._place[whole] = self._serial, np.arange(len(whole))
        contexts[self._serial] = _Context(whole.astype(np.int32), len(whole))
        if len(contexts) > MOST_CONTEXTS:
            contexts.popitem(last=False)

    def _lose(self, numbers: Numbers) -> None:
        """Other contexts end before the first of these blocks."""
        owners = self._owner[numbers]
        for owner in np.unique(owners[owners > 0]).tolist():
            first = int(self._place[numbers[owners == owner]].min())
            for contexts in self._contexts.values():
                if owner in contexts:
                    contexts[owner].valid = min(contexts[owner].valid, first)
                    if not first:
                        del contexts[owner]
        self._owner[numbers] = 0

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
        of, split = self._contexts[group.kv_cache_group], group.kernel_blocks
        least = LEAST_PART * blocks / split
        found = [one for one in reversed(of.values()) if one.valid >= least]
        if len(found) < batch_size:
            return None
        begin = variant * batch_size % (len(found) - batch_size + 1)
        rows = [
            _as_long(one.numbers[: one.valid], split, blocks)
            for one in found[begin : begin + batch_size]
        ]
        return np.stack(rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that a sequence may have to read each context, the most first.

        Of several groups the one counts that allows fewer. Counted again after LENGTHS_SECONDS.
        """
        if self._changed and (now := self._now()) >= self._counted + LENGTHS_SECONDS:
            self._counted, self._changed = now, False
            each = [
                sorted((tokens * one.valid for one in self._contexts[group].values()), reverse=True)
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
