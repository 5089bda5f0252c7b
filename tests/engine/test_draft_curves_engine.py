"""The probe's curves reach the draft controller of a real engine, wherever its worker lives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import result_of

pytestmark = pytest.mark.engine

SETTINGS = {
    "batch_sizes": [1, 2], "contexts": [32, 64], "max_positions": 5, "startup_seconds": 300.0,
    "capture_seconds": 300.0,
    "publish_seconds": 0.2, "min_samples": 2, "wanted_samples": 2, "overhead_budget": 0.0,
    "idle_share": 0.0, "draft_control": True,
}  # fmt: skip
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from vllm import LLM, SamplingParams
from vllm_nfp.draft.curve_set import CurveSet, are_alike
from vllm_nfp.draft.sources import curves_of_rows
from vllm_nfp.adapter import draft_control
from vllm_nfp.results.snapshot import read_snapshot

model, folder, backend, ranks = sys.argv[1:]
opened, controls = [], []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
attach = draft_control.attach
draft_control.attach = lambda *args: controls.append(attach(*args)) or controls[-1]
llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
          max_model_len=512, max_num_seqs=4, seed=0, tensor_parallel_size=int(ranks),
          distributed_executor_backend=backend,
          speculative_config={"method": "ngram", "num_speculative_tokens": 4,
                              "prompt_lookup_min": 1, "prompt_lookup_max": 2,
                              "num_speculative_tokens_per_batch_size": [[1, 4, 4]]})
(control,) = controls
params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, detokenize=False)
prompts = [{"prompt_token_ids": [7 + i, 30, 99, 200 + i] * 8} for i in range(2)]
deadline = time.monotonic() + 300
while time.monotonic() < deadline:
    llm.generate(prompts, params, use_tqdm=False)
    if getattr(control.controller._known.model._curves, "curves", None):
        break
opened = [Path(name).name for name in opened if name.startswith(folder)]
found = control.controller._known.model._curves
found = tuple(getattr(found, "curves", found))
snapshot = read_snapshot(Path(folder, "engine-0.json"))
# Each update changes the curves a little: what changes no draft length is not sent again.
alike = are_alike(CurveSet.of(found), CurveSet.of(curves_of_rows(snapshot.curves)))
cells = [(curve.batch_size, curve.context) for curve in found]
print("RESULT " + json.dumps({"cells": cells, "alike": alike, "opened": sorted(set(opened)),
                              "files": sorted(n for n in os.listdir(folder) if n[0] != ".")}))
"""


@pytest.mark.parametrize(("backend", "ranks"), [("uni", 1), ("mp", 1), ("mp", 2)])
def test_the_controller_has_the_curves_that_the_probe_has_measured(
    dense_model: Path, tmp_path: Path, backend: str, ranks: int
) -> None:
    settings = json.dumps({**SETTINGS, "run_dir": str(tmp_path)})
    result = result_of(
        SCRIPT, dense_model, tmp_path, backend, ranks, seconds=800.0,
        environment={"NFP_PROBE_CONFIG": settings, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )  # fmt: skip
    assert result["cells"] == [[b, c] for b in (1, 2) for c in (32, 64)]
    assert result["alike"]
    assert "engine-0.json" not in result["opened"], "the engine core reads the probe's snapshot"
    through_file = ["curves-0.jsonl"] if backend == "mp" else []
    assert [name for name in result["opened"] if "curves" in name] == through_file
    assert result["files"] == sorted(["control-0.json", "engine-0.json", *through_file])
