"""What the probe takes of GPU and host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_OWN = ("RssAnon:", "RssShmem:")
"""Lines of the kernel's account of what lies in RAM. Pages of files (RssFile) are left out: they
are clean copies of kernels and libraries on the disk, which the system drops when it needs room."""

MOST_DRIVER_BYTES = 128 << 20
"""More than the driver ever takes for the graphs of one shape: then another process took memory."""


def host_bytes(status: Path = _STATUS) -> int:
    """Memory of this process in RAM that is no copy of a file; 0 where the kernel does not say."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_OWN))
    except (OSError, ValueError, IndexError):
        return 0


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes more than before."""

    pool: int
    """In PyTorch's reserve: activations, which graphs share."""
    driver: int
    """In the driver: the graphs themselves."""


class GpuMemory:
    """What this process has taken from the GPU, without what other processes take.

    PyTorch knows its own reserve exactly. What the driver takes for a graph shows only in the
    device's free memory, which other processes change as well. A change that is too large for one
    graph is put down to them, and the mean of the other graphs is counted instead.

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

    def correct(self, driver: int) -> None:
        """Add so many bytes to what counts as the driver's part; below 0: others took them."""
        self._driver_total += driver

    def count_reserve(self) -> None:
        """Take all that PyTorch's reserve has grown by for the probe's; before serving begins."""
        self._own = self._reserved() - self._base

    @property
    def free(self) -> int:
        """Bytes of the device that nobody holds."""
        return self._free()

    @property
    def taken(self) -> int:
        """Bytes taken: PyTorch's growth for the probe, and the driver's part of its graphs."""
        return max(0, self._own) + max(0, int(self._driver_total))


class HostMemory:
    """By how much this process's own memory in RAM has grown since the probe was attached.

    The C library keeps what graphs give back, for the next ones. Giving up graphs makes room for as
    many others, and does not make the process smaller.

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
        """Run something that makes graphs, and keep the largest growth."""
        before = self._resident()
        found = change()
        self._largest = max(self._largest, self._resident() - before)
        return found
