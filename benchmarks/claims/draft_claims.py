"""Claims of draft lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.claims import recompute
from benchmarks.claims.claim import Claim, Planned, Quote, Run
from benchmarks.claims.depends import CONTROLLING

RESULTS = "docs/draft-results.md"
ADAPTIVE = "docs/adaptive-verification.md"
ADAPTIVE_RESULTS = "docs/adaptive-results.md"
FEEDING = (
    "vllm_nfp/draft/verify_costs.py",
    "vllm_nfp/draft/cost_rows.py",
    "vllm_nfp/draft/cost_tables.py",
    "vllm_nfp/session/cost_feed.py",
    "vllm_nfp/session/cost_follower.py",
    "vllm_nfp/session/cost_grounds.py",
    "vllm_nfp/session/cost_source.py",
    "vllm_nfp/session/cost_versions.py",
    "vllm_nfp/session/placed_tables.py",
    "vllm_nfp/session/step_prices.py",
    "vllm_nfp/session/step_rests.py",
    "vllm_nfp/adapter/drafter_graphs.py",
    "vllm_nfp/adapter/verification.py",
    "vllm_nfp/adapter/whole_steps.py",
    "vllm_nfp/adapter/cut_steps.py",
)
"""What a server verifies with measured costs, and in which CUDA graphs it drafts."""


SERVING = (
    "python -m benchmarks.drafts.servers --prompt-tokens 1024 --watch-stalls --within {within} "
    "--gpu 0:0.7,0.9..0.5,0.9,0.5:1,4,16,32,64,128 --out {out} --shape "
)
"""Real servers at the defaults, at four acceptances and six loads."""


def claims() -> Iterator[Claim]:
    """Tables and the live controller, in an engine stepped by hand; a table's CUDA graphs."""
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
                "python -m benchmarks.drafts.lengths --shape qwen3-8b --layers 24 --kv-gib 30 "
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
    yield Claim(
        "table-graphs-h200",
        "A server with an EAGLE-3 head and a table of six draft lengths, vLLM alone over the same "
        "with graphs found for each length, tokens/s at 16 and 64 requests: K = 2 {two_16} and "
        "{two_64}, K = 3 {three_16} and {three_64}, K = 4 {four_16} and {four_64}; loads without "
        "a token for 0.2 s and more: {stalled} of {loads}, and {stalled_mended} of {loads_mended}",
        "none; one server each",
        "{loads} and {loads_mended} loads of 2.2 s",
        recompute.table_graphs,
        "benchmarks/results/2026-11-28-h200x4-at-defaults/table-graphs",
        Run(
            (
                "python -m benchmarks.drafts.servers --gpu 1:0.7:16,64 --alone --as-is "
                "--watch-stalls --within {within} --out {out}/as-is",
                "python -m benchmarks.drafts.servers --gpu 1:0.7:16,64 --alone "
                "--watch-stalls --within {within} --out {out}/mended",
            ),
            259,
        ),
        "c8f0e7a",
        "2026-11-28",
        "H200, vLLM 0.33.0",
        ("vllm_nfp/draft/length_graphs.py", "vllm_nfp/adapter/length_graphs.py"),
        (
            Quote(RESULTS, "| K = 2 | {two_16} | {two_64} |"),
            Quote(RESULTS, "| K = 3 | {three_16} | {three_64} |"),
            Quote(RESULTS, "| K = 4 | {four_16} | {four_64} |"),
            Quote(
                RESULTS,
                "in {stalled} of {loads} loads the server made no token for 0.2 s and more, with "
                "the mended choice in {stalled_mended} of {loads_mended}",
            ),
        ),
    )
    yield _verification(
        "verification-h200",
        "Adaptive verification with measured costs and 4 drafts a step, Qwen3-8B with 36 layers "
        "and recorded drafts: ahead of vLLM's own costs at {ahead} of {loads} loads, by {least} to "
        "{most} % and {mean} % on average, {mean_few} % at 8 requests and fewer; within 2 % of the "
        "best fixed draft length at {near_best}, the worst {worst} of it",
        "dense", "qwen3-8b --layers 36", 512, "dd36d0a",
        (
            "measured ones are ahead at {ahead} of {loads} loads, by {least} to {most} %: "
            "{mean} % on average, and {mean_few} % at 8 requests and fewer",
            "is met at {near_best} of {loads} loads. Elsewhere it is missed: the\n  least is "
            "{worst}.",
        ),
    )  # fmt: skip
    yield _verification(
        "verification-experts-h200",
        "The same with experts, Qwen3-30B-A3B with 20 of 48 layers, where the host decides: ahead "
        "of vLLM's own costs at {ahead} of {loads} loads, {behind} % behind at the worst, {mean} % "
        "ahead on average and {mean_few} % at 8 requests and fewer; within 2 % of the best fixed "
        "draft length at {near_best}, the worst {worst} of it",
        "experts", "qwen3-30b-a3b --layers 20", 520, "ae77f58",
        (
            "measured ones are ahead at {ahead} of {loads} loads, by {mean} % on average and "
            "{mean_few} % at 8 requests and fewer. At 64 requests they are\n  {behind} % behind",
            "is met at {near_best} of {loads} loads; the least is {worst}.",
        ),
    )  # fmt: skip
    yield Claim(
        "verification-experts-earlier-h200",
        "With experts and shorter loads: within 2 % of the best fixed draft "
        "length at {near_best} of {loads} loads, the worst {worst} of it. Measured costs chose in "
        "{fed} of its passes: {fed_mean} of the best fixed length on average, the worst "
        "{fed_worst}. The drafter's graphs drafted what its pass in pieces did: {equal} of "
        "{drafts} drafts in {passes} steps",
        "one or two passes, servers in turn",
        "{loads} loads",
        recompute.verification_earlier,
        "benchmarks/results/2026-11-29-h200-experts-turns",
        Run(
            (
                "python -m benchmarks.verification.turns --shape qwen3-30b-a3b --layers 20 "
                "--traces benchmarks/results/2026-11-28-draft-traces-gpu/traces.npz --time-host "
                "--within {within} --out {out}",
            ),
            458,
        ),
        "511f319",
        "2026-11-29",
        "H200, vLLM 0.32.0; the drafter's graphs on 0.33.0 too",
        FEEDING,
        (
            Quote(
                ADAPTIVE_RESULTS,
                "| 0.33 | {near_best_added} of {loads_added} | {worst_added} | {own_added} | "
                "{fed_added} | {fed_mean_added}, {fed_worst_added} | {unfed_added} | "
                "{unfed_mean_added} |",
            ),
            Quote(
                ADAPTIVE_RESULTS,
                "| 0.32 | {near_best} of {loads} | {worst} | {own} | {fed} | {fed_mean}, "
                "{fed_worst} | {unfed} | {unfed_mean} |",
            ),
            Quote(ADAPTIVE_RESULTS, "priced apart: {fed_near} of {fed} passes within 2 %"),
            Quote(
                ADAPTIVE,
                "In {passes} steps of 1 to 16 requests, {cut} of them of unequal lengths, {equal} "
                "of {drafts} drafts",
            ),
        ),
    )


