"""Which shapes have their CUDA graphs, within limits of GPU and host memory.

The policy alone: captures, and giving graphs up, are calls that it is handed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vllm_nfp.probe.memory import GpuMemory, HostMemory

logger = logging.getLogger("vllm.nfp")

Key = TypeVar("Key", bound=Hashable)

LEAST_FREE_BYTES = 64 << 20
"""Free memory of the device below which nothing is made ready after the start."""


@dataclass(frozen=True, slots=True)
class GraphRoom:
    """What is known of the memory that CUDA graphs take."""

    shape_bytes: float = 0.0
    """Of the graphs of one shape; 0 before the first."""
    capacity: int | None = None
    """Shapes whose graphs fit the limit; None before the first has been measured."""
    largest_tokens: int | None = None
    """Of the largest graph that the limit allows; None until it is known."""
    pool_bytes: int = 0
    """Of the largest piece of the graphs' memory pool that a graph could use."""


class GraphCache(Generic[Key]):
    """The shapes that have graphs; those that were not used for longest make room for others.

    The driver takes memory in larger pieces than a graph needs and reuses what it got back, so that
    single measurements mislead: once a shape had to make room, each counts as the mean of all until
    then.

    Args:
        limit: bytes of GPU memory for all graphs.
        memory: what the probe takes from the GPU.
        host: what it takes from the host.
        give_up: gives up the graphs of a shape.
        on_empty: called when the last shape has given up its graphs.
    """

    def __init__(
        self,
        limit: int,
        memory: GpuMemory,
        host: HostMemory,
        give_up: Callable[[Key], None],
        on_empty: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self._memory = memory
        self._host = host
        self._give_up = give_up
        self._on_empty = on_empty
        self._held: OrderedDict[Key, None] = OrderedDict()
        self._bytes = 0
        self._count = 0
        self._mean: float | None = None
        self._largest_tokens: int | None = None
        self._pool_bytes = 0
        self._pool_allowance = 0
        """Growth of the graphs' pool that is already taken off the limit."""

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def room(self) -> GraphRoom:
        """What is known of the memory that graphs take."""
        mean = self.mean
        capacity = int(self.limit // mean) if mean > 0.0 else None
        return GraphRoom(mean, capacity, self._largest_tokens, self._pool_bytes)

    @property
    def mean(self) -> float:
        """Bytes of one shape; 0 before the first."""
        if self._mean is not None:
            return self._mean
        return self._bytes / self._count if self._count else 0.0

    @property
    def used(self) -> float:
        """Bytes of all graphs."""
        return float(self._bytes) if self._mean is None else self._mean * len(self._held)

    @property
    def fits(self) -> bool:
        """The graphs are within the limit."""
        return self.used <= self.limit

    @property
    def device_is_full(self) -> bool:
        """What the device has left is left to the server."""
        return self._memory.free < LEAST_FREE_BYTES

    def allow(self, tokens: int, pool_bytes: int = 0) -> None:
        """Allow graphs of up to so many tokens.

        Args:
            pool_bytes: of the largest piece of the pool that they find free.
        """
        self._largest_tokens = tokens
        self._pool_bytes = max(self._pool_bytes, pool_bytes)

    def allow_growth(self, tokens: int, pool_bytes: int) -> None:
        """Allow graphs of up to so many tokens, for which the pool will grow by so much."""
        self.allow(tokens, pool_bytes)
        self._pool_allowance = pool_bytes
        self.limit -= pool_bytes

    def add(self, key: Key, capture: Callable[[], None], keep: Collection[Key]) -> None:
        """Capture a graph of a shape; other shapes may give up theirs for it.

        Args:
            keep: shapes that keep their graphs.
        """
        if key not in self:
            self._make_room(keep)
        change = self._host.track(lambda: self._memory.track(capture))
        self._take_off(change.pool)
        if self._mean is None:
            self._bytes += max(0, change.driver)
            self._count += key not in self
        self._held[key] = None

    def warm_up(self, run: Callable[[], None]) -> None:
        """Run what a graph will capture; what stays reserved for it is taken off the limit."""
        self._take_off(self._memory.track(run, expected=0.0).pool)

    def _take_off(self, pool_bytes: int) -> None:
        allowed = min(self._pool_allowance, max(0, pool_bytes))
        self._pool_allowance -= allowed
        grown, held = max(0, pool_bytes) - allowed, self.limit >= 0
        self.limit -= grown
        if held and self.limit < 0:
            logger.warning(
                "vllm-nfp: CUDA graphs of the probe took %d MiB for activations, which "
                "graph_memory_mib does not hold: no further shape is captured, and most answers "
                "stay predicted. To measure more, raise graph_memory_mib in --nfp-config by as "
                "much",
                grown >> 20,
            )

    def measure_again(self) -> float:
        """Forget what a shape takes until others were captured; bytes of one until now."""
        before = self.mean
        self._bytes = self._count = 0
        return before

    def settle(self, before: float) -> None:
        """Count each shape as the smaller of two looks.

        What another process takes makes a shape seem larger, and never smaller.

        Args:
            before: bytes of one shape by the first look.
        """
        looked, shape = self._count, before if not self._count else min(before, self.mean)
        taken = before * (len(self._held) - looked) + self._bytes
        self._count = len(self._held)
        self._bytes = round(shape * self._count)
        self._memory.correct(self._bytes - round(taken))

    def use(self, key: Key) -> None:
        """A shape is used: if it has graphs, it keeps them for longest."""
        if key in self:
            self._held.move_to_end(key)

    def evict(self, key: Key) -> None:
        """Give up the graphs of a shape."""
        self._memory.track(lambda: self._give_up(key), expected=-self.mean)
        if self._mean is None:
            self._mean = self.mean
        del self._held[key]
        if not self._held:
            self._on_empty()

    def _make_room(self, keep: Collection[Key]) -> None:
        """Have older shapes give up their graphs for one more; at the host's limit one for one."""
        oldest = self._oldest_but(keep) if self._host.is_full else None
        oldest = oldest or self._in_the_way(keep)
        while oldest is not None:
            self.evict(oldest)
            oldest = self._in_the_way(keep)

    def _in_the_way(self, keep: Collection[Key]) -> Key | None:
        """What makes room for one more, if that is needed; None if not, or if nothing can."""
        return None if self.used + self.mean <= self.limit else self._oldest_but(keep)

    def _oldest_but(self, keep: Collection[Key]) -> Key | None:
        """What was used longest ago, of those that need not be kept."""
        return next((key for key in self._held if key not in keep), None)
