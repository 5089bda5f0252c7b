"""Words between benchmarks.overhead.switched and the engine core, which no collective call reaches.

A few numbers in a file that both map into memory: the engine core reads one of them at each turn of
its loop, and adds up what the draft control costs it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_WANTED, _COST = struct.Struct("q"), struct.Struct("qqdd")


@dataclass(frozen=True, slots=True)
class CoreCost:
    """What the engine core has spent so far.

    Attributes:
        pid: of its process; 0 before it has begun.
        steps: that the draft control has followed.
        hook_seconds: in which the loop's thread ran the control's code.
        thread_seconds: CPU time of the control's own thread.
    """

    pid: int
    steps: int
    hook_seconds: float
    thread_seconds: float

    def since(self, before: CoreCost) -> dict[str, float]:
        """What came in between, as fields of a turn."""
        return {
            "core_steps": self.steps - before.steps,
            "core_hook_seconds": self.hook_seconds - before.hook_seconds,
            "core_thread_seconds": self.thread_seconds - before.thread_seconds,
        }


class Board:
    """The mapped file; make it with :meth:`create`, in one process."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _WANTED.size + _COST.size)

    @classmethod
    def create(cls, path: Path) -> Self:
        """An empty board: nothing is wanted, nothing was spent."""
        path.write_bytes(bytes(_WANTED.size + _COST.size))
        return cls(path)

    @property
    def wants_control(self) -> bool:
        """Whether the draft control should be in force."""
        return bool(_WANTED.unpack_from(self._memory, 0)[0])

    def want_control(self, wanted: bool) -> None:
        """Have it in force from the next turn of the engine core's loop on, or not."""
        _WANTED.pack_into(self._memory, 0, wanted)

    @property
    def cost(self) -> CoreCost:
        """What was spent so far."""
        return CoreCost(*_COST.unpack_from(self._memory, _WANTED.size))

    def spent(self, cost: CoreCost) -> None:
        """Write what was spent so far."""
        values = cost.pid, cost.steps, cost.hook_seconds, cost.thread_seconds
        _COST.pack_into(self._memory, _WANTED.size, *values)
