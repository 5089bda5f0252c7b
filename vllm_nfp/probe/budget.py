"""The overhead budget: probing may take a share of the time that real steps take."""

from __future__ import annotations

MOST_SAVED_PROBES = 2.0
"""Allowance that may pile up, in probes: a quiet hour must not end in a burst of them."""


class Budget:
    """Earns a share of each real step's time and spends it on probes.

    A probe starts when its expected cost has been earned. If it costs more, the debt is worked
    off before the next one, so that the share holds by measurement and not by schedule.

    Args:
        share: largest probe time / (real + probe) time.
    """

    def __init__(self, share: float) -> None:
        self._rate = share / (1.0 - share)
        self._saved = 0.0
        self._expected = 0.0
        self.real_seconds = 0.0
        self.probe_seconds = 0.0

    def earn(self, step_seconds: float) -> None:
        """A real step took this long."""
        self.real_seconds += step_seconds
        most = max(MOST_SAVED_PROBES * self._expected, self._rate * step_seconds)
        self._saved = min(self._saved + self._rate * step_seconds, max(most, self._saved))

    def affords(self, expected_seconds: float) -> bool:
        """Whether a probe of this cost may start now."""
        self._expected = expected_seconds
        return self._rate > 0.0 and self._saved >= expected_seconds

    def spend(self, cost_seconds: float) -> None:
        """A probe took this long."""
        self._saved -= cost_seconds
        self.probe_seconds += cost_seconds

    @property
    def overhead_ratio(self) -> float:
        """Share of all device time that probes took so far."""
        total = self.real_seconds + self.probe_seconds
        return self.probe_seconds / total if total else 0.0
