"""When to probe while no request is there."""

from __future__ import annotations

IDLE_GRACE_SECONDS = 0.05
"""Time without a request before the first probe of an idle spell."""
IDLE_POLL_SECONDS = 0.002
"""Time between two looks at a probe that is on the device."""
IDLE_AGENDA_SECONDS = 0.2
"""Time between two looks for the next agenda."""
IDLE_REFRESH_SECONDS = 5.0
"""Time between two idle probes that only refresh what is known."""


class IdleTime:
    """Keeps idle probes within their share of the idle time.

    Args:
        share: largest fraction of idle time that probes may take.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._since: float | None = None
        self._next = 0.0
        self.probe_seconds = 0.0
        """Time that probes took while no request was there."""

    def interrupt(self) -> None:
        """A real step comes: the idle spell is over."""
        self._since = None

    def wait(self, now: float) -> float:
        """Seconds until the next probe may start; 0 if one may now.

        Args:
            now: seconds of a monotonic clock, while no request is there.
        """
        if self._since is None:
            self._since = now
            self._next = max(self._next, now + IDLE_GRACE_SECONDS)
        if now < self._next:
            return self._next - now
        return IDLE_REFRESH_SECONDS if self._share <= 0.0 else 0.0

    def spend(self, cost_seconds: float, now: float, settled: bool) -> None:
        """A probe took this long.

        Args:
            settled: probes only refresh what is known.
        """
        self.probe_seconds += cost_seconds
        if self._share <= 0.0:
            return  # other engines planned it, and this one plans none
        pause = cost_seconds * (1.0 / self._share - 1.0)
        self._next = now + (max(pause, IDLE_REFRESH_SECONDS) if settled else pause)
