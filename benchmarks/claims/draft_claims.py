"""Claims of draft lengths."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute
from benchmarks.claims.claim import Claim, Quote, Run
from benchmarks.claims.depends import CONTROLLING

RESULTS = "docs/draft-results.md"


def claims() -> Iterator[Claim]:
    """Tables and the live controller, in an engine stepped by hand."""
    yield Claim(
        "draft-lengths",
        "With a probe that was told the tested batch sizes, contexts and positions: within 2 % of "
        "the best fixed draft length: `recommend` at {ours} of {points} points, the "
        "live controller at {live}, the documented table at {documented}; where timing repeats, "
        "{steady_ours} and {steady_live} of {steady}. The worst of `recommend` there: "
        "{steady_ours_worst}",
        "none",
        "{points} points; {steady} with repeatable timing",
        recompute.draft_lengths,
        "benchmarks/results/2026-11-26-h100-draft-lengths",
        Run(
            (
                "python -m benchmarks.draft_lengths --shape qwen3-8b --layers 24 --kv-gib 30 "
                "--plain-kv-gib 17 --long-batch 16 --out {out}",
            )
        ),
        "9563d44",
        "2026-11-26",
        "2 H100, vLLM 0.32.0",
        CONTROLLING,
        (
            Quote(RESULTS, "| all {points} | {documented} | {ours} | {live} |"),
            Quote(
                RESULTS,
                "| the {steady} with repeatable timing | | {steady_ours}, worst "
                "{steady_ours_worst} | {steady_live} with its trials",
            ),
        ),
    )
