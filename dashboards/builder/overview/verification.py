"""The row of vLLM's adaptive verification: its costs, what it admits, and whether it is stuck."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query

_SOURCES = {
    "real": ("real", g.BLUE),
    "vllm": ("by vLLM's costs", g.ORANGE),
    "measured": ("by measured costs", g.GREEN),
}
"""Of a step's time: legend and colour."""


def verification(page: dashboard.Dashboard) -> None:
    """Costs, admitted drafts, expected and real acceptance, and the flag of a standstill."""
    steps = g.per_second("vllm_nfp_verification_steps_total")
    measured = g.metric("vllm_nfp_verification_steps_total", 'costs="measured"')
    g.row(
        page,
        "Adaptive verification (with enable_adaptive_verification)",
        g.series(
            Frame(
                "Step time: predicted and real",
                "Mean time of recent decode steps with drafting: real, as predicted by the costs "
                "that vLLM measured at startup, and by those of the probe. The real time includes "
                "sampling, the predicted ones do not.",
                "vLLM's costs far from the real time, and measured ones near it: serve with "
                "--nfp-verification-costs.",
                6,
            ),
            *(Query(_seconds(source), legend) for source, (legend, _) in _SOURCES.items()),
            unit="s",
            colors=dict(_SOURCES.values()),
        ),
        g.series(
            Frame(
                "Drafts per step: scheduled and admitted",
                "Mean number of drafted tokens that a step could verify, and of those that it "
                "verifies, over all sequences of the step.",
                "Admitted far below scheduled all the time: drafting is wasted, so lower "
                "num_speculative_tokens.",
                6,
            ),
            Query(_each_step("scheduled_drafts", steps), "scheduled"),
            Query(_each_step("admitted_drafts", steps), "admitted"),
            colors={"scheduled": g.VERMILLION, "admitted": g.BLUE},
            axis="tokens per step",
        ),
        g.series(
            Frame(
                "Accepted tokens: expected and real",
                "Accepted drafted tokens per second: as vLLM expected when it chose the drafts, "
                "and as it counts them.",
                "Expected far from real: vLLM's confidences are wrong, and it admits too many or "
                "too few drafts. Compare with a fixed draft length.",
                5,
            ),
            Query(g.per_second("vllm_nfp_verification_expected_accepted_tokens_total"), "expected"),
            Query(g.per_second("vllm:spec_decode_num_accepted_tokens_total"), "real"),
            colors={"expected": g.ORANGE, "real": g.BLUE},
            axis="tokens per second",
        ),
        g.series(
            Frame(
                "Steps with measured costs",
                "Fraction of the steps with drafts whose drafts were chosen by measured costs. In "
                "the others vLLM's own costs were in force.",
                "0 % with --nfp-verification-costs: the label reason of "
                "vllm_nfp_verification_measured_costs says why.",
                4,
            ),
            Query(f"sum(rate({measured}[$__rate_interval])) / ({steps} > 0)", "measured costs"),
            unit="percentunit",
            colors={"measured costs": g.GREEN},
        ),
        g.number(
            Frame(
                "Admits no drafts",
                "yes: an engine made drafts in its last 100 steps and verified none. vLLM corrects "
                "its confidences by verified drafts alone, so it learns nothing.",
                "yes for minutes: serve without enable_adaptive_verification, or with a fixed "
                "draft length.",
                3,
            ),
            f"max({g.metric('vllm_nfp_verification_stalled')})",
            names={"no": g.GREEN, "yes": g.VERMILLION},
        ),
    )


def _seconds(source: str) -> str:
    seconds = g.metric("vllm_nfp_verification_step_seconds", f'source="{source}"')
    return f"avg({seconds})"


def _each_step(name: str, steps: str) -> str:
    return f"{g.per_second(f'vllm_nfp_verification_{name}_total')} / ({steps} > 0)"
