"""When targets that could not be run are tried again."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.types import Shape

FIRST_WAIT_SECONDS = 10.0
"""Time until a target is tried again that could not be run for the moment; doubled each time."""
LONGEST_WAIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class _Wait:
    seconds: float
    until: float


class Waits:
    """Longer and longer waits of targets; times are those of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._waits: dict[Shape, _Wait] = {}

    def begin(self, target: Shape, now: float) -> None:
        """The target could not be run."""
        before = self._waits.get(target)
        seconds = FIRST_WAIT_SECONDS if before is None else 2.0 * before.seconds
        seconds = min(seconds, LONGEST_WAIT_SECONDS)
        self._waits[target] = _Wait(seconds, now + seconds)

    def at(self, now: float) -> frozenset[Shape]:
        """Targets whose wait is not over."""
        return frozenset(target for target, wait in self._waits.items() if now < wait.until)

    def end(self, target: Shape) -> None:
        """The target has been run: its next wait is a first one."""
        self._waits.pop(target, None)
