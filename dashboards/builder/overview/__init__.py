"""The dashboard "NFP overview": the draft length that runs, the best one, and free positions."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder import grafana as g
from dashboards.builder.overview.draft_lengths import draft_lengths
from dashboards.builder.overview.free_positions import free_positions
from dashboards.builder.overview.now import now
from dashboards.builder.overview.probe import probe
from dashboards.builder.overview.verification import verification

UID = "nfp-overview"
TITLE = "NFP overview"


def overview() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    page = g.page(
        UID,
        TITLE,
        "The draft length that runs, the recommended one and what it would gain; free positions per"
        " sequence of the selected servers, and what the probe costs.",
        others={"NFP deep dive": "nfp-deep-dive", "NFP fleet": "nfp-fleet"},
    )
    page.with_variable(
        g.batch_size_variable(
            "Batch sizes",
            "Batch sizes of the bars, in sequences.",
            many=True,
            first=("1", "8", "32"),
        )
    )
    for add_row in (now, draft_lengths, verification, free_positions, probe):
        add_row(page)
    return g.finished(page)
