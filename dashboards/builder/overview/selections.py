"""Queries that several rows of the overview share."""

from __future__ import annotations

from dashboards.builder import grafana as g

LINE = ('epsilon="$epsilon"',)
CELL = ('context="$context"', *LINE)
BY_ENGINE = "{{instance}} engine {{engine}}"
RUNNING = g.metric("vllm_nfp_live_running_draft_length")
RECOMMENDED = g.metric("vllm_nfp_live_recommended_draft_length")
GAIN = g.metric("vllm_nfp_live_draft_gain_ratio")
GAIN_LOWER = g.metric("vllm_nfp_live_draft_gain_ratio_lower")
GAIN_UPPER = g.metric("vllm_nfp_live_draft_gain_ratio_upper")


def live_model(name: str, *more: str) -> str:
    """A metric of the whole step where live traffic is."""
    return g.live(name, 'module="model"', *LINE, *more)


LIVE_FREE = live_model("vllm_nfp_positions")
_ON = f"on ({g.ONE_ENGINE})"
LOSING = (
    f"count(({RUNNING} + 1 > {_ON} {LIVE_FREE}) and {_ON} ({RUNNING} > {_ON} {RECOMMENDED})"
    f" and {_ON} ({GAIN_LOWER} > 1))"
)
"""Engines whose drafts exceed the free positions and the recommended length, and surely lose."""
