"""Claim: the probe works on two GPUs, and tells what tensor and expert parallelism change.

    python -m benchmarks.tensor_parallel --out DIR
    python -m benchmarks.tensor_parallel --smoke --out DIR

On a machine with two GPUs. All servers start side by side, with KV caches of fixed size and four
layers of a Llama-70B shape, eight of a Qwen3-30B-A3B one; then one at a time is under load.

1. ``dense-tp1``, ``moe-tp1`` (one on each GPU), ``dense-tp2``, ``moe-tp2``, ``moe-ep2`` (on both):
   NFP and time of every module, side by side; every pair is kept.
2. ``off`` against ``dense-tp2``: the same greedy prompts, one after the other, without the probe
   and with one that takes up to half of the time; token ids and log-probabilities must be equal.

What the probe costs there is measured by :mod:`benchmarks.switched`.

``--smoke`` starts one small model with and without the probe on two GPUs, and says what went wrong
if anything did. Every part is written as soon as it is there.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environment, load, server, shapes
from benchmarks.packing import pack
from benchmarks.probe_account import probe_state
from benchmarks.traffic import Load
from vllm_nfp.start.ports import free_ports
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.requests import complete

HOST_ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
"""NVLink multicast stays off, as on hosts that give it to nobody."""
START_LIMIT_SECONDS = 300.0
PROMPTS = 6
PROMPT_TOKENS = 200
ANSWER_TOKENS = 128
EPSILON = 0.1


@dataclass(frozen=True)
class Plan:
    """One server."""

    name: str
    shape: str
    layers: int
    kv_gib: float
    """Of each rank."""
    tensor_parallel: int
    probe: Mapping[str, object] | None
    gpu: int | None = None
    """The GPU of a server that has one."""
    expert_parallel: bool = False


TABLE: dict[str, object] = {
    "startup_seconds": 0.0,
    "capture_seconds": 60.0,
    "graph_memory_mib": 1536,
    "batch_sizes": [1, 8, 32],
    "contexts": [1024, 4096],
    "positions": [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64],
    "max_positions": 64,
    "overhead_budget": 0.5,
    "step_share": 1.0,
    "min_samples": 6,
    "publish_seconds": 1.0,
}
SMOKE_TABLE = {**TABLE, "startup_seconds": 4.0, "capture_seconds": 20.0, "max_positions": 16}
SMOKE_TABLE |= {"batch_sizes": [1, 8], "contexts": [512], "positions": [1, 2, 4, 8, 16]}
TRIAL_TABLE = {**SMOKE_TABLE, "contexts": [64], "max_positions": 4, "positions": [1, 2, 4]}


def plans(trial: bool) -> tuple[Plan, ...]:
    """The servers of a full run; tiny ones to try the script without a GPU."""
    if trial:
        return (
            Plan("dense-tp1", "tiny", 2, 0.05, 1, TRIAL_TABLE, gpu=0),
            Plan("dense-tp2", "tiny", 2, 0.05, 2, TRIAL_TABLE),
            Plan("off", "tiny", 2, 0.05, 2, None),
        )
    dense, moe = ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 8)
    return (
        Plan("dense-tp1", *dense, 2.3, 1, TABLE, gpu=0),
        Plan("moe-tp1", *moe, 2.3, 1, TABLE, gpu=1),
        Plan("dense-tp2", *dense, 1.2, 2, TABLE),
        Plan("moe-tp2", *moe, 1.2, 2, TABLE),
        Plan("moe-ep2", *moe, 1.2, 2, TABLE, expert_parallel=True),
        Plan("off", *dense, 1.2, 2, None),
    )


def smoke_plans(trial: bool) -> tuple[Plan, ...]:
    """A small model with the probe and without."""
    shape, layers, kv = ("tiny", 2, 0.05) if trial else ("qwen3-1.7b", 6, 1.0)
    table = TRIAL_TABLE if trial else SMOKE_TABLE
    return (
        Plan("smoke-tp2", shape, layers, kv, 2, table),
        Plan("off", shape, layers, kv, 2, None),
    )


class Run:
    """Servers that are up, and where their results go.

    Args:
        out: folder for results.
        work: folder for models, logs and caches.
        limit_seconds: of everything.
        trial: without GPUs.
    """

    def __init__(self, out: Path, work: Path, limit_seconds: float, trial: bool) -> None:
        self.out = out
        self.work = work
        self.trial = trial
        self._begun = time.monotonic()
        self._limit = limit_seconds
        self.urls: dict[str, str] = {}
        self.environment: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self._begun + self._limit - time.monotonic()

    def say(self, text: str) -> None:
        """Print with the time since the start."""
        print(f"[{time.monotonic() - self._begun:5.0f} s] {text}", flush=True)

    def start(self, stack: ExitStack, wanted: tuple[Plan, ...]) -> None:
        """Start all at once; those that fail are named, and their logs kept."""
        ports = free_ports(len(wanted))
        self.environment = {**environment.record(), "topology": _topology()}
        self.write("environment", self.environment)
        started = [
            (plan, stack.enter_context(self._spec(plan, port).start()))
            for plan, port in zip(wanted, ports, strict=True)
        ]
        limit = self.left if self.trial else START_LIMIT_SECONDS
        until = time.monotonic() + min(limit, self.left - 60.0)
        for plan, one in started:
            try:
                one.wait_until_healthy(max(1.0, until - time.monotonic()))
                self.urls[plan.name] = one.url
                self.say(f"{plan.name} is up")
            except ProcessError as error:
                self.say(f"{plan.name} FAILED: {error}")
                one.child.stop()  # its GPU memory is for the others
            self.keep_log(plan.name)

    def _spec(self, plan: Plan, port: int) -> server.Spec:
        flags = [
            "--kv-cache-memory-bytes", str(int(plan.kv_gib * (1 << 30))),
            "--tensor-parallel-size", str(plan.tensor_parallel),
            "--max-num-seqs", "256", "--max-num-batched-tokens", "2048",
        ]  # fmt: skip
        flags += ["--enable-expert-parallel"] if plan.expert_parallel else []
        extra = {**HOST_ENVIRONMENT, "VLLM_CACHE_ROOT": str(self.work / f"cache-{plan.name}")}
        if self.trial:
            flags += ["--enforce-eager", "--max-model-len", "1024"]
            flags += ["--distributed-executor-backend", "mp"]
            extra |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        else:
            flags += ["--gpu-memory-utilization", "0.05", "--max-model-len", "8192"]
            if plan.gpu is not None:
                extra["CUDA_VISIBLE_DEVICES"] = _visible(plan.gpu)
        return server.Spec(
            model=shapes.write_model(self.work / f"model-{plan.name}", plan.shape, plan.layers),
            log=self.work / f"{plan.name}.log",
            port=port,
            flags=tuple(flags),
            probe=plan.probe,
            output_dir=self.work / f"probe-{plan.name}" if plan.probe else None,
            extra=extra,
        )

    def write(self, name: str, result: object) -> None:
        """Keep a result."""
        (self.out / f"{name}.json").write_text(json.dumps(result))

    def keep_log(self, name: str) -> None:
        """Keep what a server has logged so far."""
        shutil.copy(self.work / f"{name}.log", self.out / f"{name}-server.log")


def _visible(gpu: int) -> str:
    """The GPU's name for CUDA, among those that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")[gpu]


