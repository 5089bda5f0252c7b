"""Sums of the KV cache's bytes, which differ after any change that a stray write could make.

On a GPU one Triton kernel sums pieces of memory (:mod:`vllm_nfp.probe.span_sums`). On a CPU the
sums are those of rows and of columns of 64-bit words, with the overflow cut off: a change within
one row or one column changes some sum for certain, and so do two values that change places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

ROW_WORDS = 8192
"""Words of 8 bytes in a row of a CPU's memory."""
SPAN_BYTES = 1 << 20
"""Bytes of a GPU's memory that are summed up to one number."""

SAMPLED_BLOCKS = 14
"""Blocks that a proof looks at without a reason."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

SomeBlocks = tuple[torch.Tensor, np.ndarray[Any, Any]]
"""(cache as integers, with the block as the first dimension; numbers of some of its blocks)"""


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


def integers(cache: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same size, whatever it holds."""
    return cache.view(_INTEGERS[cache.element_size()])


def checksum(caches: Iterable[torch.Tensor]) -> bytes:
    """Of every byte of the storages that these tensors lie in, each once; waits for the device.

    Takes no memory but for the sums: of a GPU's cache of 60 GiB, 1 MiB with their addresses.
    """
    storages = {cache.untyped_storage().data_ptr(): cache for cache in caches}
    whole = hashlib.blake2b(digest_size=16)
    for cache in storages.values():
        for sums in _sums_of_storage(cache):
            whole.update(sums.cpu().numpy().tobytes())
    return whole.digest()


def _sums_of_storage(cache: torch.Tensor) -> Iterator[torch.Tensor]:
    storage = cache.untyped_storage()
    if cache.device.type != "cpu":
        from vllm_nfp.probe.span_sums import span_sums_at_start

        starts = np.arange(0, storage.nbytes(), SPAN_BYTES, dtype=np.int64)
        sizes = np.minimum(storage.nbytes() - starts, SPAN_BYTES)
        yield span_sums_at_start(
            np.stack([storage.data_ptr() + starts, sizes], axis=1), cache.device
        )
        return
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    row = 8 * ROW_WORDS
    whole = flat.numel() // row * row
    words = flat[:whole].view(torch.int64).view(-1, ROW_WORDS)
    yield from (words.sum(1), words.sum(0), flat[whole:])


def block_sums(looked_at: Sequence[SomeBlocks], device: torch.device) -> torch.Tensor:
    """Sums of some blocks of some caches, in the host's memory once the stream gets there."""
    if not looked_at:
        return torch.empty(0, dtype=torch.int64)
    if device.type == "cpu":
        return torch.cat([part for seen in looked_at for part in _rows_and_columns(*seen)])
    from vllm_nfp.probe.span_sums import span_sums

    spans = [spans_of(part, blocks) for cache, blocks in looked_at for part in whole_blocks(cache)]
    sums = span_sums(np.concatenate(spans), device)
    host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    return host.copy_(sums, non_blocking=True)


def _rows_and_columns(
    cache: torch.Tensor, blocks: np.ndarray[Any, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    found = cache[torch.from_numpy(blocks)].reshape(len(blocks), -1)
    if found.shape[1] * found.element_size() % 8 == 0:
        found = found.view(torch.int64)
    return found.sum(1, dtype=torch.int64), found.sum(0, dtype=torch.int64)


def whole_blocks(cache: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of a cache in which each block is one piece of memory.

    Where keys and values lie apart, or each head's, a block is in several pieces.
    """
    inner = sorted(range(1, cache.dim()), key=cache.stride)
    expected = 1
    for dim in inner:
        if cache.shape[dim] > 1 and cache.stride(dim) != expected:
            for part in cache.unbind(inner[-1]):
                yield from whole_blocks(part)
            return
        expected *= cache.shape[dim]
    yield cache


def spans_of(cache: torch.Tensor, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(address, bytes) of blocks that are one piece each, int64 [blocks, 2]."""
    starts = cache.data_ptr() + blocks.astype(np.int64) * cache.stride(0) * cache.element_size()
    return np.stack([starts, np.full(len(blocks), cache[0].nbytes)], axis=1)


def addressed(module: Any, num_blocks: int) -> Iterator[torch.Tensor]:
    """A layer's caches, as integers, with the block as the first dimension.

    A tensor in which no dimension is that of blocks is looked at by the sums of the start alone.
    """
    for cache in tensors_in(module.kv_cache):
        sizes = list(cache.shape)
        if num_blocks in sizes:
            yield integers(cache).movedim(sizes.index(num_blocks), 0)


def always_of(num_blocks: int) -> np.ndarray[Any, Any]:
    """The null block, the last one, and some between."""
    count = min(SAMPLED_BLOCKS + 2, num_blocks)
    return np.arange(count, dtype=np.int64) * (num_blocks - 1) // max(1, count - 1)
