"""calibrate on a real engine, as a user tries it; and what its bench does to an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from programs import result_of

from vllm_nfp.calibrate.points import Kernel, read_samples
from vllm_nfp.principle.hardware_file import read_hardware_file

pytestmark = pytest.mark.engine

BENCH = """
import json, sys
from pathlib import Path

import torch

from vllm_nfp.calibrate.plans import series_of
from vllm_nfp.calibrate.reference_models import TRIAL
from vllm_nfp.calibrate.points import Kernel
from vllm_nfp.calibrate.modules import ModuleBench
from vllm_nfp.calibrate.worker import engine_arguments
from vllm_nfp.adapter.runners import view_of
from vllm_nfp.adapter.engines import runner_without_probe
from vllm_nfp.timing import HostClock

folder = Path(sys.argv[1])
plan = TRIAL[1] if sys.argv[2] == "moe" else TRIAL[0]
(folder / "config.json").write_text(json.dumps(dict(plan.config)))
with (
    runner_without_probe(folder, engine_arguments(plan, on_gpu=False)) as runner,
    torch.inference_mode(),
):
    view = view_of(runner)
    for cache in view.runner.kv_caches:
        cache.copy_(torch.rand(cache.shape, generator=torch.Generator().manual_seed(0)))
    before = [cache.clone() for cache in view.runner.kv_caches]
    bench = ModuleBench(view, HostClock())
    ran = []
    for series, positions in series_of(bench, plan):
        seconds = [bench.ready(series, n)() for n in positions]
        assert all(s > 0 for s in seconds), (series, seconds)
        ran.append((series.kernel, series.causal))
        if series.kernel is not Kernel.ATTENTION:
            assert bench.sizes(series)[2] > 0
        bench.release()
    same = [torch.equal(a, b) for a, b in zip(before, view.runner.kv_caches)]
    assert len(same) > 0 and before[0].float().std() > 0
print("RESULT " + json.dumps({"same": same, "ran": ran}), flush=True)
"""


def test_trial_writes_a_hardware_file(tmp_path: Path) -> None:
    out, samples = tmp_path / "trial.json", tmp_path / "samples"
    done = subprocess.run(
        [sys.executable, "-m", "vllm_nfp.cli", "calibrate", "--trial", "--hardware", "H100-SXM",
         "-o", str(out), "--samples", str(samples)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "constants of tiny models on a CPU are meaningless" in done.stdout
    target = read_hardware_file(out)
    assert target.hardware.name == "H100-SXM"
    assert target.calibration.source.startswith("TRIAL, meaningless")
    assert not target.calibration.fitted
    assert target.environment["curves"].keys() == {"tiny", "tiny-moe"}

    dense, moe = (read_samples(samples / f"{label}.jsonl") for label in ("tiny", "tiny-moe"))
    assert {c.series.kernel for c in dense.curves} == set(Kernel) - {Kernel.MOE_FFN}
    assert {c.series.kernel for c in moe.curves} == set(Kernel) - {Kernel.DENSE_FFN}
    names = {curve.series.name for curve in dense.curves if curve.series.kernel is Kernel.LINEAR}
    assert names == {"mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"}
    assert all(len(p) == 5 for curve in dense.curves for p in curve.seconds)
    assert dense.environment["attention_backend"] == "CPU_ATTN"
    # Logs and plans of complete runs are gone.
    assert {path.name for path in samples.iterdir()} == {"tiny.jsonl", "tiny-moe.jsonl"}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_bench_runs_every_kernel_and_writes_no_kv_byte(tmp_path: Path, kind: str) -> None:
    result = result_of(BENCH, tmp_path, kind)
    assert all(result["same"])
    ffn = "moe_ffn" if kind == "moe" else "dense_ffn"
    kernels = [kernel for kernel, _ in result["ran"]]
    assert set(kernels) == {ffn, "lm_head", "linear", "attention"}
    assert ["attention", True] in result["ran"]
    assert ["attention", False] in result["ran"]
