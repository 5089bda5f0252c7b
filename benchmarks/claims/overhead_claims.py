"""Claims of servers whose hooks are switched on and off under load."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute_costs
from benchmarks.claims.claim import Claim, Planned, Quote, Run
from benchmarks.claims.depends import HOOKING

SAMPLED = "benchmarks/results/2026-11-25-h100-switched/sampled/"
SWITCHED = "python -m benchmarks.switched --out {out} --within {within} --shape "
DENSE, EXPERTS = Run((SWITCHED + "qwen3-8b",), 2400), Run((SWITCHED + "qwen3-30b-a3b",), 2400)
TWO_GPUS = Run(
    (
        SWITCHED + "llama-3.1-70b --layers 24 --variants off,raised "
        '--flags "--tensor-parallel-size 2"',
    ),
    2400,
)  # fmt: skip
CONTROL = Run((SWITCHED + "qwen3-8b --draft eagle3 --variants off,active,control",), 2400)
RATIO = "{itl_p50_%s} [{itl_p50_%s_lower}, {itl_p50_%s_upper}]"


def claims() -> Iterator[Claim]:
    """The runs of 2026-11-25, from before times to first token and delayed steps were kept."""
    for name, model, path, run, row, loads in (
        ("dense", "Dense, 24 layers", "dense/switched-qwen3-8b", DENSE, "dense", (10, 50)),
        ("tp2", "TP 2, 24 layers", "tp/switched-llama-3.1-70b", TWO_GPUS, "TP 2", (10, 50, 90)),
    ):
        yield Claim(
            f"inter-token-latency-{name}",
            f"{model}, median inter-token latency over that with hooks off: {{itl_p50_10}} at 10 % "
            "load, {itl_p50_50} at 50 %",
            "[{itl_p50_10_lower}, {itl_p50_10_upper}], [{itl_p50_50_lower}, {itl_p50_50_upper}] "
            "over rounds",
            "{rounds_10} rounds, {n_10} and {n_50} intervals",
            recompute_costs.switched,
            f"{SAMPLED}{path}.json",
            run,
            None,
            "2026-11-25",
            "2 H100, vLLM 0.32.0" if name == "tp2" else "H100, vLLM 0.32.0",
            HOOKING,
            tuple(
                Quote("docs/overhead.md", f"| {row} | {load} % | {{off_p50_{load}}} |")
                for load in loads
            )
            + tuple(Quote("docs/overhead.md", RATIO.replace("%s", str(load))) for load in loads),
            added="1923760",
        )


PLANNED = (
    Planned(
        "overhead-dense",
        "time to first token and inter-token latency, p50 and p99, at 10, 50 and 90 % load, "
        "tokens/s, what a delayed step costs, time in the hooks and in the probe's threads; "
        "36 layers",
        DENSE,
        "the runs of 2026-11-25 kept neither first tokens nor delayed steps",
    ),
    Planned("overhead-experts", "the same for a model with experts, 48 layers", EXPERTS,
            "as above"),
    Planned("overhead-tp2", "the same on two GPUs", TWO_GPUS, "as above"),
    Planned(
        "overhead-control",
        "the same with live draft control and an EAGLE-3 head, and the control's time in the "
        "engine core",
        CONTROL,
        "the benchmark could not switch the control until 2026-11-28",
    ),
)  # fmt: skip
