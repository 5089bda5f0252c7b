"""The row of the probe itself."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query
from dashboards.builder.overview.selections import BY_ENGINE


def probe(page: dashboard.Dashboard) -> None:
    """State, overhead and outcome of the probes."""
    g.row(
        page,
        "Probe",
        g.states(
            Frame(
                "State",
                "State of each engine's probe over time.",
                "Long warming under load: see NfpNoEstimate in the runbook. disabled: read the "
                "server's log.",
                8,
            ),
            by="instance, engine",
            legend=BY_ENGINE,
        ),
        g.series(
            Frame(
                "Overhead and budget",
                "Fraction of serving time spent on probes since startup, and the maximum set by "
                "--nfp-overhead-budget.",
                "Above the budget: a fault, see NfpOverheadAboveBudget in the runbook.",
                8,
            ),
            Query(
                f"max by (instance, engine) ({g.metric('vllm_nfp_overhead_ratio')})",
                BY_ENGINE,
            ),
            Query(f"min({g.metric('vllm_nfp_overhead_budget_ratio')})", "budget"),
            colors={"budget": g.VERMILLION},
            dashed=("budget",),
            unit="percentunit",
            decimals=2,
        ),
        g.series(
            Frame(
                "Probes",
                "Probe pairs per minute, by outcome. prepared: warm-up runs and captures while "
                "serving or idle. startup, startup_prepared: at startup. refused: no free KV "
                "blocks or memory. waited: the GPU waited for a launch, so that only modules "
                "count.",
                "Only refused: the KV cache is full and estimates get old.",
                8,
            ),
            Query(f"60 * {g.per_second('vllm_nfp_probes_total', 'outcome')}", "{{outcome}}"),
            colors={
                "measured": g.BLUE,
                "refused": g.VERMILLION,
                "startup": g.GREY,
                "startup_prepared": g.GREY,
            },
            axis="pairs per minute",
        ),
    )