def _topology() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def measure_table(run: Run, plan: Plan, seconds: float) -> dict[str, Any]:
    """Put load on a server with the probe; its snapshot, which is written with all pairs."""
    phases = ((1, 50), (2, 50)) if run.trial else ((8, 900), (32, 900), (1, 900))
    for concurrency, prompt_tokens in phases:
        load.run(
            Load(
                run.urls[plan.name],
                str(run.work / f"model-{plan.name}"),
                shapes.vocab_size(plan.shape),
                concurrency,
                prompt_tokens,
                400,
                max(1.0, seconds / len(phases) - 1.0),
                seed=concurrency,
            ),
            warmup_seconds=1.0,
        )
    time.sleep(2.0)  # the last pairs are published
    folder = run.work / f"probe-{plan.name}"
    snapshot: dict[str, Any] = json.loads((folder / "engine-0.json").read_text())
    run.write(
        f"{plan.name}-table",
        {
            "shape": plan.shape,
            "layers": plan.layers,
            "tensor_parallel": plan.tensor_parallel,
            "expert_parallel": plan.expert_parallel,
            "environment": run.environment,
            "after": environment.gpu_state(),
            "probe": plan.probe,
            "snapshot": snapshot,
        },
    )
    if (folder / "samples-0.jsonl").exists():
        pack(folder / "samples-0.jsonl", run.out / f"{plan.name}-pairs.jsonl.gz")
    for extra in ("environment-0.json", "profile-0.json"):
        if (folder / extra).exists():
            shutil.copy(folder / extra, run.out / f"{plan.name}-{extra}")
    run.keep_log(plan.name)
    run.say(f"{plan.name}: {snapshot['state']} {snapshot['reason']} {snapshot['probes']}")
    return snapshot


