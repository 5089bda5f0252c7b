"""Proof that a probe leaves every byte of the KV cache as it was.

The whole cache is summed up at the start, before any request and again after all that runs then.
Between real steps, which write the cache themselves, a proof lies on the stream closely around a
single run, and looks at the blocks that a stray write could hit: the last ones that each sequence
of the run reads (where keys and values of its positions would go), the null block, the pool's last
block (where a slot of -1 would go if it were taken for a number), and some others.

Sums are those of rows and of columns of 64-bit words, with the overflow cut off. A change within
one row or one column changes some sum for certain, so do two values that change places, wherever
they lie. Rows and columns are summed by one kernel, whose module the driver loads once
(``docs/overhead.md``): weights for each position would take another, and memory for the products.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_nfp.probe.batch import AttentionGroup, ProbeBatch
from vllm_nfp.timing import Clock, Mark

logger = logging.getLogger("vllm.nfp")

ROW_WORDS = 8192
"""Words of 8 bytes in a row: the sums of a tensor take 1/8192 of its bytes, and 64 KiB."""
SAMPLED_BLOCKS = 14
"""Blocks that a proof looks at without a reason."""
MOST_TAILS = 64
"""Last blocks of sequences that a proof looks at; of more, evenly spread ones."""
MOST_LAYERS = 8
"""Layers of a group that one proof looks at; the next one looks at the next ones. With pages of
64 KiB (8 KV heads of 128, bf16, 16 tokens) a proof reads 40 MiB before and after the run."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KvCacheWrittenError(RuntimeError):
    """A probe changed the KV cache: the attention backend ignores padding slots."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} changed the KV cache: this attention backend writes padding slots. What "
            f"requests have stored there may be wrong since then: restart the server if it has "
            f"served any"
        )


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a layer's cache, which may be one, or several in lists, tuples or dicts."""
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def caches_of(contexts: Mapping[str, Any], *more: Any) -> Iterator[torch.Tensor]:
    """All cache tensors: keys, values, scales and states of all layers, drafters' among them.

    Args:
        contexts: vLLM's map from a layer's name to its module.
        more: other caches that the runner keeps.
    """
    for module in contexts.values():
        if hasattr(module, "kv_cache"):
            yield from tensors_in(module.kv_cache)
    yield from tensors_in(more)


def checksum(caches: Iterable[torch.Tensor]) -> bytes:
    """Of every byte of the storages that these tensors lie in, each once; waits for the device.

    Takes no memory but for the sums: of a cache of 60 GiB, 8 MiB in all.
    """
    storages = {cache.untyped_storage().data_ptr(): cache for cache in caches}
    whole = hashlib.blake2b(digest_size=16)
    for cache in storages.values():
        for sums in _sums_of(_bytes_of(cache)):
            whole.update(sums.cpu().numpy().tobytes())
    return whole.digest()


def _bytes_of(cache: torch.Tensor) -> torch.Tensor:
    """The storage as it lies in memory; copies nothing."""
    flat = torch.empty(0, dtype=torch.uint8, device=cache.device)
    return flat.set_(cache.untyped_storage())


