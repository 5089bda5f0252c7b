"""The row of draft lengths over time."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards.builder import grafana as g
from dashboards.builder.grafana import Frame, Query
from dashboards.builder.overview.selections import (
    GAIN,
    GAIN_LOWER,
    GAIN_UPPER,
    LIVE_FREE,
    RECOMMENDED,
    RUNNING,
)

_DRAFTS = g.per_second("vllm:spec_decode_num_drafts_total")


def draft_lengths(page: dashboard.Dashboard) -> None:
    """Draft lengths, what they gain, and acceptance."""
    g.row(
        page,
        "Draft length over time (with --speculative-config)",
        g.series(
            Frame(
                "Draft length: runs and recommended",
                "Runs: K in force at the batch size of live traffic (the largest of the engines). "
                "Recommended: K with the most tokens per second there (the smallest of the engines)"
                ". Free: free positions - 1. All are medians of the last 5 minutes. Control: the "
                "choice of --nfp-draft-control for the last step.",
                "Runs away from recommended: look at the gain before you change anything. Above "
                "free, every step is slower, which pays while acceptance is high.",
                7,
            ),
            Query(g.steady(f"max({RUNNING})"), "runs"),
            Query(g.steady(f"min({RECOMMENDED})"), "recommended"),
            Query(g.steady(f"min({LIVE_FREE}) - 1"), "free"),
            Query(f"max({g.metric('vllm_nfp_live_draft_length')})", "control, last step"),
            colors={
                "runs": g.VERMILLION,
                "recommended": g.GREEN,
                "free": g.GREY,
                "control, last step": g.SKY,
            },
            dashed=("free",),
            steps=True,
            decimals=0,
            axis="tokens per sequence and step",
        ),
        g.series(
            Frame(
                "Gain at the recommended draft length",
                "Tokens per second at the recommended draft length over those at the one that "
                "runs, less 1, with the 95 % interval (medians of the last 5 minutes; the largest "
                "of the engines).",
                "The whole band above 0 %: change the draft length. A band around 0 %: keep it.",
                6,
            ),
            Query(g.lasting(f"max({GAIN_UPPER}) - 1"), "upper"),
            Query(g.lasting(f"max({GAIN_LOWER}) - 1"), "lower"),
            Query(g.lasting(f"max({GAIN}) - 1"), "gain"),
            colors={"upper": g.SKY, "lower": g.SKY, "gain": g.BLUE},
            band=("upper", "lower"),
            unit="percentunit",
            decimals=0,
            minimum=None,
        ),
        g.series(
            Frame(
                "Tokens per step: drafted and accepted",
                "Mean number of drafted and of accepted tokens per sequence and step, as vLLM "
                "counts them.",
                "Accepted far below drafted: late draft positions do not pay. Accepted close to "
                "drafted: longer drafts may pay.",
                6,
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_draft_tokens_total')} / {_DRAFTS}", "drafted"
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_accepted_tokens_total')} / {_DRAFTS}",
                "accepted",
            ),
            colors={"drafted": g.VERMILLION, "accepted": g.BLUE},
            axis="tokens per sequence and step",
        ),
        g.series(
            Frame(
                "Acceptance by draft position",
                "Fraction of drafts whose token at this position was accepted; 0 is the first.",
                "End the draft where acceptance is too low to pay for the position, even a free "
                "one.",
                5,
            ),
            Query(
                f"{g.per_second('vllm:spec_decode_num_accepted_tokens_per_pos_total', 'position')}"
                f" / on () group_left () {_DRAFTS}",
                "position {{position}}",
            ),
            unit="percentunit",
        ),
    )
