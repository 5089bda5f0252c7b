"""Claim: from 256 tokens on single counts of tokens are slow for wide products, and which.

    python -m benchmarks.prediction.product_steps --out DIR     times products on the first GPU
    python -m benchmarks.prediction.product_steps --score DIR   compares with the prediction, no GPU

Times dense products in 16 bits that no other kept run has timed, as vLLM calls them
(``torch.nn.functional.linear``), at the counts of tokens that CUDA graphs are captured for. The
calls of one measurement lie in a CUDA graph and read other copies of the weights in turn, so that
they come from memory. Passes run all counts in a random order.

The shapes were written down before the slow steps of ``vllm_nfp/principle/slow_steps.py`` were
fitted, and were never timed for them: they are its test.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.hosts import environment
from benchmarks.hosts.packing import pack
from vllm_nfp.calibrate.points import (
    Curve,
    Kernel,
    KernelSamples,
    Series,
    read_samples,
    write_samples,
)
from vllm_nfp.principle import target_of
from vllm_nfp.principle.gemm import gemm_seconds
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.layer_parts import Gemm

PRODUCTS: tuple[tuple[str, int, int], ...] = (
    ("qwen3-4b gate_up", 2560, 19456),
    ("qwen3-8b gate_up", 4096, 24576),
    ("llama-2-13b gate_up", 5120, 27648),
    ("gemma-2-9b gate_up", 3584, 28672),
    ("mistral-nemo gate_up", 5120, 28672),
    ("llama-3.1-70b gate_up of two ranks", 8192, 28672),
    ("phi-4 gate_up", 5120, 35840),
    ("yi-34b gate_up", 7168, 40960),
    ("command-r gate_up", 8192, 45056),
    ("qwen3-32b gate_up", 5120, 51200),
    ("phi-4 qkv", 5120, 7680),
    ("gemma-2-9b qkv", 3584, 8192),
    ("yi-34b qkv", 7168, 9216),
    ("qwen3-32b qkv", 5120, 10240),
    ("llama-2-7b qkv", 4096, 12288),
    ("llama-2-13b qkv", 5120, 15360),
    ("qwen3-4b down", 9728, 2560),
    ("qwen3-8b down", 12288, 4096),
    ("phi-4 down", 17920, 5120),
    ("yi-34b down", 20480, 7168),
)
"""Inputs and outputs of products that no kept run has timed."""
TOKENS = (1, *range(256, 513, 16))
PASSES = 5
DISTINCT_BYTES = 192 << 20
"""Read before any weight is read again; L2 holds 50 MB."""
LEAST_CALLS = 4
NEAR = 0.1
SLOW = 1.25
"""A step over both its neighbours that counts as one."""


def time_product(inputs: int, outputs: int, seed: int = 0) -> Curve:
    """Time one product at all counts of tokens on the first GPU."""
    import torch

    weight_bytes = 2 * inputs * outputs
    copies = LEAST_CALLS + DISTINCT_BYTES // weight_bytes
    weights = [
        torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)
    ]
    calls: dict[int, Callable[[], float]] = {}
    for tokens in TOKENS:
        hidden = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        calls[tokens] = _call(weights, hidden)
    draw = random.Random(seed)
    taken: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
    for _ in range(PASSES):
        for tokens in draw.sample(TOKENS, len(TOKENS)):
            taken[tokens].append(calls[tokens]())
    seconds = tuple(tuple(values) for values in taken.values())
    return Curve(Series(Kernel.LINEAR), TOKENS, seconds, inputs, outputs, weight_bytes)


def _call(weights: Sequence[Any], hidden: Any) -> Callable[[], float]:
    import torch

    def multiply() -> None:
        for weight in weights:
            torch.nn.functional.linear(hidden, weight)

    multiply()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        multiply()
    graph.replay()

    # A graph does not hold the memory that it reads: ``multiply`` does.
    def run(multiply: Callable[[], None] = multiply) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / len(weights)

    return run


def slow_steps(curve: Curve) -> list[tuple[int, float]]:
    """Counts of tokens that take longer than both neighbours: (tokens, over the longer of them)."""
    counts, seconds = curve.positions[1:], curve.medians[1:]
    found = []
    for i in range(1, len(counts) - 1):
        over = seconds[i] / max(seconds[i - 1], seconds[i + 1])
        if over >= SLOW:
            found.append((counts[i], over))
    return found


def print_scores(samples: KernelSamples, target: Target) -> None:
    """Errors with the slow steps and without, product by product."""
    forms = {
        "with": target.calibration.gemm,
        "without": replace(target.calibration.gemm, slow_steps=()),
    }
    apart: dict[str, list[float]] = {name: [] for name in forms}
    near: dict[str, list[bool]] = {name: [] for name in forms}
    for curve in samples.curves:
        tokens = np.array(curve.positions, dtype=np.float64)
        gemm = Gemm(curve.inputs, curve.outputs, 2.0)
        row = [f"{curve.series.name:36s} {curve.inputs:6d} x {curve.outputs:6d}"]
        row.append("slow: " + ", ".join(f"{t} {over:.2f}" for t, over in slow_steps(curve)))
        for name, constants in forms.items():
            said = gemm_seconds(target.hardware, constants, gemm, tokens)
            errors = np.log(np.array(curve.medians) / said)[1:]
            apart[name] += np.abs(errors).tolist()
            near[name] += (np.abs(errors) <= NEAR).tolist()
            at = curve.positions.index(448) - 1
            row.append(f"error at 448 {name}: {errors[at]:+.2f}")
        print("; ".join(row))
    for name in forms:
        print(f"{name} slow steps: {np.mean(near[name]):.1%} of {len(near[name])} within 10 %, "
              f"median error {statistics.median(apart[name]):.1%}, "
              f"largest {max(apart[name]):.2f} in log time")  # fmt: skip


def time_all(out: Path) -> None:
    """Time every product, and write ``products.jsonl.gz``."""
    out.mkdir(parents=True, exist_ok=True)
    before = environment.record()
    curves = []
    for name, inputs, outputs in PRODUCTS:
        curve = time_product(inputs, outputs)
        curves.append(replace(curve, series=Series(Kernel.LINEAR, name=name)))
        print(name, slow_steps(curve), flush=True)
    about = {**before, "after": environment.gpu_state()}
    plain = out / "products.jsonl"
    write_samples(plain, KernelSamples("products", {}, about, tuple(curves)))
    pack(plain, out / "products.jsonl.gz")
    plain.unlink()


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--score", "scored", type=click.Path(exists=True, path_type=Path), default=None)
@click.option("--hardware", default="H100-SXM", help="With --score: the device that was timed.")
def main(out: Path | None, scored: Path | None, hardware: str) -> None:
    """Time, or score; see the module's text."""
    if out is not None:
        time_all(out)
    if scored is not None:
        print_scores(read_samples(scored / "products.jsonl.gz"), target_of(hardware))


if __name__ == "__main__":
    main()
