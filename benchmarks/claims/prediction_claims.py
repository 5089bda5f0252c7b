"""Claims of the predictor, whose scores are computed by today's code."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute_prediction
from benchmarks.claims.claim import Claim, Quote, Run
from benchmarks.claims.depends import TIMING_KERNELS

KERNELS = Run(
    (
        "python -m benchmarks.prediction.kernel_sweep --out {out}",
        "python -m benchmarks.prediction.whole_models --out {out}",
    )
)
RESULTS = "benchmarks/results"
VALIDATION = "docs/validation.md"


def claims() -> Iterator[Claim]:
    """Against own runs, by ratio and by boundary; against those of others."""
    yield Claim(
        "roofline-rule",
        "Set-aside shapes: NFP by the roofline rule is {idle} times the measured value (median)",
        "10th to 90th percentile: {idle_p10} to {idle_p90}",
        "{boundaries} boundaries",
        recompute_prediction.boundaries,
        RESULTS,
        KERNELS,
        None,
        "2026-11-24",
        "H100, vLLM 0.32.0",
        TIMING_KERNELS,
        (
            Quote(
                "README.md",
                "[{boundaries} boundaries measured on an H100](docs/validation.md) its estimate is "
                "{idle} times the measured value",
            ),
            Quote(VALIDATION, "| all | {boundaries} |"),
            Quote(VALIDATION, "{idle}x [{idle_p10}, {idle_p90}]"),
        ),
        added="7ccfd9c",
    )
    yield Claim(
        "prediction-own",
        "Set-aside shapes: predicted t(N) / t(1) within 5 % at {five} of points and within 10 % at "
        "{ten}. Of the boundaries that a prediction can miss {step} are within a step and {near} "
        "within 10 %, median error {error}; of those whose curves nobody had seen before the "
        "freeze {unseen_step}, {unseen_near} and {unseen_error}",
        "none: all points of one H100",
        "{points} points; {boundaries} boundaries, {unseen_boundaries} of them unseen",
        recompute_prediction.own,
        RESULTS,
        KERNELS,
        None,
        "2026-11-24",
        "H100, vLLM 0.32.0",
        TIMING_KERNELS,
        (
            Quote("README.md", "within 10 % at {ten} of the points"),
            Quote("README.md", "{near} of the {boundaries} that a prediction can miss"),
            Quote(VALIDATION, "{table}"),
            Quote(
                VALIDATION,
                "All unseen rows together: {points} points, {five} of them within 5 % and {ten} "
                "within 10 %; {boundaries} boundaries, {step} within a step and {near} within "
                "10 %, median error {error}. Without the curves that had been seen before the "
                "freeze: "
                "{unseen_boundaries} boundaries, {unseen_step}, {unseen_near}, {unseen_error}.",
            ),
        ),
        added="7ccfd9c",
    )
    yield Claim(
        "prediction-public",
        "Predicted against public kernel times and steps, by module, GPU, type, and seen or "
        "unseen: within 5, 10 and 25 %, and boundaries that can miss.",
        "none",
        "{points} points of unseen sets",
        recompute_prediction.public,
        None,
        Run(("python -m benchmarks.prediction.score_public curves.json",)),
        None,
        "2026-11-28",
        "public",
        ("vllm_nfp/principle",),
        (
            Quote(VALIDATION, "{table}"),
            Quote(
                VALIDATION,
                "All unseen rows together: {points} points, {five} within 5 %, {ten} within 10 %.",
            ),
        ),
    )
