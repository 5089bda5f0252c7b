"""Claims of servers whose hooks are switched on and off under load."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute_costs
from benchmarks.claims.claim import Claim, Planned, Quote, Run, each
from benchmarks.claims.depends import HOOKING

SAMPLED = "benchmarks/results/2026-11-25-h100-switched/sampled/"
SWITCHED = "python -m benchmarks.overhead.switched --out {out} --within {within} --shape "
DENSE, EXPERTS = Run((SWITCHED + "qwen3-8b",), 2400), Run((SWITCHED + "qwen3-30b-a3b",), 2400)
TWO_GPUS = Run(
    (
        SWITCHED + 'llama-3.1-70b --layers 24 --flags "--tensor-parallel-size 2"',
    ),
    2400,
)  # fmt: skip
CONTROL = Run((SWITCHED + "qwen3-8b --draft eagle3 --variants off,active,control",), 2400)
ALL_LAYERS = "benchmarks/results/2026-11-29-h200x2-overhead-again/"
BEFORE = "benchmarks/results/2026-11-29-h200x2-overhead/"
OPEN = (10, 50, 90)
"""Loads of random arrivals, in percent of the saturated rate."""
LOADS = (*OPEN, 100)
CHANGED_MEANS = {"experts": (50,), "tp2": (10,)}
"""Loads at which the interval of the mean inter-token latency leaves out 1."""


def claims() -> Iterator[Claim]:
    """Servers of 2026-11-29, and those of 2026-11-25, which kept less."""
    for name, row, model, shape, gpu, run in (
        ("dense", "dense", "Qwen3-8B, all layers", "qwen3-8b", "H200", DENSE),
        ("experts", "MoE", "Qwen3-30B-A3B, all layers", "qwen3-30b-a3b", "H200", EXPERTS),
        ("tp2", "TP 2", "Llama-70B, 24 layers, TP 2", "llama-3.1-70b", "2 H200", TWO_GPUS),
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
            f"{each('rounds', OPEN)} rounds, without {each('busy', OPEN)} that the benchmark "
            f"disturbed; {each('n', OPEN)} intervals; {each('first', OPEN)} first tokens; "
            f"{each('delayed', OPEN, '_raised')} delayed steps where more were allowed",
            recompute_costs.switched,
            f"{ALL_LAYERS}{name}/switched-{shape}.json",
            run,
            "c743552",
            "2026-11-29",
            f"{gpu}, vLLM 0.33.0",
            HOOKING,
            (
                *_quotes(row),
                Quote("docs/overhead.md", f"{_interval('tokens_100')} {row}"),
                *(
                    Quote(
                        "docs/overhead.md",
                        f"{row} at {load} % {_interval(f'itl_mean_{load}')}",
                    )
                    for load in CHANGED_MEANS.get(name, ())
                ),
            ),
        )
    yield from _before()
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


def _before() -> Iterator[Claim]:
    """The tails, before the background thread waited for prompts."""
    for name, row, model, shape, run in (
        ("dense", "dense", "Qwen3-8B", "qwen3-8b", DENSE),
        ("experts", "MoE", "Qwen3-30B-A3B", "qwen3-30b-a3b", EXPERTS),
    ):
        yield Claim(
            f"overhead-{name}-before",
            f"{model}, all layers, before the background thread waited for steps that read "
            f"prompts, at 10, 50 and 90 % load: inter-token latency p99 {each('itl_p99', OPEN)}, "
            f"time to first token p99 {each('ttft_p99', OPEN)}",
            "bootstrap over rounds, in docs/overhead.md",
            f"{each('rounds', OPEN)} rounds, without {each('busy', OPEN)} that the benchmark "
            "disturbed",
            recompute_costs.switched,
            f"{BEFORE}{name}/switched-{shape}.json",
            run,
            "934ada2",
            "2026-11-29",
            "H200, vLLM 0.33.0",
            HOOKING,
            tuple(
                Quote(
                    "docs/overhead.md",
                    f"| {row} | {load} % | {_interval(f'itl_p99_{load}')} | "
                    f"{_interval(f'ttft_p99_{load}')} | {{rounds_{load}}} |",
                )
                for load in OPEN
            ),
        )


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
        "overhead-control",
        "what overhead-dense shows, with live draft control and an EAGLE-3 head, and the control's "
        "time in the engine core",
        CONTROL,
        "the benchmark could not switch the control until 2026-11-28",
    ),
)