def compare_outputs(run: Run, plain: str, probed: str, plan: Plan) -> dict[str, Any]:
    """The same greedy prompts to both servers, one at a time."""
    rng = np.random.default_rng(0)
    vocabulary = shapes.vocab_size(plan.shape)
    tokens = 40 if run.trial else PROMPT_TOKENS
    prompts = [rng.integers(2, vocabulary, tokens).tolist() for _ in range(PROMPTS)]
    before = probe_state(run.urls[probed])["probes_total"]
    answers = {name: [_answer(run, name, p) for p in prompts] for name in (plain, probed)}
    time.sleep(2.0)
    after = probe_state(run.urls[probed])["probes_total"]
    pairs = sum(after.values()) - sum(before.values())
    result = {
        "prompts": PROMPTS,
        "tokens": ANSWER_TOKENS,
        "pairs_meanwhile": pairs,
        "token_ids_equal": all(
            a["tokens"] == b["tokens"] for a, b in zip(answers[plain], answers[probed], strict=True)
        ),
        "logprobs_equal": answers[plain] == answers[probed],
        "logprobs_compared": answers[plain][0]["logprobs"] is not None,
        "distinct_tokens": len({t for a in answers[plain] for t in a["tokens"]}),
    }
    run.write("outputs", {**result, "answers": answers, "environment": run.environment})
    run.say(f"outputs of {plain} and {probed}: {result}")
    return result


