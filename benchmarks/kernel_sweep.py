"""Claim: what dense FFN, MoE FFN and attention cost at every N, as vLLM calls them.

    python -m benchmarks.kernel_sweep --out DIR

Each shape runs in an engine of its own with a few layers and dummy weights (nothing compiled;
the calls lie in CUDA graphs). All engines of a group start side by side and then measure one at a
time, so that nothing else uses the GPU meanwhile. Which shapes may fit constants and which are
only for the check is said here, before anything is fitted: :data:`PLANS`.

Writes one file of curves for each shape; ``vllm_nfp.calibrate.points.read_samples`` reads it.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks import environment, shapes
from vllm_nfp.calibrate.points import Kernel, KernelSamples, Series, write_samples
from vllm_nfp.calibrate.sweep import Bench, PointRefusedError, time_series

PASSES = 6
MAX_TOKENS = 2048
MAX_SEQS = 256
MAX_LEN = 17408

TOKENS = tuple(
    sorted(
        {
            *range(1, 65),
            *range(72, 257, 8),
            *(edge + 1 for edge in (64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384)),
            *range(272, 513, 16),
            *range(576, 1025, 64),
        }
    )
)
"""Tokens of a step, for kernels that see nothing else."""
POSITIONS = tuple(
    sorted({*range(1, 41), *range(44, 65, 4), *range(72, 129, 8), *(n + 1 for n in (64, 96, 128))})
)
"""Positions per sequence, for attention."""
CELLS = (
    *((b, 1024) for b in (1, 8, 32, 128)),
    *((b, 4096) for b in (1, 8, 32)),
    *((b, 16384) for b in (1, 8)),
)
"""(batch size, context) of attention."""
BLOCK_CELLS = ((1, 4096), (8, 4096), (32, 1024))
"""The same for blocks that see all of themselves, as diffusion decodes them."""
LONG_CELLS = ((32, 16384),)
"""Only where the KV cache is made large enough."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One shape's part of the sweep."""

    shape: str
    layers: int
    fits: bool
    """Its curves may fit the predictor's constants; the others are only for the check."""
    kv_tokens: int = 160_000
    attention: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def label(self) -> str:
        """Name of its file."""
        return self.name or self.shape


FP8 = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
GROUPS: tuple[tuple[Plan, ...], ...] = (
    (
        Plan("llama-3.1-8b", 2, fits=True, kv_tokens=560_000),
        Plan("qwen3-1.7b", 4, fits=True),
        Plan("llama-3.1-70b", 1, fits=True),
        Plan("qwen3-30b-a3b", 2, fits=True),
        Plan("mixtral-8x7b", 2, fits=True),
        Plan("llama-3.1-8b", 2, fits=True, arguments=FP8, name="llama-3.1-8b-fp8"),
    ),
    (
        Plan("qwen3-14b", 2, fits=False),
        Plan("qwen2.5-7b", 2, fits=False),
        Plan("phi-3-mini", 3, fits=False),
        Plan("llama-3.2-1b", 4, fits=False),
        Plan("olmoe-1b-7b", 2, fits=False),
        Plan("qwen3-235b-a22b", 2, fits=False),
        Plan("deepseek-v2-lite", 3, fits=False, attention=False),
        Plan("qwen3-14b", 2, fits=False, arguments=FP8, name="qwen3-14b-fp8"),
    ),
)
PLANS = tuple(plan for group in GROUPS for plan in group)
TRIAL = ((Plan("tiny", 2, fits=True), Plan("tiny-moe", 2, fits=False)),)
START_LIMIT_SECONDS = 240.0


def series_of(bench: Any, plan: Plan, trial: bool) -> Iterator[tuple[Series, Sequence[int]]]:
    """What is timed of a shape, and at which N."""
    tokens: Sequence[int] = TOKENS if not trial else (1, 2, 4, 8)
    for kernel in (Kernel.DENSE_FFN, Kernel.MOE_FFN, Kernel.LM_HEAD):
        if bench.has(kernel):
            yield Series(kernel), tokens
    for name in bench.linear_names():
        yield Series(Kernel.LINEAR, name=name), tokens
    if not plan.attention:
        return
    positions: Sequence[int] = POSITIONS if not trial else (1, 2, 4)
    cells = CELLS if not trial else ((1, 64), (2, 128))
    long_cells = LONG_CELLS if plan.kv_tokens > 500_000 and not trial else ()
    for batch_size, context in (*cells, *long_cells):
        yield Series(Kernel.ATTENTION, batch_size, context), positions
    for batch_size, context in BLOCK_CELLS if not trial else ((1, 64),):
        yield Series(Kernel.ATTENTION, batch_size, context, causal=False), positions


