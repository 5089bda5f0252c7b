"""Claims of servers that run for long, and of outputs that do not change."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute_costs
from benchmarks.claims.claim import Claim, Planned, Quote, Run
from benchmarks.claims.depends import HOOKING, PROBING

RESULTS = "benchmarks/results/"
SOAK = "python -m benchmarks.overhead.soak --out {out} --minutes 60 "


def claims() -> Iterator[Claim]:
    """The soak on a CPU, and identity of outputs on GPUs."""
    yield Claim(
        "soak-cpu",
        "{minutes} minutes on two CPU cores, real compiled model, n-gram drafts, two variables "
        "that keep glibc and oneDNN from growing: resident memory of the last quarter minus that "
        "of the first {resident} of {of}, open files {files}, threads {threads}; {changed} of "
        "{answers} answers changed",
        "none",
        "{scrapes} looks",
        recompute_costs.soak,
        RESULTS + "2026-11-29-soak-cpu-paced/soak.json",
        Run(
            (
                "python -m benchmarks.overhead.soak --out {out} --minutes 26 --real --flags "
                "'--max-model-len 2048 --speculative-config "
                '{{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":4}}\'',
            )
        ),
        "8021006",
        "2026-11-29",
        "CPU, vLLM 0.32.0",
        HOOKING,
        (
            Quote("docs/faults.md", "| looks | {scrapes} |"),
            Quote("docs/faults.md", "without startup | +{resident} of"),
            Quote("docs/faults.md", "at the end | {changed} of {answers} |"),
        ),
    )
    yield Claim(
        "two-engines-h200",
        "Two engines, 8 layers of Qwen3-30B-A3B, experts spread over both, up to half of the time "
        "for probes: all tokens and log-probabilities of {prompts} prompts are those without the "
        "probe; in 30 s of load the first engine measured {between} pairs between steps and {idle} "
        "in dummy batches",
        "none: equal to the bit",
        "{prompts} prompts of {tokens} tokens, {meanwhile} pairs meanwhile",
        recompute_costs.two_engines,
        RESULTS + "2026-11-28-h200x2-alike/data-parallel",
        Run(("python -m benchmarks.engines.data_parallel --table-seconds 30 --out {out}",)),
        "bb127de",
        "2026-11-28",
        "2 H200, vLLM 0.33.0",
        (*PROBING, "vllm_nfp/session/in_waves.py"),
        (
            Quote("docs/parallel.md", "while {meanwhile} pairs ran"),
            Quote("docs/parallel.md", "engines {between} and 289 pairs"),
            Quote("docs/parallel.md", "steps, and {idle} and 11 in dummy batches"),
        ),
    )
    yield Claim(
        "pictures-h200",
        "Qwen2.5-VL-7B shape at the defaults: {chats} chats, {with_pictures} of them with "
        "pictures, have the same tokens and log-probabilities in {rounds} rounds, the last one "
        "after the probe had ended",
        "none: equal to the bit",
        "{meanwhile} pairs during the rounds; {pairs} in all, while {read} further chats with a "
        "picture were answered",
        recompute_costs.pictures,
        RESULTS + "2026-11-28-h200-fp8-images/images",
        Run(("python -m benchmarks.engines.images --out {out}",)),
        "4851083",
        "2026-11-28",
        "H200, vLLM 0.33.0",
        PROBING,
        (
            Quote("docs/models.md", "{chats} chats, {with_pictures} of them with pictures"),
            Quote("docs/models.md", "in {rounds} rounds"),
            Quote("docs/models.md", "{meanwhile} pairs ran during the rounds"),
            Quote("docs/models.md", "{pairs} in all while {read} further chats"),
        ),
    )
    yield Claim(
        "four-engines-cpu",
        "Four engines on a CPU, two layers with 8 experts, up to half of the time for probes: all "
        "tokens and log-probabilities of {prompts} prompts are those without the probe; in 45 s of "
        "load the first engine measured {between} pairs between steps and {idle} in dummy batches",
        "none: equal to the bit",
        "{prompts} prompts of {tokens} tokens, {meanwhile} pairs meanwhile",
        recompute_costs.two_engines,
        RESULTS + "2026-11-29-four-engines-cpu/four-engines",
        Run(
            (
                "env PYTHONPATH=tests/engine python -m benchmarks.engines.data_parallel --trial "
                "--engines 4 --limit-seconds 900 --out {out}",
            )
        ),
        "bf0bd56",
        "2026-11-29",
        "CPU, vLLM 0.32.0",
        (*PROBING, "vllm_nfp/session/in_waves.py"),
        (
            Quote("docs/parallel.md", "while {meanwhile} pairs ran on four engines"),
            Quote("docs/parallel.md", "| four | 45 s of load | {between}, 54, 51, 30 | {idle}, 9,"),
        ),
    )
    yield _identity(
        "h200", "2026-11-27-h200-identity", "b36c624", "2026-11-27", "H200, vLLM 0.33.0",
        "| [b36c624](../benchmarks/results/2026-11-27-h200-identity) | - | {pairs}, {pieces} |",
    )  # fmt: skip
    yield _identity(
        "h100", "2026-11-25-h100-graph-memory", None, "2026-11-25", "H100, vLLM 0.32.0",
        "After {pairs} pairs and {pieces} captures", added="f7f0aa8",
    )  # fmt: skip


def _identity(
    name: str, folder: str, commit: str | None, date: str, gpu: str, text: str,
    added: str | None = None,
) -> Claim:  # fmt: skip
    return Claim(
        f"identity-{name}",
        "Qwen3-8B shape, 36 layers: all tokens and log-probabilities are those without the probe, "
        "after {pairs} pairs and {pieces} pieces made ready between steps",
        "none: equal to the bit",
        "{pairs} pairs",
        recompute_costs.identity,
        f"{RESULTS}{folder}/graph-memory-qwen3-8b.json",
        Run(("python -m benchmarks.memory.graph_memory --shape qwen3-8b --layers 36 --out {out}",)),
        commit,
        date,
        gpu,
        PROBING,
        (Quote("docs/overhead.md", text),),
        added=added,
    )


PLANNED = (
    Planned(
        "soak-gpu",
        "memory, threads and files flat for an hour of mixed traffic with speculation; answers of "
        "a fixed set of prompts the same at start and end; real text of a real model",
        Run(
            (
                SOAK + "--real --flags '--speculative-config "
                '{{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":4}}\'',
            )
        ),
        "it has not run for an hour on a GPU",
    ),
)
