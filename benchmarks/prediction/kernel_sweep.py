"""Claim: what dense FFN, MoE FFN and attention cost at every N, as vLLM calls them.

    python -m benchmarks.prediction.kernel_sweep --out DIR              shapes kept for the check
    python -m benchmarks.prediction.kernel_sweep --out DIR --reference  those that fit the constants

Each shape runs in an engine of its own with a few layers and dummy weights (nothing compiled; the
calls lie in CUDA graphs). All engines start side by side and then measure one at a time, so that
nothing else uses the GPU meanwhile. Which shapes fit the predictor's constants is said in
``vllm_nfp.calibrate.plans.REFERENCE``; those here are set aside for the check, and were chosen
before anything was fitted.

Writes a file of curves for each shape; ``vllm_nfp.calibrate.points.read_samples`` reads it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from benchmarks.hosts import environment
from benchmarks.hosts.packing import pack
from benchmarks.serving import shapes
from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import Kernel
from vllm_nfp.calibrate.reference_models import REFERENCE, TRIAL, choose
from vllm_nfp.calibrate.run import run_plans

FP8 = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
WITHOUT_ATTENTION = tuple(kernel for kernel in Kernel if kernel is not Kernel.ATTENTION)


def _plan(shape: str, layers: int, label: str = "", **changes: object) -> ModelPlan:
    config = {**shapes.SHAPES[shape], "num_hidden_layers": layers}
    return ModelPlan(label or shape, config, **changes)  # type: ignore[arg-type]


SET_ASIDE = (
    _plan("qwen3-14b", 2),
    _plan("qwen2.5-7b", 2),
    _plan("phi-3-mini", 2),
    _plan("llama-3.2-1b", 4),
    _plan("olmoe-1b-7b", 1),
    _plan("qwen3-235b-a22b", 1),
    # vLLM runs several positions through latent attention as a prefill unless speculation is on.
    _plan("deepseek-v2-lite", 3, kernels=WITHOUT_ATTENTION, kv_tokens=20_000),
    _plan("qwen3-14b", 2, "qwen3-14b-fp8", arguments=FP8),
)
"""Shapes for the check alone."""
WAIT_LIMIT_SECONDS = 500.0


def wait_for(path: Path) -> None:
    """Wait until the file is there: another run that shares the GPU has ended."""
    deadline = time.monotonic() + WAIT_LIMIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--reference", is_flag=True, help="The shapes that fit constants, not the others.")
@click.option("--trial", is_flag=True, help="Tiny models, to try the script without a GPU.")
@click.option("--only", default="", help="Labels, separated by commas.")
@click.option(
    "--wait-for",
    "awaited",
    type=click.Path(path_type=Path),
    default=None,
    help="Start the engines, but measure only once this file is there.",
)
def main(out: Path, reference: bool, trial: bool, only: str, awaited: Path | None) -> None:
    """Run the sweep; see the module's text."""
    plans = TRIAL if trial else REFERENCE if reference else SET_ASIDE
    out.mkdir(parents=True, exist_ok=True)
    record = environment.record()

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    chosen = choose(plans, only.split(",") if only else ())
    outcome = run_plans(chosen, out, say, lambda: wait_for(awaited) if awaited else None)
    for failure in outcome.failures:
        print(f"{failure.label} failed: see {failure.log}")
    for samples in outcome.samples:
        plain = out / f"{samples.model}.jsonl"
        pack(plain, plain.with_suffix(".jsonl.gz"))
        plain.unlink()
    about = {**record, "after": environment.gpu_state()}
    (out / "environment.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
