"""Claim: the probe's CUDA graphs share the memory of vLLM's, and change no token.

    python -m benchmarks.memory.graph_memory --shape qwen3-8b --layers 36 --out DIR

Three engines: without the probe, once more without it, and with it. All have the same weights, the
same requests and the same compiled code: the first fills the compile cache, and the other two then
run side by side where there are two GPUs. Writes graph-memory-<shape>.json: GPU memory in use and
the reserve of PyTorch at the end of each, the probe's own account, its sentences in the log,
whether vLLM repeats itself without the probe, and whether tokens and log-probabilities are the same
while probes run, and graphs are captured, ahead of every few steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.serving import shapes
from vllm_nfp.adapter.engines import DUMMY_WEIGHTS, start_engine
from vllm_nfp.config import ENV_VAR, config_from_mapping
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.start.process import Child, vllm_environment

LIMIT_SECONDS = 400.0
SHARED = {
    "share_graph_pool": True,
    "graph_memory_mib": 64,
    "capture_seconds": 2.0,
    "overhead_budget": 0.5,
    "step_share": 1.0,
    "idle_share": 0.0,
}
"""Ahead of every few steps something runs in the pool: a pair, or the capture of what it needs."""
BATCHES = (8, 1, 32, 8, 20, 3)
"""Requests of each round; their prompts are of several lengths."""
SIDES = ("off", "again", "on")


def work(model: str, out: str, on_gpu: bool) -> None:
    """One engine: generate, read the memory in use, write."""
    import torch

    arguments: dict[str, Any] = {"max_model_len": 20480, "max_num_seqs": 512}
    if on_gpu:
        arguments |= {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 8 << 30}
    else:
        arguments |= {"enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 8}
    llm = start_engine(model, {**DUMMY_WEIGHTS, "seed": 0, **arguments})
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=192, ignore_eos=True, detokenize=False, logprobs=1
    )
    tokens = []
    for batch_size in BATCHES if on_gpu else BATCHES[:1]:
        requests = [
            {"prompt_token_ids": [100 + i, 7, 30 + i, 99] * (10 + 4 * i)} for i in range(batch_size)
        ]
        outputs = llm.generate(requests, params, use_tqdm=False)
        tokens.append([_answer(one.outputs[0]) for one in outputs])
    figures: dict[str, Any] = {"tokens": tokens}
    if on_gpu:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "device_used_mib": (total - free) / (1 << 20),
            "reserved_mib": torch.cuda.memory_reserved() / (1 << 20),
            "allocated_mib": torch.cuda.memory_allocated() / (1 << 20),
        }
    Path(out).write_text(json.dumps(figures), encoding="utf-8")


def _answer(output: Any) -> list[tuple[int, float]]:
    """Token ids, each with its log-probability."""
    return [
        (token, entry[token].logprob)
        for token, entry in zip(output.token_ids, output.logprobs, strict=True)
    ]


def first_difference(one: Any, other: Any) -> list[int] | None:
    """(round, request, place) of the first token or log-probability that differs; None if none."""
    for number, (requests, others) in enumerate(zip(one, other, strict=True)):
        for place, (answer, another) in enumerate(zip(requests, others, strict=True)):
            for step, (entry, its) in enumerate(zip(answer, another, strict=True)):
                if entry != its:
                    return [number, place, step]
    return None


def start(side: str, model: Path, folder: Path, out: Path, gpu: int | None) -> Child:
    """The engine of one side as a process of its own."""
    extra = {"VLLM_CACHE_ROOT": str(folder / "cache")}
    if gpu is not None:
        extra["CUDA_VISIBLE_DEVICES"] = str(gpu)
    if side == "on":
        extra[ENV_VAR] = config_from_mapping({**SHARED, "run_dir": str(folder)}).to_json()
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory.graph_memory",
        "--work",
        str(model),
        str(folder / side),
    ]
    return Child(command, out / f"graph-memory-{side}.log", vllm_environment(extra))


@click.command()
@click.option("--shape", default="qwen3-8b")
@click.option("--layers", type=int, default=None)
@click.option("--work", "worker", nargs=2, default=None, hidden=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path))
def main(shape: str, layers: int | None, worker: tuple[str, str] | None, out: Path | None) -> None:
    """Compare an engine with the probe to one without."""
    import torch

    gpus = torch.cuda.device_count()
    if worker is not None:
        work(*worker, on_gpu=gpus > 0)
        return
    if out is None:
        raise click.UsageError("give --out DIR")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-") as name, ExitStack() as stack:
        folder = Path(name)
        model = shapes.write_model(folder / shape, shape, layers)
        running = []
        for index, side in enumerate(SIDES):
            gpu = index % gpus if gpus else None
            running.append(stack.enter_context(start(side, model, folder, out, gpu)))
            if index == 0 or gpus < 2:
                running[-1].wait(LIMIT_SECONDS)
        codes = [process.wait(LIMIT_SECONDS) for process in running]
        log = (out / "graph-memory-on.log").read_text(errors="replace")
        result: dict[str, Any] = {
            "shape": shape,
            "layers": layers or shapes.layer_count(shape),
            "environment": environment.record(),
            "exit_codes": codes,
            "log": [line for line in log.splitlines() if "vllm-nfp" in line],
        }
        snapshot = folder / "engine-0.json"
        if snapshot.exists():
            found = read_snapshot(snapshot)
            result["probe"] = {
                "state": found.state, "reason": found.reason, "gpu_bytes": found.graph_bytes,
                "host_bytes": found.host_bytes, "startup_seconds": found.startup_seconds,
                "probes": dict(found.probes), "skipped_cells": dict(found.skipped_cells),
                "points": len(found.curves), "steps": len(found.steps),
            }  # fmt: skip
        if not any(codes):
            sides = {side: json.loads((folder / side).read_text()) for side in SIDES}
            tokens = {side: figures.pop("tokens") for side, figures in sides.items()}
            result |= {
                "sides": sides,
                "repeats_itself": tokens["again"] == tokens["off"],
                "same_tokens": tokens["on"] == tokens["off"],
                "first_difference": {
                    side: first_difference(tokens["off"], tokens[side]) for side in SIDES[1:]
                },
            }
    (out / f"graph-memory-{shape}.json").write_text(json.dumps(result), encoding="utf-8")
    print(json.dumps({key: v for key, v in result.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
