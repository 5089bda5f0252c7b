"""Claims of servers whose hooks are switched on and off under load."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute_costs
from benchmarks.claims.claim import Claim, Planned, Quote, Run, each
from benchmarks.claims.depends import HOOKING

SAMPLED = "benchmarks/results/2026-11-25-h100-switched/sampled/"
SWITCHED = "python -m benchmarks.switched --out {out} --within {within} --shape "
DENSE, EXPERTS = Run((SWITCHED + "qwen3-8b",), 2400), Run((SWITCHED + "qwen3-30b-a3b",), 2400)
TWO_GPUS = Run(
    (
        SWITCHED + 'llama-3.1-70b --layers 24 --flags "--tensor-parallel-size 2"',
    ),
    2400,
)  # fmt: skip
CONTROL = Run((SWITCHED + "qwen3-8b --draft eagle3 --variants off,active,control",), 2400)
SIDE_BY_SIDE = "benchmarks/results/2026-11-29-h200x2-overhead/"
OPEN = (10, 50, 90)
"""Loads of random arrivals, in percent of the saturated rate."""
LOADS = (*OPEN, 100)


def claims() -> Iterator[Claim]:
    """Servers with all layers, and those of 2026-11-25, which kept less."""
    for name, model, shape, run in (
        ("dense", "Qwen3-8B, all layers", "qwen3-8b", DENSE),
        ("experts", "Qwen3-30B-A3B, all layers", "qwen3-30b-a3b", EXPERTS),
    ):
        yield Claim(
            f"overhead-{name}",
            f"{model}, over the same server with hooks off, at 10, 50 and 90 % load: inter-token "
            f"latency p50 {each('itl_p50', OPEN)}, p99 {each('itl_p99', OPEN)}, time to first "
            f"token p50 {each('ttft_p50', OPEN)}, p99 {each('ttft_p99', OPEN)}; tokens/s of a "
            f"saturated server {{tokens_100}}. Hooks took {each('hooks', OPEN)} of the time, the "
            f"background {each('threads', OPEN)} of a core",
            "bootstrap over rounds, in docs/overhead.md; half its width at 10 % load: "
            "{itl_p50_10_tells} for p50, {itl_p99_10_tells} for p99",
            f"{{rounds_10}} to {{rounds_90}} rounds; {each('n', OPEN)} intervals; "
            f"{each('first', OPEN)} first tokens; {each('delayed', OPEN, '_raised')} delayed steps "
            "where more were allowed",
            recompute_costs.switched,
            f"{SIDE_BY_SIDE}{name}/switched-{shape}.json",
            run,
            "934ada2",
            "2026-11-29",
            "H200, vLLM 0.33.0",
            HOOKING,
            tuple(_quotes("dense" if name == "dense" else "MoE")),
        )
    yield from _kept_less()


def _quotes(row: str) -> Iterator[Quote]:
    """Its rows of both tables in docs/overhead.md."""
    for load in LOADS:
        cells = [f"{{off_p50_{load}}}"]
        cells += [_interval(f"{name}_{load}") for name in ("itl_p50", "itl_p99")]
        cells += [_interval(f"{name}_{load}") for name in ("ttft_p50", "ttft_p99")]
        cells += [f"{{n_{load}}}, {{first_{load}}}"]
        yield Quote("docs/overhead.md", f"| {row} | {load} % | {' | '.join(cells)} |")
        delayed = f"{{delayed_{load}_raised}}, {{delayed_share_{load}_raised}}"
        delay = f"{{delay_{load}_raised}} {{delay_interval_{load}_raised}}"
        spent = f"{{hooks_{load}}} | {{threads_{load}}}"
        yield Quote("docs/overhead.md", f"| {row} | {load} % | {delayed} | {delay} | {spent} |")


def _interval(name: str) -> str:
    return f"{{{name}}} [{{{name}_lower}}, {{{name}_upper}}]"


def _kept_less() -> Iterator[Claim]:
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
            + tuple(Quote("docs/overhead.md", _interval(f"itl_p50_{load}")) for load in loads),
            added="1923760",
        )


PLANNED = (
    Planned(
        "overhead-tp2",
        "what overhead-dense shows, on two GPUs",
        TWO_GPUS,
        "the run of 2026-11-29 was passive: the benchmark did not tell the ranks of each other",
    ),
    Planned(
        "overhead-control",
        "what overhead-dense shows, with live draft control and an EAGLE-3 head, and the control's "
        "time in the engine core",
        CONTROL,
        "the benchmark could not switch the control until 2026-11-28",
    ),
)
