"""NFP tables of two models in one short session on one GPU.

    python -m benchmarks.h100_session --out DIR

Starts two servers side by side on one GPU, each with a KV cache of fixed size and one fourth to
one sixth of its published layers, then sends load to one at a time; the other uses no GPU time
meanwhile. NFP of every module in cells B in 1, 8, 32 and L in 1k, 4k, 16k is measured between the
real steps; the probe may take half of the time here, so that a minute of load gives enough pairs.
No scan at the start: all pairs are taken under load.

Each part is written as soon as it is there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import environment, load, server, shapes, tabulate
from benchmarks.packing import pack
from benchmarks.traffic import Load
from vllm_nfp.start.ports import free_ports
from vllm_nfp.start.process import ProcessError


@dataclass(frozen=True)
class Plan:
    """One server."""

    name: str
    shape: str
    layers: int
    kv_gib: float
    probe: Mapping[str, object] | None


def plans(scale: float, table: Mapping[str, object]) -> tuple[Plan, ...]:
    """The servers; ``scale`` shrinks their KV caches for a trial on a small machine."""
    base = {"startup_seconds": 0.0, "capture_seconds": 60.0, "graph_memory_mib": 4096}
    base |= {"step_share": 1.0}
    dense, moe = ("qwen3-8b", "qwen3-30b-a3b") if scale == 1.0 else ("tiny", "tiny")
    return (
        Plan("dense", dense, 8, 16.4 * scale, {**base, **table}),
        Plan("moe", moe, 8, 8.3 * scale, {**base, **table}),
    )


TABLE = {
    "batch_sizes": [1, 8, 32],
    "contexts": [1024, 4096, 16384],
    "max_positions": 64,
    "overhead_budget": 0.5,
    "min_samples": 8,
}
TRIAL_TABLE = {**TABLE, "batch_sizes": [1, 4], "contexts": [64, 256], "max_positions": 8}


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--table-seconds", type=float, default=60.0, help="Load on each table's server.")
@click.option("--trial", is_flag=True, help="Tiny models, to try the script without a GPU.")
def main(out: Path, table_seconds: float, trial: bool) -> None:
    """Run everything; see the module's text."""
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="nfp-session-"))
    servers = plans(0.01 if trial else 1.0, TRIAL_TABLE if trial else TABLE)
    with ExitStack() as stack:
        urls = _start(stack, servers, work, out, trial)
        started = environment.record()
        print(f"{len(urls)} servers up after {time.monotonic() - begun:.0f} s", flush=True)
        for plan in (p for p in servers if p.name in urls):
            _table(plan, urls[plan.name], work, out, table_seconds, trial, started)


def _start(
    stack: ExitStack, servers: tuple[Plan, ...], work: Path, out: Path, trial: bool
) -> dict[str, str]:
    """All servers at once; each with compile caches of its own. Those that fail are named."""
    ports = free_ports(len(servers))
    started = {
        plan.name: stack.enter_context(_spec(plan, work, port, trial).start())
        for plan, port in zip(servers, ports, strict=True)
    }
    urls = {}
    for name, one in started.items():
        try:
            one.wait_until_healthy()
            urls[name] = one.url
        except ProcessError as error:
            print(f"{name}: {error}", flush=True)
            shutil.copy(one.child.log, out / f"{name}-server.log")
    return urls


def _spec(plan: Plan, work: Path, port: int, trial: bool) -> server.Spec:
    flags = ["--kv-cache-memory-bytes", str(int(plan.kv_gib * (1 << 30)))]
    flags += ["--max-num-seqs", "256", "--max-num-batched-tokens", "2048"]
    if trial:
        flags += ["--enforce-eager", "--max-model-len", "1024"]
    else:
        flags += ["--gpu-memory-utilization", "0.05", "--max-model-len", "20480"]
    return server.Spec(
        model=shapes.write_model(work / f"model-{plan.name}", plan.shape, plan.layers),
        log=work / f"{plan.name}.log",
        port=port,
        flags=tuple(flags),
        probe=plan.probe,
        output_dir=work / f"probe-{plan.name}" if plan.probe else None,
        extra={"VLLM_CACHE_ROOT": str(work / f"cache-{plan.name}")},
    )


def _table(
    plan: Plan,
    url: str,
    work: Path,
    out: Path,
    seconds: float,
    trial: bool,
    started: Mapping[str, Any],
) -> None:
    model = str(work / f"model-{plan.name}")
    phases = ((1, 50), (2, 50)) if trial else ((8, 950), (32, 950), (1, 3900))
    for concurrency, prompt_tokens in phases:
        load.run(
            Load(
                url,
                model,
                shapes.vocab_size(plan.shape),
                concurrency,
                prompt_tokens,
                400,
                seconds / len(phases) - 1.0,
                seed=concurrency,
            ),
            warmup_seconds=1.0,
        )
    time.sleep(2.5)  # the last pairs are published
    folder = work / f"probe-{plan.name}"
    snapshot = json.loads((folder / "engine-0.json").read_text())
    result = {
        "shape": plan.shape,
        "layers": plan.layers,
        "environment": started,
        "after": environment.gpu_state(),
        "probe": plan.probe,
        "snapshot": snapshot,
    }
    (out / f"{plan.name}-table.json").write_text(json.dumps(result))
    pack(folder / "samples-0.jsonl", out / f"{plan.name}-pairs.jsonl.gz")
    tabulate.print_model(out, plan.name)


if __name__ == "__main__":
    main()
