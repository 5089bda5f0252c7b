"""What the probe asks of a device's memory beside allocating it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from vllm_nfp.adapter.graph_place import GraphPlace, own_place
from vllm_nfp.probe.memory import GpuMemory


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The calls that look at, and change, a device's memory."""

    meter: Callable[[], GpuMemory]
    """What the probe takes from now on."""
    own_place: Callable[[GraphPlace | None], GraphPlace]
    """A memory pool of the probe's own, on the stream of another one if one is given."""
    largest_free_block: Callable[[GraphPlace], int]
    """Bytes of the largest piece of a pool that a capture on its stream could use."""
    inside: Callable[[GraphPlace], AbstractContextManager[None]]
    """Takes memory from a pool that is there; see :func:`inside`."""
    beside: Callable[[GraphPlace], AbstractContextManager[None]]
    """Runs on the stream of a pool's graphs, in memory outside the pool; see :func:`beside`."""
    give_back: Callable[[], None]
    """Returns what is left in PyTorch's cache; waits for the device."""


def device_memory(device: torch.device) -> DeviceMemory:
    """That of a CUDA device; of another one nothing is ever taken."""
    is_cuda = device.type == "cuda"
    return DeviceMemory(
        meter=(lambda: _cuda_meter(device)) if is_cuda else (lambda: GpuMemory(_none, _none)),
        own_place=lambda beside: own_place(device, beside),
        largest_free_block=largest_free_block,
        inside=inside if is_cuda else (lambda _: nullcontext()),
        beside=beside if is_cuda else (lambda _: nullcontext()),
        give_back=_give_back if is_cuda else (lambda: None),
    )


def _none() -> int:
    return 0


def _cuda_meter(device: torch.device) -> GpuMemory:
    # Else memory that PyTorch gives back later would hide what the probe takes.
    torch.cuda.empty_cache()
    return GpuMemory(
        lambda: torch.cuda.memory_reserved(device),
        lambda: int(torch.cuda.mem_get_info(device)[0]),
    )


def _give_back() -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def largest_free_block(place: GraphPlace) -> int:
    """Bytes of the largest piece of the pool that a capture on its stream could use."""
    stream = int(place.stream.cuda_stream)
    free = (
        int(block["size"])
        for segment in _segments(place)
        if segment["stream"] == stream
        for block in segment["blocks"]
        if block["state"] == "inactive"
    )
    return max(free, default=0)


def _segments(place: GraphPlace) -> Iterator[Any]:
    for segment in torch.cuda.memory_snapshot():
        if tuple(segment.get("segment_pool_id", ())) == tuple(place.pool):
            yield segment


class GraphMemoryKeptError(RuntimeError):
    """A run has left something in the graphs' memory, which the next graph may overwrite."""

    def __init__(self, kept: int) -> None:
        super().__init__(
            f"a probe has left {kept} bytes in the memory of vLLM's CUDA graphs, which may "
            f"overwrite them: restart the server, with a larger capture_seconds in --nfp-config"
        )


@contextmanager
def inside(place: GraphPlace) -> Iterator[None]:
    """Run on the stream of a pool's graphs, in memory of the pool that they do not use now.

    PyTorch does the same to warm up what it captures (``torch._inductor.cudagraph_trees``). No
    graph runs meanwhile, since the stream waits for what was enqueued before, and what follows
    waits for it. A run takes what its graph will find free in the pool. Whatever lives on after it
    would be overwritten by other graphs.

    Raises:
        GraphMemoryKeptError: if something does.
    """
    before = _live_bytes(place)
    pool: Any = SimpleNamespace(id=tuple(place.pool))  # all that the call reads of a pool
    with beside(place), torch.cuda.use_mem_pool(pool):
        yield
    kept = _live_bytes(place) - before
    if kept > 0:
        raise GraphMemoryKeptError(kept)


@contextmanager
def beside(place: GraphPlace) -> Iterator[None]:
    """Run on the stream of a pool's graphs, after what was enqueued and before what follows."""
    place.stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(place.stream):
            yield
    finally:
        torch.cuda.current_stream().wait_stream(place.stream)


def _live_bytes(place: GraphPlace) -> int:
    """Of the tensors in a pool."""
    return sum(
        int(block["size"])
        for segment in _segments(place)
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    )
