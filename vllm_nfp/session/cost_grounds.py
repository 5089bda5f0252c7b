"""Which measured costs are founded, and why vLLM's own are to be in force where they are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_nfp.draft.cost_rows import WIDEST, Lack, founded_rows, least_lack, raised
from vllm_nfp.draft.verify_costs import CostRow
from vllm_nfp.results.gather import Findings
from vllm_nfp.session.cost_feed import CostFeed
from vllm_nfp.session.step_prices import launch_seconds
from vllm_nfp.timing import RealSteps

NOT_YET = "no decode step has shown yet at which context steps are to be priced"
LACKING = {
    Lack.CURVE: "at the live context a step cannot have as many positions as drafts would need",
    Lack.TIME: f"t(1) at the live context is not known within a factor of {WIDEST:g} yet",
    Lack.GROUND: (
        "what is predicted of this model or GPU is a guess, and t(N) / t(1) at the live context "
        "was not measured yet"
    ),
    Lack.WIDTH: f"t(N) / t(1) at the live context is not known within a factor of {WIDEST:g} yet",
}
"""What the best known batch size lacks."""
JUMPED = "the machine has changed; its steps are measured again"


class CostGrounds:
    """Asks what the surface knows. The publisher's thread alone uses it.

    Args:
        most_positions: per sequence, that are probed.
        largest_graph: tokens of the largest CUDA graph; 0: there is none.
        never: why vLLM's own costs are to stay in force; empty: they need not.
    """

    def __init__(self, most_positions: int, largest_graph: int, never: str) -> None:
        self._most_positions, self._largest_graph = most_positions, largest_graph
        self._never = never
        self._jumps = 0
        """Of the machine, as of the latest doubt."""

    def rows(
        self, feed: CostFeed, findings: Findings, kinds: Iterable[RealSteps]
    ) -> tuple[CostRow, ...]:
        """The batch sizes that are known well enough.

        Args:
            kinds: of real steps, which show how long launches take.
        """
        rows = founded_rows(
            findings.live_curves, feed.positions, self._largest_graph, findings.guessed
        )
        launches = launch_seconds(kinds, feed.own, self._largest_graph)
        return raised(rows, self._largest_graph, launches)

    def doubt(self, feed: CostFeed, findings: Findings, rows: Sequence[CostRow]) -> str:
        """Why vLLM's own costs are to be in force; empty if these rows are."""
        jumped, self._jumps = findings.jumps != self._jumps, findings.jumps
        if feed.fault or self._never:
            return feed.fault or self._never
        if feed.positions > self._most_positions:
            return (
                f"a step may have {feed.positions} positions per sequence, above max_positions "
                f"{self._most_positions}: raise --nfp-max-positions"
            )
        if jumped:
            return JUMPED
        return "" if rows else self._lacking(feed, findings)

    def _lacking(self, feed: CostFeed, findings: Findings) -> str:
        points = findings.live_curves
        if not points:
            return NOT_YET
        lack = least_lack(points, feed.positions, self._largest_graph, findings.guessed)
        return LACKING[lack]