def _answer(run: Run, name: str, prompt: list[int]) -> dict[str, Any]:
    """Token ids and, from a server that gives them without a tokenizer, log-probabilities."""
    body: dict[str, Any] = {
        "model": str(run.work / f"model-{name}"), "prompt": prompt, "max_tokens": ANSWER_TOKENS,
        "temperature": 0, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    as_ids = {"logprobs": 1, "return_tokens_as_token_ids": True}
    try:
        choice = complete(run.urls[name], {**body, **as_ids})["choices"][0]
    except urllib.error.HTTPError as error:
        run.say(f"{name} gives no log-probabilities: {error.read()[:300]!r}")
        choice = complete(run.urls[name], body)["choices"][0]
    return {
        "tokens": choice["token_ids"],
        "logprobs": (choice["logprobs"] or {}).get("token_logprobs"),
    }


def print_side_by_side(snapshots: Mapping[str, Mapping[str, Any]], out: Path | None = None) -> None:
    """Each module's NFP and time at one position, one column for each server."""
    console = Console(width=170, record=out is not None)
    for title, names in (("dense", "dense"), ("MoE", "moe"), ("smoke", "smoke")):
        chosen = {name: s for name, s in snapshots.items() if name.startswith(names)}
        if not chosen:
            continue
        table = Table(title=f"{title}: NFP at epsilon {EPSILON:g} [95 % interval], t(1) in us")
        for column in ("module", "B", "L", *chosen):
            table.add_column(column)
        cells = {c for snapshot in chosen.values() for c in _cells(snapshot)}
        for module, batch_size, context in sorted(cells):
            entries = [_cells(s).get((module, batch_size, context), "-") for s in chosen.values()]
            table.add_row(module, str(batch_size), str(context), *entries)
        console.print(table)
    if out is not None:
        out.write_text(console.export_text(), encoding="utf-8")


def _cells(snapshot: Mapping[str, Any]) -> dict[tuple[str, int, int], str]:
    times = {
        (r["module"], r["batch_size"], r["context"]): r["median_seconds"]
        for r in snapshot["curves"]
        if r["positions"] == 1
    }
    found = {}
    for row in snapshot["boundaries"]:
        key = (row["module"], row["batch_size"], row["context"])
        if row["epsilon"] == EPSILON:
            more = "+" if row["at_limit"] else ""
            found[key] = (
                f"{row['positions']}{more} [{row['lower']}, {row['upper']}] "
                f"{times.get(key, 0.0) * 1e6:.1f}"
            )
    return found


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--smoke", is_flag=True, help="One small model; about two minutes.")
@click.option("--table-seconds", type=float, default=27.0, help="Load on each table's server.")
@click.option("--limit-seconds", type=float, default=540.0, help="Of everything.")
@click.option("--trial", is_flag=True, help="Tiny models, to try the script without a GPU.")
def main(
    out: Path,
    smoke: bool,
    table_seconds: float,
    limit_seconds: float,
    trial: bool,
) -> None:
    """Run everything; see the module's text."""
    os.environ.update(HOST_ENVIRONMENT)
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-tp-") as work, ExitStack() as stack:
        run = Run(out, Path(work), limit_seconds, trial)
        if smoke:
            sys.exit(_smoke(run, stack))
        _full(run, stack, table_seconds)


def _guarded(run: Run, name: str, part: Callable[[], Any]) -> Any:
    """A part's result; None, with the reason, if it fails: the others go on."""
    try:
        return part()
    except Exception as error:
        run.say(f"{name} FAILED: {error!r}")
        return None


def _full(run: Run, stack: ExitStack, table_seconds: float) -> None:
    wanted = plans(run.trial)
    run.start(stack, wanted)
    by_name = {plan.name: plan for plan in wanted}
    snapshots: dict[str, Mapping[str, Any]] = {}
    for plan in wanted:
        if plan.probe is None or plan.name not in run.urls:
            continue
        # The outputs need the rest.
        seconds = min(table_seconds, run.left - 80.0)
        if seconds < 10.0:
            run.say(f"no time is left for {plan.name}")
            continue
        found = _guarded(run, plan.name, functools.partial(measure_table, run, plan, seconds))
        if found is not None:
            snapshots[plan.name] = found
            print_side_by_side(snapshots, run.out / "side-by-side.txt")
    if {"off", "dense-tp2"} <= set(run.urls) and run.left > 30.0:
        plan = by_name["dense-tp2"]
        _guarded(run, "outputs", lambda: compare_outputs(run, "off", "dense-tp2", plan))
    for name in run.urls:
        run.keep_log(name)
    run.say("done")


def _smoke(run: Run, stack: ExitStack) -> int:
    """Whether two ranks probe at all; the exit code."""
    probed, plain = smoke_plans(run.trial)
    run.start(stack, (probed, plain))
    failures = []
    if probed.name in run.urls:
        snapshot = _guarded(run, "load", lambda: measure_table(run, probed, 15.0))
        if snapshot is None:
            failures.append("the load on the probed server failed")
        else:
            failures += _doubts(snapshot)
            print_side_by_side({"smoke": snapshot})
        if plain.name in run.urls:
            same = _guarded(
                run, "outputs", lambda: compare_outputs(run, plain.name, probed.name, probed)
            )
            if not (same and same["logprobs_equal"]):
                failures.append("outputs differ, or could not be compared")
    else:
        failures.append("the server with the probe did not start")
    for plan in (probed, plain):
        run.keep_log(plan.name)
    _print_log(run.out / f"{probed.name}-server.log")
    for failure in failures:
        run.say(f"FAILED: {failure}")
    run.say("smoke: " + ("failed" if failures else "all is well"))
    return 1 if failures else 0


def _doubts(snapshot: Mapping[str, Any]) -> list[str]:
    """What is wrong with a probe's snapshot."""
    doubts = []
    if snapshot["state"] == "disabled":
        doubts.append(f"the probe is disabled: {snapshot['reason']}")
    modules = {row["module"] for row in snapshot["boundaries"]}
    lacking = {"model", "attention", "dense_ffn", "communication"} - modules
    if lacking:
        doubts.append(f"no estimate of {', '.join(sorted(lacking))}")
    if not snapshot["probes"].get("measured"):
        doubts.append("no pair was measured between real steps")
    if not snapshot["probes"].get("startup"):
        doubts.append("no pair was measured at the start")
    return doubts


def _print_log(log: Path) -> None:
    """Lines of a server's log that tell of the probe, of collectives, or of errors."""
    telling = re.compile(
        r"nfp|all.?reduce|custom.?ar|NCCL|Error|error|Traceback|p2p|Capturing|raise |File ", re.I
    )
    lines = [x for x in log.read_text(errors="replace").splitlines() if telling.search(x)]
    shown = lines if len(lines) <= 160 else [*lines[:60], "...", *lines[-100:]]
    print("\n".join(line[:400] for line in shown), flush=True)


if __name__ == "__main__":
    main()
