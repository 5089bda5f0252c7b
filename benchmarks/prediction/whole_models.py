"""Claim: the predictor holds for whole models too, causal and bidirectional.

    python -m benchmarks.prediction.whole_models --out DIR

Each model runs in an engine of its own, compiled and with FULL CUDA graphs as ``vllm serve`` sets
them up, dummy weights, fewer layers than published so that several engines share a GPU. All start
side by side; then one after the other attaches the probe, which scans its grid and writes raw
pairs and a snapshot, and does so again with positions that see one another, as diffusion decodes.
None of these shapes fitted a constant.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.hosts.packing import pack
from benchmarks.prediction.kernel_sweep import wait_for
from benchmarks.serving import shapes
from vllm_nfp.start.process import Child

GRID = {
    "batch_sizes": [1, 4, 8, 32],
    "contexts": [1024, 4096],
    "positions": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64],
    "max_positions": 64,
    "capture_seconds": 30.0,
    "graph_memory_mib": 3072,
    "wanted_samples": 6,
    "overhead_budget": 0.0,
}
"""The probe's settings; it scans at its start and never again."""
BLOCKS = {**GRID, "batch_sizes": [1, 8], "bidirectional": True}
TRIAL = {**GRID, "batch_sizes": [1, 2], "contexts": [64], "positions": [1, 2, 4]}


@dataclass(frozen=True, slots=True)
class Model:
    """One engine."""

    shape: str
    layers: int
    kv_gib: float
    blocks: bool


MODELS = (Model("qwen3-14b", 6, 3.2, True), Model("olmoe-1b-7b", 6, 3.5, False))
TRIAL_MODELS = (Model("tiny", 2, 0.05, True),)


def work(model: Model, out: Path, seconds: float, trial: bool) -> None:
    """Start one engine, wait for a line on standard input, scan, write."""
    import torch

    from vllm_nfp.adapter.engines import runner_without_probe
    from vllm_nfp.adapter.runners import view_of

    folder = shapes.write_model(out / f"{model.shape}-model", model.shape, model.layers)
    arguments: dict[str, Any] = {
        "kv_cache_memory_bytes": int(model.kv_gib * (1 << 30)),
        "max_model_len": 8192 if not trial else 1024,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
    }
    if torch.cuda.is_available():
        arguments["gpu_memory_utilization"] = 0.05
    else:
        arguments["enforce_eager"] = True
    with runner_without_probe(folder, arguments) as runner:
        view = view_of(runner)
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        runs = {"causal": TRIAL if trial else GRID}
        if model.blocks:
            runs["blocks"] = {**(TRIAL if trial else BLOCKS), "bidirectional": True}
        for name, settings in runs.items():
            scan(view, {**settings, "startup_seconds": seconds}, out / f"{model.shape}-{name}")
        print("done", flush=True)


def scan(view: Any, settings: dict[str, Any], folder: Path) -> None:
    """Attach the probe, let it scan, and take it off again."""
    from vllm_nfp.config import config_from_mapping
    from vllm_nfp.session import open_session

    config = config_from_mapping({**settings, "output_dir": str(folder)})
    session = open_session(config, view.vllm_config, time.monotonic())
    session.after_warm_up(view.runner)
    session.disable("the scan has ended", expected=True)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seconds", type=float, default=25.0, help="Longest scan of a model.")
@click.option("--trial", is_flag=True, help="A tiny model, to try the script without a GPU.")
@click.option("--wait-for", "awaited", type=click.Path(path_type=Path), default=None)
@click.option("--worker", default=None, hidden=True)
def main(out: Path, seconds: float, trial: bool, awaited: Path | None, worker: str | None) -> None:
    """Run the scans; see the module's text."""
    models = TRIAL_MODELS if trial else MODELS
    out.mkdir(parents=True, exist_ok=True)
    if worker is not None:
        work(next(m for m in models if m.shape == worker), out, seconds, trial)
        return
    children = {model.shape: _start(model, out, seconds, trial) for model in models}
    record = environment.record()
    ready = [name for name, child in children.items() if child.wait_for("ready")]
    print(f"{len(ready)} of {len(models)} engines are up", flush=True)
    if awaited is not None:
        wait_for(awaited)
    for name in ready:
        begun = time.monotonic()
        children[name].say("go")
        done = children[name].wait_for("done")
        print(
            f"{name}: {'done' if done else 'failed'}, {time.monotonic() - begun:.0f} s", flush=True
        )
    for child in children.values():
        child.kill()
    about = {**record, "after": environment.gpu_state()}
    (out / "environment.json").write_text(json.dumps(about, indent=1))
    for samples in out.glob("*/samples-0.jsonl"):
        pack(samples, samples.with_suffix(".jsonl.gz"))
        samples.unlink()


def _start(model: Model, out: Path, seconds: float, trial: bool) -> Child:
    command = [sys.executable, "-m", "benchmarks.prediction.whole_models", "--out", str(out)]
    command += ["--seconds", str(seconds), "--worker", model.shape]
    command += ["--trial"] if trial else []
    environment = {
        **os.environ,
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CACHE_ROOT": str(out / f"cache-{model.shape}"),
    }
    return Child(command, out / f"{model.shape}.log", environment, talks=True)


if __name__ == "__main__":
    main()
