"""A wire that notes when it had to wait.

Between engines that take their steps together nobody should ever wait at an exchange: each rank has
begun it some steps ago, before a collective of vLLM's own that all ranks were in. What remains is
the time of the transfer. Where even that was not over, the network or the host cannot do this, and
the probe is better off than on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from vllm_nfp.schedule.lockstep import Wire

LONGEST_WAIT_SECONDS = 1.0
"""Longer than a busy host needs to run a thread of gloo's; shorter than users need to notice."""


class LateError(RuntimeError):
    """An exchange was not over when it was due."""


class PunctualWire:
    """Exchanges over another wire.

    Args:
        wire: carries them.
        now: seconds of a monotonic clock.
    """

    def __init__(self, wire: Wire, now: Callable[[], float] = time.monotonic) -> None:
        self._wire = wire
        self._now = now
        self.rank = wire.rank
        self.size = wire.size
        self.waited = 0.0
        """Seconds that the last exchange was waited for."""

    def begin(self, values: Sequence[int]) -> Any:
        """Put in this rank's values; waits for nothing."""
        return self._wire.begin(values)

    def finish(self, handle: Any) -> Sequence[int]:
        """The maxima over all ranks."""
        begun = self._now()
        values = self._wire.finish(handle)
        self.waited = self._now() - begun
        return values

    def check(self) -> None:
        """Whether the last exchange was there when it was due.

        Raises:
            LateError: if not.
        """
        if self.waited > LONGEST_WAIT_SECONDS:
            raise LateError(
                f"an exchange between the ranks took {self.waited:.1f} s longer than it has time: "
                f"steps would wait for it"
            )