def _verification(
    name: str, text: str, folder: str, shape: str, within: int, commit: str, quotes: Sequence[str]
) -> Claim:
    """A run of servers in turn."""
    return Claim(
        name,
        text,
        "one pass, servers in turn",
        "{loads} loads",
        recompute.verification,
        f"benchmarks/results/2026-11-29-h200-cut-steps/{folder}",
        Run(
            (
                f"python -m benchmarks.verification.turns --shape {shape} --most-requests 64 "
                "--traces benchmarks/results/2026-11-28-draft-traces-gpu/traces.npz --time-host "
                "--within {within} --out {out}",
            ),
            within,
        ),
        commit,
        "2026-11-29",
        "H200, vLLM 0.33.0",
        FEEDING,
        tuple(Quote(ADAPTIVE_RESULTS, quote) for quote in quotes),
    )


PLANNED = tuple(
    Planned(
        f"drafts-{name}",
        "draft lengths that `recommend` gives after a minute of traffic at the defaults, and live "
        f"control, against every fixed one on real servers, {model}",
        Run((SERVING + shape,), 1500),
        "the benchmark has drafts that differ as text does, and acceptance that falls, since "
        "2026-11-29; shorter runs are in docs/draft-results.md",
    )
    for name, model, shape in (
        ("dense", "Qwen3-8B with 24 layers", "qwen3-8b --layers 24"),
        ("experts", "Qwen3-30B-A3B with 20 layers", "qwen3-30b-a3b --layers 20"),
    )
)
