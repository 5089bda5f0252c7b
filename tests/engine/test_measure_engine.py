"""measure, report and compare on a real engine, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from programs import ForkedChild

from vllm_nfp import load_profile
from vllm_nfp.cli import main
from vllm_nfp.config import ProbeConfig
from vllm_nfp.measure import Progress, Settings
from vllm_nfp.measure import measure as run_measure
from vllm_nfp.types import Basis

pytestmark = pytest.mark.engine


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vllm_nfp.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def run_here(*arguments: object) -> str:
    """The same in this process; an engine that it starts is a fork, which has imported vLLM."""
    with mock.patch("vllm_nfp.measure.Child", ForkedChild):
        done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def measure(
    run: Callable[..., str], model: Path, out: Path, max_positions: int, **engine_args: object
) -> str:
    return run(
        "measure", model, "--batch-sizes", "1,4,64", "--contexts", "32,128", "--layers", 0,
        "--max-positions", max_positions, "--samples", 6, "--seconds", 200, "-o", out,
        "--engine-args", json.dumps({"max_model_len": 256, "max_num_seqs": 8, **engine_args}),
    )  # fmt: skip


def test_measure_report_compare(dense_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    table = measure(run, dense_model, first, 4, dtype="float32")
    assert "B=64 L=32 was not probed: batch size 64 exceeds --max-num-seqs 8" in table
    assert "within 10%" in table

    profile = load_profile(first)
    cells = {(m, b, c) for m in ("model", "attention", "dense_ffn") for b in (1, 4)
             for c in (32, 128)}  # fmt: skip
    assert set(profile.cells) == cells
    assert {row.positions for row in profile.curves} == {1, 2, 3, 4}
    assert [row for row in profile.curves if row.samples < 6 or row.seconds_upper is None] == []
    assert {row.basis for row in (*profile.curves, *profile.boundaries)} == {Basis.MEASURED}
    assert "Answers:" not in table
    assert len(profile.boundaries) == 3 * len(cells)
    assert {row.layer for row in profile.layer_times} == {0, 1, 2}
    assert profile.model.num_layers == 3
    assert profile.model.num_key_value_heads == 2
    assert profile.model.architecture == "Qwen3ForCausalLM"
    assert profile.environment.dtype == "float32"
    assert profile.environment.device.type == "cpu"
    assert profile.environment.max_model_len == 256
    assert profile.environment.attention_backends
    assert profile.run.missing_pairs == 0
    # Two batch sizes, two contexts, three counts beyond 1, six pairs each.
    assert profile.run.probes["startup"] == 2 * 2 * 3 * 6

    report = tmp_path / "report.html"
    run_here("report", first, "-o", report)
    assert "Qwen3ForCausalLM" in report.read_text()

    measure(run_here, dense_model, second, 3, dtype="bfloat16")
    found = json.loads(run_here("compare", first, second, "--json"))
    changed = {row["name"]: (row["before"], row["after"]) for row in found["settings"]}
    assert changed["environment.dtype"] == ("float32", "bfloat16")
    assert changed["probe.positions"] == ("1,2,3,4", "1,2,3")
    assert len(found["nfp"]) == 3 * len(cells)
    assert len(found["times"]) == 3 * len(cells)
    assert all(row["ratio"] > 0 for row in found["times"])


def test_a_model_with_experts_is_scanned_once_prompts_have_filled_the_cache(
    moe_model: Path, tmp_path: Path
) -> None:
    """Each of 4 sequences reads a context of 2 blocks; a step holds 2 prompts as long."""
    probe = ProbeConfig(
        batch_sizes=(1, 4), contexts=(32, 128), max_positions=2, wanted_samples=2,
        startup_seconds=200.0, capture_seconds=60.0,
    )  # fmt: skip
    arguments = {
        "max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 512,
        "load_format": "dummy", "block_size": 128,
    }  # fmt: skip
    told: list[Progress] = []
    log = tmp_path / "log"
    with mock.patch("vllm_nfp.measure.Child", ForkedChild):
        profile = run_measure(Settings(str(moe_model), probe, arguments), log, told.append)
    assert profile.run.reason == ""
    assert profile.run.missing_pairs == 0
    assert {row.basis for row in profile.curves} == {Basis.MEASURED}
    waits = [progress.waits_for.partition(":")[0] for progress in told if progress.started]
    assert waits[0] == "filling the KV cache with prompts"
    assert told[-1].pairs_done > 0 and not told[-1].waits_for
    filled, scanned = map(
        log.read_text().find,
        ("4 random prompts of 256 tokens have filled the KV cache", "probe active"),
    )
    assert 0 < filled < scanned
