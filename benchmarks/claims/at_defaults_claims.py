"""Claims of servers at the defaults: how true their answers are, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.claims import recompute, recompute_costs
from benchmarks.claims.claim import Claim, Quote, Run
from benchmarks.claims.depends import ANSWERING, SPENDING

NO_SPREAD = "one run, no spread"
RESULTS = "benchmarks/results/"
COMMAND = "python -m benchmarks.answers.at_defaults --out {out} --shape "
ROW = (
    "| {near} of {boundaries} | {held} | {error}, {error_p90} | {covered} of {points} | "
    "{good} of {drafts} | {worst} |"
)
COSTS = "| {host} | {gpu} | {startup} | {pairs}, {pieces} | {time} | {steps} |"


@dataclass(frozen=True, slots=True)
class Server:
    """A recorded run of benchmarks.answers.at_defaults.

    Attributes:
        shape: its name and further arguments of the command.
        row: how the row in docs/surface-results.md begins, the pairs included; None: no truth was
            measured.
        costs: how the row in docs/overhead.md begins; None: it has none.
    """

    name: str
    model: str
    folder: str
    commit: str
    gpu: str
    shape: str
    within: int
    row: str | None
    costs: str | None = None
    costs_row: str = COSTS
    date: str = "2026-11-28"

    @property
    def run(self) -> Run:
        """What makes its record."""
        return Run((COMMAND + self.shape + " --within {within}",), self.within)


SIDE_BY_SIDE = "2026-11-29-h200x2-overhead/"
SERVERS = (
    Server(
        "dense-h100", "Qwen3-8B", "2026-11-28-h100-at-defaults/dense", "f773c4a",
        "H100, vLLM 0.33.0", "qwen3-8b", 414, "| Qwen3-8B | H100, 0.33 | {pairs} ",
        "| Qwen3-8B | H100, 0.33 ",
    ),
    Server(
        "dense-h200", "Qwen3-8B", "2026-11-28-h200-at-defaults/dense", "4ec0e64",
        "H200, vLLM 0.32.0", "qwen3-8b", 414, "| Qwen3-8B | H200, 0.32 | {pairs} ",
        "| Qwen3-8B | H200, 0.32 ",
    ),
    Server(
        "experts-h100", "Qwen3-30B-A3B", "2026-11-28-h100-at-defaults/moe", "f773c4a",
        "H100, vLLM 0.33.0", "qwen3-30b-a3b", 556, None, "| Qwen3-30B-A3B | H100, 0.33 ",
    ),
    Server(
        "experts-h200", "Qwen3-30B-A3B", "2026-11-29-h200/experts", "a1cafc6",
        "H200, vLLM 0.33.0", "qwen3-30b-a3b --truth-seconds 240", 522,
        "| Qwen3-30B-A3B, experts | H200, 0.33, a1cafc6 | {pairs} ",
        "| Qwen3-30B-A3B | H200, 0.33, a1cafc6 ", date="2026-11-29",
    ),
    Server(
        "fp8-h200", "Qwen3-8B in FP8", "2026-11-28-h200-fp8-images/fp8", "4851083",
        "H200, vLLM 0.33.0", "qwen3-8b --flags '--quantization fp8' --truth-seconds 60", 430,
        "| Qwen3-8B, `--quantization fp8` | H200, 0.33, 4851083 | {pairs} ",
        "| Qwen3-8B, FP8 | H200, 0.33, 4851083 ",
    ),
    Server(
        "latent-attention-h100", "DeepSeek-V2-Lite, passive",
        "2026-11-28-h100-at-defaults/latent-attention", "f773c4a", "H100, vLLM 0.33.0",
        "deepseek-v2-lite", 548, "| DeepSeek-V2-Lite, latent attention | H100, 0.33 | none ",
    ),
    Server(
        "latent-attention-h200", "DeepSeek-V2-Lite", SIDE_BY_SIDE + "latent-attention",
        "934ada2", "H200, vLLM 0.33.0", "deepseek-v2-lite", 567,
        "| DeepSeek-V2-Lite, latent attention | H200, 0.33, 934ada2 | {pairs} ",
        "| DeepSeek-V2-Lite | H200, 0.33, 934ada2 ", date="2026-11-29",
    ),
    Server(
        "gpt-oss-h200", "gpt-oss-20b (MXFP4)", SIDE_BY_SIDE + "gpt-oss", "934ada2",
        "H200, vLLM 0.32.0", "gpt-oss-20b --truth-seconds 240", 566,
        "| gpt-oss-20b, MXFP4 | H200, 0.32, 934ada2 | {pairs} ",
        "| gpt-oss-20b | H200, 0.32, 934ada2 ", date="2026-11-29",
    ),
)  # fmt: skip


def claims() -> Iterator[Claim]:
    """Of each server its answers, if there is a truth, and its costs, if it was probed."""
    for server in SERVERS:
        if server.row is not None:
            yield _answers(server, server.row)
        if server.costs is not None:
            yield _costs(server, server.costs)


def _answers(server: Server, row: str) -> Claim:
    return Claim(
        f"defaults-{server.name}",
        f"{server.model}, two minutes of traffic at the defaults: t(N) / t(1) off by {{error}} "
        "(median), its 95 % intervals hold for {covered}; boundaries near: {near}; draft "
        "lengths within 2 % of the best: {good}, the worst: {worst}; right after the start: "
        "{start_near} and {start_good}",
        NO_SPREAD,
        "{points} points, {boundaries} boundaries, {drafts} draft lengths, {pairs} pairs",
        recompute.at_defaults,
        RESULTS + server.folder,
        server.run,
        server.commit,
        server.date,
        server.gpu,
        ANSWERING,
        (Quote("docs/surface-results.md", row + ROW),),
    )


def _costs(server: Server, row: str) -> Claim:
    return Claim(
        f"costs-{server.name}",
        f"{server.model} at the defaults: {{host}} of host and {{gpu}} of GPU memory, {{startup}} "
        "longer start; in 115 s of traffic probes took {time} of the time and delayed {steps} of "
        "decode steps",
        NO_SPREAD,
        "{pairs} pairs and {pieces} pieces at the start",
        recompute_costs.account,
        RESULTS + server.folder,
        server.run,
        server.commit,
        server.date,
        server.gpu,
        SPENDING,
        (Quote("docs/overhead.md", row + server.costs_row),),
    )