def warm_up(bench: Bench, has_experts: bool) -> None:
    """Compile the expert kernel's configurations before the GPU is ours alone."""
    if not has_experts:
        return
    for tokens in (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 256, 512, 1024):
        try:
            bench.ready(Series(Kernel.MOE_FFN), tokens)
        except PointRefusedError:
            break
    bench.release()


def work(plan: Plan, folder: Path, out: Path, trial: bool) -> None:
    """Start one engine, wait for a line on standard input, time everything, write the file."""
    import torch

    from vllm_nfp.engine.bench import ModuleBench
    from vllm_nfp.engine.offline import module_engine_arguments, offline_engine
    from vllm_nfp.timing import CudaClock, HostClock

    on_gpu = torch.cuda.is_available()
    model = shapes.write_model(folder / plan.label, plan.shape, plan.layers)
    config = json.loads((model / "config.json").read_text())
    token_bytes = 4 * config["num_key_value_heads"] * _head_dim(config)
    arguments = module_engine_arguments(
        max_model_len=MAX_LEN if not trial else 2048,
        max_num_seqs=MAX_SEQS if not trial else 16,
        max_tokens=MAX_TOKENS,
        kv_cache_bytes=(plan.layers * token_bytes * plan.kv_tokens) if not trial else 64 << 20,
        on_gpu=on_gpu,
    )
    with offline_engine(model, {**arguments, **plan.arguments}) as view, torch.inference_mode():
        bench = ModuleBench(view, CudaClock() if on_gpu else HostClock())
        if on_gpu:
            warm_up(bench, bench.has(Kernel.MOE_FFN))
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        rng = random.Random(0)
        before = environment.record()
        curves = []
        for series, positions in series_of(bench, plan, trial):
            curve = time_series(bench, series, positions, PASSES, rng)
            if curve is not None:
                curves.append(curve)
        about = {**before, "after": environment.gpu_state(), "fits": plan.fits}
        write_samples(
            out / f"{plan.label}.jsonl", KernelSamples(plan.label, config, about, tuple(curves))
        )
        print(f"done {len(curves)} curves", flush=True)


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


class _Worker:
    """One engine in a process of its own."""

    def __init__(self, plan: Plan, folder: Path, out: Path, trial: bool) -> None:
        self.plan = plan
        self.log = out / f"{plan.label}.log"
        command = [sys.executable, "-m", "benchmarks.kernel_sweep", "--out", str(out)]
        command += ["--worker", plan.label, "--folder", str(folder)]
        command += ["--trial"] if trial else []
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Standard output is for the words that this process waits for.
                env={**os.environ, "VLLM_LOGGING_STREAM": "ext://sys.stderr"},
            )

    def wait_for(self, word: str) -> str | None:
        """The line that starts with the word; None if the process ends before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.strip()
        return None

    def go(self) -> str | None:
        """Let it measure; what it says at the end."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.wait_for("done")

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()


def run_group(plans: Sequence[Plan], folder: Path, out: Path, trial: bool) -> None:
    """Start all, then measure one after the other; a shape that fails leaves its log behind."""
    begun = time.monotonic()
    workers = [_Worker(plan, folder, out, trial) for plan in plans]
    try:
        ready = [w for w in workers if w.wait_for("ready") is not None]
        print(
            f"{len(ready)} of {len(plans)} ready after {time.monotonic() - begun:.0f} s", flush=True
        )
        for worker in ready:
            before = time.monotonic()
            said = worker.go()
            worker.end()
            print(
                f"{worker.plan.label}: {said or 'FAILED'}, {time.monotonic() - before:.1f} s",
                flush=True,
            )
            if said is not None:
                worker.log.unlink()
                _pack(out / f"{worker.plan.label}.jsonl")
    finally:
        for worker in workers:
            worker.end()


def _pack(path: Path) -> None:
    with path.open("rb") as plain, gzip.open(path.with_suffix(".jsonl.gz"), "wb") as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--group", type=int, default=None, help="Only this group of shapes, from 0.")
@click.option("--trial", is_flag=True, help="Tiny models, to try the script without a GPU.")
@click.option("--worker", default=None, hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), default=None, hidden=True)
def main(
    out: Path, group: int | None, trial: bool, worker: str | None, folder: Path | None
) -> None:
    """Run the sweep; see the module's text."""
    groups = TRIAL if trial else GROUPS
    if worker is not None:
        plan = next(p for plans in groups for p in plans if p.label == worker)
        assert folder is not None
        work(plan, folder, out, trial)
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-sweep-") as work_folder:
        for plans in groups if group is None else groups[group : group + 1]:
            run_group(plans, Path(work_folder), out, trial)


if __name__ == "__main__":
    main()
