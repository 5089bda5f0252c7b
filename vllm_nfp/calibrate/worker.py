"""The process that times one model: ``python -m vllm_nfp.calibrate.worker PLAN.json OUT.jsonl``.

It starts an engine, says ``ready`` on standard output, waits for a line on standard input, so that
it has the GPU to itself, times everything, saying ``series K of N`` after each, and says ``done``
with the number of curves.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vllm_nfp.calibrate.plans import (
    MAX_MODEL_LEN,
    MAX_SEQS,
    MAX_TOKENS,
    PASSES,
    ModelPlan,
    series_of,
)
from vllm_nfp.calibrate.points import Curve, Kernel, KernelSamples, Series, write_samples
from vllm_nfp.calibrate.sweep import Bench, PointRefusedError, time_series

EXPERT_WARM_UP = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 256, 512, 1024)
"""Tokens at which the expert kernel may take another configuration, which it compiles."""


def main() -> None:
    """Run the plan that the command line names."""
    from vllm_nfp.adapter.offline import end_with_parent

    end_with_parent()
    plan_file, out = map(Path, sys.argv[1:3])
    work(ModelPlan.from_json(plan_file.read_text(encoding="utf-8")), out)


def work(plan: ModelPlan, out: Path) -> None:
    """Start, wait for the word, time, write."""
    import torch

    from vllm_nfp.adapter.environment import attention_backends, describe_environment
    from vllm_nfp.adapter.in_process import engine_in_process, module_engine_arguments
    from vllm_nfp.calibrate.bench import ModuleBench
    from vllm_nfp.timing import CudaClock, HostClock

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="nfp-calibrate-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(plan.config)), encoding="utf-8")
        arguments = {**_engine_arguments(plan, on_gpu, module_engine_arguments), **plan.arguments}
        with engine_in_process(Path(folder), arguments) as view, torch.inference_mode():
            bench = ModuleBench(view, CudaClock() if on_gpu else HostClock())
            if on_gpu and Kernel.MOE_FFN in plan.kernels and bench.has(Kernel.MOE_FFN):
                _warm_up_experts(bench)
            print("ready", flush=True)
            if not sys.stdin.readline():
                return
            described = describe_environment(view.vllm_config, attention_backends(view.runner))
            environment = {
                **dataclasses.asdict(described),
                "attention_backend": bench.attention_backend,
            }
            curves = _time_all(bench, plan, environment, out)
            print(f"done {len(curves)} curves", flush=True)


def _engine_arguments(plan: ModelPlan, on_gpu: bool, make: Any) -> dict[str, Any]:
    if plan.small:
        sizes = {"max_model_len": 2048, "max_num_seqs": 16, "kv_cache_bytes": 64 << 20}
    else:
        sizes = {
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_SEQS,
            "kv_cache_bytes": plan.kv_cache_bytes,
        }
    arguments: dict[str, Any] = make(max_tokens=MAX_TOKENS, on_gpu=on_gpu, **sizes)
    return arguments


def _warm_up_experts(bench: Bench) -> None:
    """Compile the expert kernel's configurations while other processes still start."""
    for tokens in EXPERT_WARM_UP:
        try:
            bench.ready(Series(Kernel.MOE_FFN), tokens)
        except PointRefusedError:
            break
    bench.release()


def _time_all(bench: Any, plan: ModelPlan, environment: dict[str, Any], out: Path) -> list[Curve]:
    rng = random.Random(0)
    curves: list[Curve] = []
    begun = time.time()
    try:
        everything = tuple(series_of(bench, plan))
        for count, (series, positions) in enumerate(everything, 1):
            curve = time_series(bench, series, positions, PASSES, rng)
            if curve is not None:
                curves.append(curve)
            print(f"series {count} of {len(everything)}", flush=True)
    finally:  # a fault late in the sweep must not cost what was measured before
        about = {**environment, "arguments": dict(plan.arguments), "date_unix_seconds": begun}
        write_samples(out, KernelSamples(plan.label, plan.config, about, tuple(curves)))
    return curves


if __name__ == "__main__":
    main()