def _sums_of(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    """Sums of rows and columns, and what is left over as it is; of bytes in memory order."""
    row = 8 * ROW_WORDS
    whole = flat.numel() // row * row
    words = flat[:whole].view(torch.int64).view(-1, ROW_WORDS)
    yield from (words.sum(1), words.sum(0), flat[whole:])


def integers(cache: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same size, whatever it holds."""
    return cache.view(_INTEGERS[cache.element_size()])


@dataclass(frozen=True, slots=True)
class Proof:
    """Sums before and after a run, on their way to the host."""

    what: str
    before: torch.Tensor
    after: torch.Tensor
    mark: Mark
    """Passed once both are there."""

    def judge(self) -> None:
        """To be asked once the mark is passed.

        Raises:
            KvCacheWrittenError: if the sums differ.
        """
        if not torch.equal(self.before, self.after):
            raise KvCacheWrittenError(self.what)


class Prover:
    """Makes proofs around single runs; waits for nothing.

    Args:
        contexts: vLLM's map from a layer's name to its module.
        groups: the layers' groups.
        clock: marks the stream.
    """

    def __init__(
        self,
        contexts: Mapping[str, Any],
        groups: Sequence[AttentionGroup],
        clock: Clock,
        device: torch.device,
    ) -> None:
        self._clock = clock
        self._device = device
        self._turn = 0
        self._groups = groups
        self._caches = [
            [cache for name in group.layer_names for cache in _addressed(contexts[name], group)]
            for group in groups
        ]
        self._always = [_always(group.num_blocks, device) for group in groups]
        for group, caches in zip(groups, self._caches, strict=True):
            if not caches:
                logger.warning(
                    "vllm-nfp: the KV cache of %s has no dimension of %d blocks: it is proven to "
                    "be kept at the start alone",
                    group.layer_names[0],
                    group.num_blocks,
                )
        blocks = SAMPLED_BLOCKS + 2 + MOST_TAILS
        pages = [cache[0].nbytes for caches in self._caches for cache in caches]
        self.most_bytes = 2 * blocks * max(pages, default=0)
        """Memory that a proof takes at a time."""

    def begin(self, batch: ProbeBatch, context: int) -> Proving:
        """Enqueue the sums before a run.

        Args:
            context: tokens in each sequence's cache, as the batch is filled.
        """
        proving = Proving(self._clock, self._device, list(self._looked_at(batch, context)))
        self._turn += 1
        return proving

    def _looked_at(
        self, batch: ProbeBatch, context: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(cache with the block as first dimension, numbers of blocks to look at)."""
        each = zip(self._groups, self._caches, self._always, batch.tables, strict=True)
        for group, caches, always, table in each:
            if not caches:
                continue
            first = context // group.block_tokens
            last = (context + batch.positions_per_sequence - 1) // group.block_tokens
            tails = table[: batch.batch_size, first : last + 1].reshape(-1)
            blocks = torch.cat([always, tails[:: -(-len(tails) // MOST_TAILS)]])
            for step in range(min(MOST_LAYERS, len(caches))):
                # Evenly through the layers, others at each turn.
                place = step * len(caches) // min(MOST_LAYERS, len(caches)) + self._turn
                yield caches[place % len(caches)], blocks


class Proving:
    """A proof that has begun; the run follows, then :meth:`end`."""

    def __init__(
        self,
        clock: Clock,
        device: torch.device,
        looked_at: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._clock = clock
        self._on_gpu = device.type == "cuda"
        self._looked_at = looked_at
        self._before = self._sums()

    def end(self, what: str) -> Proof:
        """Enqueue the sums after the run.

        Args:
            what: names the run in the error.
        """
        after = self._sums()
        return Proof(what, self._before, after, self._clock.mark())

    def _sums(self) -> torch.Tensor:
        sums = torch.cat([part for seen in self._looked_at for part in _block_sums(*seen)])
        if not self._on_gpu:
            return sums
        host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
        return host.copy_(sums, non_blocking=True)


def _block_sums(cache: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Indexing takes the kernel that vLLM picks hidden states with; index_select would load another.
    found = cache[blocks].reshape(len(blocks), -1)
    if found.shape[1] * found.element_size() % 8 == 0:
        found = found.view(torch.int64)
    return found.sum(1, dtype=torch.int64), found.sum(0, dtype=torch.int64)


def _addressed(module: Any, group: AttentionGroup) -> Iterator[torch.Tensor]:
    """A layer's caches, as integers, with the block as the first dimension.

    A tensor in which no dimension is that of blocks is looked at by the sums of the start alone.
    """
    for cache in tensors_in(module.kv_cache):
        sizes = list(cache.shape)
        if group.num_blocks in sizes:
            yield integers(cache).movedim(sizes.index(group.num_blocks), 0)


def _always(num_blocks: int, device: torch.device) -> torch.Tensor:
    """The null block, the last one, and some between."""
    count = min(SAMPLED_BLOCKS + 2, num_blocks)
    numbers = [step * (num_blocks - 1) // max(1, count - 1) for step in range(count)]
    return torch.tensor(numbers, dtype=torch.int32, device=device)
