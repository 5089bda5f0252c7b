"""Where alerts and dashboards send their readers: the runbook, by its absolute address."""

from __future__ import annotations

REPOSITORY = "https://github.com/vllm-nfp/vllm-nfp"
"""The only place that names it. A test compares the alerts' ``runbook_url`` with this."""
RUNBOOK = f"{REPOSITORY}/blob/main/docs/runbook.md"


def runbook_url(alert: str) -> str:
    """The address of an alert's section."""
    return f"{RUNBOOK}#{alert.lower()}"
