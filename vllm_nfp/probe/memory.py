"""The probe's share of GPU and host memory: what it is, and how it is kept within its limit."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.faults import out_of_memory

_STABLE_ABI_ALLOCATIONS = ("aten::new_empty", "aten::empty")
_STATM = Path("/proc/self/statm")

MOST_DRIVER_BYTES = 128 << 20
"""More than the driver ever takes for the graphs of one shape: then another process took memory."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation on the GPU failed.

    Kernels behind torch's stable ABI, FlashAttention 3 among them, report it as a plain
    RuntimeError that names the allocating call (seen with vLLM 0.32 on an H100).
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return "API call failed" in text and any(name in text for name in _STABLE_ABI_ALLOCATIONS)


def maybe_out_of_memory() -> None:
    """Fail as an allocation does, where a test asks for it."""
    if out_of_memory():
        raise torch.OutOfMemoryError("fault injected: CUDA out of memory")


def host_bytes() -> int:
    """Memory of this process that lies in RAM; 0 where the kernel does not tell."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes more than before."""

    pool: int
    """In PyTorch's reserve: activations, which graphs share."""
    driver: int
    """In the driver: the graphs themselves."""


class GpuMemory:
    """What this process has taken from the GPU, told apart from what others take.

    PyTorch knows its own reserve exactly. What the driver takes for a graph shows only in the
    device's free memory, in which other processes appear as well: a change that cannot be one
    graph's is put down to them, and the mean of the others stands in for it.

    Args:
        reserved: bytes that PyTorch holds for this process.
        free: bytes that nobody holds.
    """

    def __init__(self, reserved: Callable[[], int], free: Callable[[], int]) -> None:
        self._reserved = reserved
        self._free = free
        self._base = reserved()
        self._own = 0
        self._driver: list[int] = []
        self._driver_total = 0.0

    @classmethod
    def of(cls, device: torch.device) -> GpuMemory:
        """That of a CUDA device, from now on; of another one nothing is ever taken."""
        if device.type != "cuda":
            return cls(lambda: 0, lambda: 0)
        # Else memory that PyTorch gives back later would hide what the probe takes.
        torch.cuda.empty_cache()
        return cls(
            lambda: torch.cuda.memory_reserved(device),
            lambda: int(torch.cuda.mem_get_info(device)[0]),
        )

    def track(self, change: Callable[[], None], expected: float | None = None) -> Change:
        """Run something that makes or gives up graphs; bytes by which it changed what is held.

        Args:
            expected: the driver's part, for when other processes hide it; None: the mean so far.
        """
        reserved, free = self._reserved(), self._free()
        change()
        grown = self._reserved() - reserved
        driver = float(free - self._free() - grown)
        if abs(driver) > MOST_DRIVER_BYTES:
            mean = sum(self._driver) / len(self._driver) if self._driver else 0.0
            driver = mean if expected is None else expected
        elif expected is None:
            self._driver = [*self._driver[-63:], int(driver)]
        self._own += grown
        self._driver_total += driver
        return Change(grown, int(driver))

    def count_reserve(self) -> None:
        """Take all that PyTorch's reserve has grown by for the probe's; before serving begins."""
        self._own = self._reserved() - self._base

    @property
    def taken(self) -> int:
        """Bytes taken: PyTorch's growth for the probe, and the driver's part of its graphs."""
        return max(0, self._own) + max(0, int(self._driver_total))


class HostMemory:
    """By how much this process has grown in RAM since the probe was attached, within a limit.

    The C library keeps what graphs give back, for the next ones: giving some up makes room for as
    many others, and the process no smaller.

    Args:
        limit: bytes; None: any number.
        resident: bytes that lie in RAM.
    """

    def __init__(self, limit: int | None, resident: Callable[[], int] = host_bytes) -> None:
        self._limit = limit
        self._resident = resident
        self._base = resident()
        self._largest = 0

    @property
    def is_full(self) -> bool:
        """One more piece, of the largest one's size, would exceed the limit."""
        if self._limit is None:
            return False
        return self._resident() - self._base + self._largest > self._limit

    def track(self, change: Callable[[], Change]) -> Change:
        """Run something that makes graphs; what it takes here is noted."""
        before = self._resident()
        found = change()
        self._largest = max(self._largest, self._resident() - before)
        return found


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


Key = TypeVar("Key", bound=Hashable)


class Shelf(Generic[Key]):
    """Which shapes have their graphs now, within a limit of bytes; the oldest make room.

    The driver takes memory in larger pieces than a graph needs and reuses what it got back, so that
    single measurements mislead: once something had to make room, each shape counts as the mean
    of all until then.

    Args:
        limit: bytes for all of them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[Key, None] = OrderedDict()
        self._bytes = 0
        self._count = 0
        self._mean: float | None = None

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def mean(self) -> float:
        """Bytes of one shape; 0 before the first."""
        if self._mean is not None:
            return self._mean
        return self._bytes / self._count if self._count else 0.0

    @property
    def used(self) -> float:
        """Bytes of all that is held."""
        return float(self._bytes) if self._mean is None else self._mean * len(self._held)

    @property
    def capacity(self) -> int | None:
        """Shapes that the limit holds; None before the first has been measured."""
        return int(self.limit // self.mean) if self.mean > 0.0 else None

    def put(self, key: Key, nbytes: int) -> None:
        """A shape has got its graphs, or more of them."""
        if self._mean is None:
            self._bytes += max(0, nbytes)
            self._count += key not in self._held
        self._held[key] = None

    def use(self, key: Key) -> None:
        """A shape is used: it goes last."""
        self._held.move_to_end(key)

    def in_the_way(self, keep: Collection[Key]) -> Key | None:
        """What makes room for one more, if that is needed; None if not, or if nothing can."""
        return None if self.used + self.mean <= self.limit else self.oldest_but(keep)

    def oldest_but(self, keep: Collection[Key]) -> Key | None:
        """What was used longest ago, of those that need not be kept."""
        return next((key for key in self._held if key not in keep), None)

    def drop(self, key: Key) -> None:
        """A shape has given up its graphs."""
        if self._mean is None:
            self._mean = self.mean
        del self._held[key]
