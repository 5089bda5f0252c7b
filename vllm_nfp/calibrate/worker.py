"""The process that times one model: ``python -m vllm_nfp.calibrate.worker PLAN.json OUT.jsonl``.

It starts an engine, prints ``ready``, and waits for a line on standard input, so that it has the
GPU to itself. It then times everything, prints ``series K of N`` after each series, and ``done``
with the number of curves at the end.
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
from vllm_nfp.start.process import end_with_parent

EXPERT_WARM_UP = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 256, 512, 1024)
"""Tokens at which the expert kernel may use another configuration, which it compiles."""
SMALL_KV_CACHE_BYTES = 64 << 20


def main() -> None:
    """Run the plan that the command line names."""
    end_with_parent()
    plan_file, out = map(Path, sys.argv[1:3])
    work(ModelPlan.from_json(plan_file.read_text(encoding="utf-8")), out)


def work(plan: ModelPlan, out: Path) -> None:
    """Start an engine, wait for a line on standard input, time everything, write the samples."""
    import torch

    from vllm_nfp.adapter.engines import runner_without_probe
    from vllm_nfp.adapter.environment import attention_backends, describe_environment
    from vllm_nfp.adapter.runners import view_of
    from vllm_nfp.calibrate.modules import ModuleBench
    from vllm_nfp.timing import CudaClock, HostClock

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="nfp-calibrate-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(plan.config)), encoding="utf-8")
        arguments = {**engine_arguments(plan, on_gpu), **plan.arguments}
        with runner_without_probe(Path(folder), arguments) as runner, torch.inference_mode():
            view = view_of(runner)
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


def engine_arguments(plan: ModelPlan, on_gpu: bool) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` for an engine whose modules are timed one by one.

    Nothing is compiled, which saves a minute. Two graphs are captured: with FULL graphs configured,
    attention splits its work as it does in the graphs of a server.
    """
    arguments: dict[str, Any] = {
        "max_model_len": 2048 if plan.small else MAX_MODEL_LEN,
        "max_num_seqs": 16 if plan.small else MAX_SEQS,
        "max_num_batched_tokens": MAX_TOKENS,
        "kv_cache_memory_bytes": SMALL_KV_CACHE_BYTES if plan.small else plan.kv_cache_bytes,
        "enable_prefix_caching": False,
    }
    if not on_gpu:
        return {**arguments, "enforce_eager": True}
    return {
        **arguments,
        "gpu_memory_utilization": 0.05,
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 512],
        },
    }


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
