"""What the probe asks of a device's memory beside allocating it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    give_back: Callable[[], None]
    """Returns what is left in PyTorch's cache; waits for the device."""


def device_memory(device: torch.device) -> DeviceMemory:
    """That of a CUDA device; of another one nothing is ever taken."""
    is_cuda = device.type == "cuda"
    return DeviceMemory(
        meter=(lambda: _cuda_meter(device)) if is_cuda else (lambda: GpuMemory(_none, _none)),
        own_place=lambda beside: own_place(device, beside),
        largest_free_block=largest_free_block,
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
    return max(
        (
            int(block["size"])
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment.get("segment_pool_id", ())) == tuple(place.pool)
            and segment["stream"] == stream
            for block in segment["blocks"]
            if block["state"] == "inactive"
        ),
        default=0,
    )
