"""Claim: the probe works on two GPUs, and measures what tensor and expert parallelism change.

    python -m benchmarks.engines.tensor_parallel --out DIR

On a machine with two GPUs. All servers start side by side, with KV caches of fixed size and four
layers of a Llama-70B shape, eight of a Qwen3-30B-A3B one; then one at a time is under load.

1. ``dense-tp1``, ``moe-tp1`` (one on each GPU), ``dense-tp2``, ``moe-tp2``, ``moe-ep2`` (on both):
   NFP and time of every module, side by side; every pair is kept.
2. ``off`` against ``dense-tp2``: the same greedy prompts, one after the other, without the probe
   and with one that takes up to half of the time; token ids and log-probabilities must be equal.

What the probe costs there is measured by :mod:`benchmarks.overhead.switched`. Every part is written
as soon as it is there.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
import urllib.error
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.overhead.probe_account import probe_state
from benchmarks.serving import server, shapes
from benchmarks.serving.table_servers import PUBLISH_SECONDS, Plan, Session
from vllm_nfp.start.requests import complete

HOST_ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
"""NVLink multicast stays off, as on hosts that give it to nobody."""
PROMPTS = 6
PROMPT_TOKENS = 200
ANSWER_TOKENS = 128
EPSILON = 0.1
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
    "wanted_samples": 6,
    "publish_seconds": 1.0,
}
TRIAL_TABLE = {
    **TABLE,
    "startup_seconds": 4.0,
    "capture_seconds": 20.0,
    "batch_sizes": [1, 8],
    "contexts": [64],
    "positions": [1, 2, 4],
    "max_positions": 4,
}
FLAGS = ("--gpu-memory-utilization", "0.05", "--max-model-len", "8192")
TRIAL_FLAGS = (
    "--enforce-eager", "--max-model-len", "1024", "--distributed-executor-backend", "mp",
)  # fmt: skip
TRIAL_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
PHASES = ((8, 900), (32, 900), (1, 900))
"""(streams, prompt tokens)."""
TRIAL_PHASES = ((1, 50), (2, 50))


def plans(trial: bool) -> tuple[Plan, ...]:
    """The servers; tiny ones to try the script without a GPU."""
    if trial:
        where: dict[str, Any] = {
            "flags": TRIAL_FLAGS, "environment": {**HOST_ENVIRONMENT, **TRIAL_ENVIRONMENT},
        }  # fmt: skip
        return (
            Plan("dense-tp1", "tiny", 2, 0.05, TRIAL_TABLE, **where),
            Plan("dense-tp2", "tiny", 2, 0.05, TRIAL_TABLE, 2, **where),
            Plan("off", "tiny", 2, 0.05, None, 2, **where),
        )
    dense, moe = ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 8)
    where = {"flags": FLAGS, "environment": HOST_ENVIRONMENT}
    return (
        Plan("dense-tp1", *dense, 2.3, TABLE, gpu=0, **where),
        Plan("moe-tp1", *moe, 2.3, TABLE, gpu=1, **where),
        Plan("dense-tp2", *dense, 1.2, TABLE, 2, **where),
        Plan("moe-tp2", *moe, 1.2, TABLE, 2, **where),
        Plan("moe-ep2", *moe, 1.2, TABLE, 2, True, **where),
        Plan("off", *dense, 1.2, None, 2, **where),
    )


def _topology() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def compare_outputs(session: Session, plain: Plan, probed: Plan, prompt_tokens: int) -> None:
    """Send the same greedy prompts to both servers, one at a time; write what they answered."""
    rng = np.random.default_rng(0)
    vocabulary = shapes.vocab_size(plain.shape)
    prompts = [rng.integers(2, vocabulary, prompt_tokens).tolist() for _ in range(PROMPTS)]
    url = session.urls[probed.name]
    before = probe_state(url)["probes_total"]
    ours, theirs = ([_answer(session, plan, p) for p in prompts] for plan in (probed, plain))
    time.sleep(PUBLISH_SECONDS)
    after = probe_state(url)["probes_total"]
    result = {
        "prompts": PROMPTS,
        "tokens": ANSWER_TOKENS,
        "pairs_meanwhile": sum(after.values()) - sum(before.values()),
        "token_ids_equal": all(
            a["tokens"] == b["tokens"] for a, b in zip(theirs, ours, strict=True)
        ),
        "logprobs_equal": theirs == ours,
        "logprobs_compared": theirs[0]["logprobs"] is not None,
        "distinct_tokens": len({token for answer in theirs for token in answer["tokens"]}),
    }
    answers = {plain.name: theirs, probed.name: ours}
    session.write("outputs", {**result, "answers": answers, "environment": session.environment})
    session.say(f"outputs of {plain.name} and {probed.name}: {result}")


def _answer(session: Session, plan: Plan, prompt: list[int]) -> dict[str, Any]:
    """Token ids and, from a server that gives them without a tokenizer, log-probabilities."""
    body: dict[str, Any] = {
        "model": str(session.model(plan)), "prompt": prompt, "max_tokens": ANSWER_TOKENS,
        "temperature": 0, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    as_ids = {"logprobs": 1, "return_tokens_as_token_ids": True}
    try:
        choice = complete(session.urls[plan.name], {**body, **as_ids})["choices"][0]
    except urllib.error.HTTPError as error:
        session.say(f"{plan.name} gives no log-probabilities: {error.read()[:300]!r}")
        choice = complete(session.urls[plan.name], body)["choices"][0]
    return {
        "tokens": choice["token_ids"],
        "logprobs": (choice["logprobs"] or {}).get("token_logprobs"),
    }


def print_side_by_side(snapshots: Mapping[str, Mapping[str, Any]], out: Path | None = None) -> None:
    """Each module's NFP and time at one position, one column for each server."""
    console = Console(width=170, record=out is not None)
    for title, names in (("dense", "dense"), ("MoE", "moe")):
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
@click.option("--table-seconds", type=float, default=27.0, help="Load on each table's server.")
@click.option("--limit-seconds", type=float, default=540.0, help="Of everything.")
@click.option("--trial", is_flag=True, help="Tiny models, to try the script without a GPU.")
def main(out: Path, table_seconds: float, limit_seconds: float, trial: bool) -> None:
    """Measure on two GPUs; see the module's text."""
    os.environ.update(HOST_ENVIRONMENT)
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-tp-") as work, ExitStack() as stack:
        session = Session(out, Path(work), limit_seconds)
        wanted = {plan.name: plan for plan in plans(trial)}
        session.start(stack, tuple(wanted.values()))
        session.environment["topology"] = _topology()
        snapshots: dict[str, Mapping[str, Any]] = {}
        for name, plan in wanted.items():
            seconds = min(table_seconds, session.left - 40.0)  # the outputs need the rest
            if plan.probe is None or name not in session.urls or seconds < 10.0:
                session.say(f"no table of {name}")
                continue
            snapshots[name] = session.measure(plan, TRIAL_PHASES if trial else PHASES, seconds)
            print_side_by_side(snapshots, out / "side-by-side.txt")
        if {"off", "dense-tp2"} <= set(session.urls):
            tokens = 40 if trial else PROMPT_TOKENS
            compare_outputs(session, wanted["off"], wanted["dense-tp2"], tokens)


if __name__ == "__main__":
    main()
