"""The claims that README and docs make today and that have a record."""

from __future__ import annotations

from benchmarks.claims import recompute
from benchmarks.claims.claim import Claim, Quote

RESULTS = "benchmarks/results/"
CHOOSING = ("vllm_nfp/draft/schedule.py", "vllm_nfp/draft/demand.py", "vllm_nfp/draft/sharing.py")
ANSWERING = ("vllm_nfp/surface", "vllm_nfp/principle", "vllm_nfp/probe", *CHOOSING)
PREDICTING = ("vllm_nfp/principle",)
CONTROLLING = (*CHOOSING, "vllm_nfp/draft/live")
COSTING = (
    "vllm_nfp/adapter", "vllm_nfp/probe", "vllm_nfp/schedule", "vllm_nfp/session",
    "vllm_nfp/timing", "vllm_nfp/surface",
)  # fmt: skip
NO_SPREAD = "one run, no spread"


def _at_defaults(
    name: str, model: str, folder: str, commit: str, gpu: str, command: str, *quotes: Quote
) -> Claim:
    return Claim(
        name,
        f"{model}, two minutes of traffic at the defaults: t(N) / t(1) off by {{error}} (median), "
        "its 95 % intervals hold for {covered}; {near} of boundaries near; {good} of draft lengths "
        "within 2 % of the best, the worst at {worst}",
        NO_SPREAD,
        "{points} points, {boundaries} boundaries, {drafts} draft lengths, {pairs} pairs",
        recompute.at_defaults,
        RESULTS + folder,
        (command,),
        commit,
        "2026-11-28",
        gpu,
        ANSWERING,
        quotes,
    )


def _row(text: str) -> Quote:
    return Quote("docs/surface.md", text)


ROW = (
    "| {near} of {boundaries} | {held} | {error}, {error_p90} | {covered} of {points} | "
    "{good} of {drafts} | {worst} |"
)
RUN = "python -m benchmarks.at_defaults --out {out} "

CLAIMS = (
    _at_defaults(
        "defaults-dense-h100",
        "Qwen3-8B",
        "2026-11-28-h100-at-defaults/dense",
        "f773c4a",
        "H100, vLLM 0.33.0",
        RUN + "--shape qwen3-8b --within 414",
        Quote("README.md", "all {drafts} draft lengths it implies were within 2 % of the best"),
        _row("| Qwen3-8B | H100, 0.33 | {pairs} " + ROW),
    ),
    _at_defaults(
        "defaults-dense-h200",
        "Qwen3-8B",
        "2026-11-28-h200-at-defaults/dense",
        "4ec0e64",
        "H200, vLLM 0.32.0",
        RUN + "--shape qwen3-8b --within 414",
        _row("| Qwen3-8B | H200, 0.32 | {pairs} " + ROW),
    ),
    _at_defaults(
        "defaults-experts-h100",
        "Qwen3-30B-A3B",
        "2026-11-28-h100-at-defaults/moe",
        "f773c4a",
        "H100, vLLM 0.33.0",
        RUN + "--shape qwen3-30b-a3b --within 556",
        _row("| Qwen3-30B-A3B, experts | H100, 0.33 | {pairs} " + ROW),
    ),
    _at_defaults(
        "defaults-fp8-h100",
        "Qwen3-8B in FP8",
        "2026-11-28-h100-at-defaults/fp8",
        "f773c4a",
        "H100, vLLM 0.33.0",
        RUN + "--shape qwen3-8b --flags '--quantization fp8' "
        '--engine-args \'{{"quantization":"fp8"}}\' --within 552',
        _row("| Qwen3-8B, `--quantization fp8` | H100, 0.33 | {pairs} of 4 shapes " + ROW),
    ),
    _at_defaults(
        "defaults-latent-attention-h100",
        "DeepSeek-V2-Lite, passive",
        "2026-11-28-h100-at-defaults/latent-attention",
        "f773c4a",
        "H100, vLLM 0.33.0",
        RUN + "--shape deepseek-v2-lite --within 548",
        _row("| DeepSeek-V2-Lite, latent attention | H100, 0.33 | none " + ROW),
    ),
    Claim(
        "inter-token-latency",
        "Dense model, median inter-token latency over that with hooks off: {ratio_10} at 10 % "
        "load, {ratio_50} at 50 %",
        "[{lower_10}, {upper_10}], [{lower_50}, {upper_50}] over rounds",
        "{rounds} rounds, {n_10} and {n_50} intervals",
        recompute.inter_token_latency,
        RESULTS + "2026-11-25-h100-switched/sampled/dense/switched-qwen3-8b.json",
        ("python -m benchmarks.switched --shape qwen3-8b --layers 24 --kv-gib 14 --out {out}",),
        None,
        "2026-11-25",
        "H100, vLLM 0.32.0",
        COSTING,
        (
            Quote("README.md", "[{ratio_10} and {ratio_50} times](docs/overhead.md#measured)"),
            Quote(
                "docs/overhead.md",
                "{ratio_10} [{lower_10}, {upper_10}]",
            ),
            Quote("docs/overhead.md", "{ratio_50} [{lower_50}, {upper_50}]"),
        ),
    ),
    Claim(
        "draft-lengths",
        "Within 2 % of the best fixed draft length: `recommend` at {ours} of {points} points, the "
        "live controller at {live}, the documented table at {documented}; where timing repeats, "
        "{steady_ours} and {steady_live} of {steady}. The worst of `recommend` there: "
        "{steady_ours_worst}",
        "none",
        "{points} points; {steady} with repeatable timing",
        recompute.draft_lengths,
        RESULTS + "2026-11-26-h100-draft-lengths",
        (
            "python -m benchmarks.draft_lengths --shape qwen3-8b --layers 24 --kv-gib 30 "
            "--plain-kv-gib 17 --long-batch 16 --out {out}",
        ),
        None,
        "2026-11-26",
        "2 H100, vLLM 0.32.0",
        CONTROLLING,
        (
            Quote("docs/draft-results.md", "| all {points} | {documented} | {ours} | {live} |"),
            Quote(
                "docs/draft-results.md",
                "| the {steady} with repeatable timing | | {steady_ours}, worst "
                "{steady_ours_worst} | {steady_live} with its trials",
            ),
        ),
    ),
    Claim(
        "roofline-rule",
        "Set-aside shapes: NFP by the roofline rule is {idle} times the measured value (median)",
        "10th to 90th percentile: {idle_p10} to {idle_p90}",
        "{boundaries} boundaries",
        recompute.boundaries,
        RESULTS.rstrip("/"),
        (
            "python -m benchmarks.kernel_sweep --out {out}",
            "python -m benchmarks.whole_models --out {out}",
        ),
        None,
        "2026-11-24",
        "H100, vLLM 0.32.0",
        PREDICTING,
        (
            Quote(
                "README.md",
                "Over [{boundaries} boundaries measured on an H100](docs/validation.md) its "
                "estimate is {idle} times the measured value (median)",
            ),
            Quote("docs/validation.md", "| all | {boundaries} |"),
            Quote("docs/validation.md", "{idle}x [{idle_p10}, {idle_p90}]"),
        ),
    ),
)
