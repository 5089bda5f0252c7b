"""Whether steps are given the measured costs that are wanted."""

from __future__ import annotations

from vllm_nfp.session.cost_feed import CostFeed


class FeedWatch:
    """Looks at what the feed has counted. The publisher's thread alone uses it."""

    def __init__(self) -> None:
        self._counted = 0, 0
        """Steps at the latest look: all, and those with measured costs."""
        self.unfed = ""
        """Why no step before the latest look had measured costs; empty if they were not wanted,
        some had them or none ran."""

    def look(self, feed: CostFeed, wanted: bool) -> None:
        """See what was given since the look before.

        Args:
            wanted: measured costs were to be in force.
        """
        counted = feed.counts.steps, feed.counts.measured_steps
        ran, fed = counted[0] > self._counted[0], counted[1] > self._counted[1]
        self._counted = counted
        self.unfed = feed.own_because if ran and not fed and wanted else ""
