"""On a CUDA GPU: FULL CUDA graphs, and outputs that the probe does not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kinds
import pytest

from vllm_nfp.config import ENV_VAR, config_from_mapping
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.types import State

pytestmark = pytest.mark.gpu

GENERATE = Path(__file__).parents[1] / "engine" / "generate.py"
REAL_GRAPHS = Path(__file__).with_name("real_graphs.py")


def generate(
    model: Path, out: Path, probe: dict[str, object] | None, mode: str = "graphs", **more: Any
) -> Any:
    """Args: more: further arguments of the engine; see ``generate.py``."""
    environment = dict(os.environ)
    if probe is not None:
        environment[ENV_VAR] = config_from_mapping(probe).to_json()
    done = subprocess.run(
        [sys.executable, str(GENERATE), str(model), str(out), mode, json.dumps(more)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out.with_suffix(".log").write_text(done.stdout + done.stderr)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def plain(dense_model: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    return generate(dense_model, tmp_path_factory.mktemp("plain") / "plain.json", None)


FEW_SHAPES = {"batch_sizes": [1, 4], "contexts": [32, 128], "startup_seconds": 0.5}
OFTEN = {"max_positions": 8, "overhead_budget": 0.5, "step_share": 1.0, "publish_seconds": 0.2}
PROBE = {**FEW_SHAPES, **OFTEN}
WHOLE_TABLE = {"capture_seconds": 0.0, "startup_seconds": 0.0, "wanted_samples": 1}
"""Of the server; its shapes run for the first time, and are captured, between real steps."""


def check(folder: Path, least: int = 5) -> Any:
    """The probe has run, and says that it goes on."""
    snapshot = read_snapshot(folder / "engine-0.json")
    assert snapshot.state not in (State.DISABLED, State.PASSIVE), snapshot.reason
    assert snapshot.probes["measured"] >= least
    return snapshot


@pytest.mark.parametrize(
    ("shapes", "graph_memory_mib", "shared"),
    [
        (FEW_SHAPES, 64, True),
        (FEW_SHAPES, 1024, False),
        (FEW_SHAPES, 0, False),
        (WHOLE_TABLE, 64, True),
    ],
)
def test_outputs_do_not_change_in_full_graphs(
    dense_model: Path,
    plain: object,
    tmp_path: Path,
    shapes: dict[str, object],
    graph_memory_mib: int,
    shared: bool,
) -> None:
    """Without any memory for graphs of its own the probe only times real steps, and says why."""
    probe = {
        **shapes,
        **OFTEN,
        "graph_memory_mib": graph_memory_mib,
        "share_graph_pool": shared,
        "run_dir": str(tmp_path),
    }
    assert generate(dense_model, tmp_path / "probed.json", probe) == plain
    snapshot = read_snapshot(tmp_path / "engine-0.json")
    if graph_memory_mib:
        assert snapshot.state is not State.DISABLED, snapshot.reason
        executions = {row.execution for row in snapshot.curves}
        assert executions == {"full"} or ("full" in executions and shapes is WHOLE_TABLE)
        assert snapshot.probes["measured"] >= 5
        assert snapshot.probes["prepared"] >= 5 or shapes is FEW_SHAPES
        assert 0 < snapshot.graph_bytes <= graph_memory_mib << 20
        assert {row.positions for row in snapshot.steps} == {1}
    else:
        assert snapshot.state is State.PASSIVE
        assert "no cell can be probed" in snapshot.reason
        assert {row.positions for row in snapshot.steps} == {1}


@pytest.fixture(scope="module")
def rotary_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It reads pictures, and its rotary positions have three dimensions."""
    return kinds.rotary(tmp_path_factory.mktemp("rotary"))


def test_outputs_do_not_change_while_pictures_are_read(rotary_model: Path, tmp_path: Path) -> None:
    """The probe's FULL graphs read embeddings that are made before them."""
    plain = generate(rotary_model, tmp_path / "plain.json", None, "picture-graphs")
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(rotary_model, tmp_path / "probed.json", probe, "picture-graphs") == plain
    snapshot = check(tmp_path)
    assert {row.execution for row in snapshot.curves} == {"full"}


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It writes English: SmolLM2-135M-Instruct, of a package that not every machine has."""
    return kinds.real(tmp_path_factory.mktemp("real"))


def test_real_text_does_not_change(real_model: Path, tmp_path: Path) -> None:
    plain = generate(real_model, tmp_path / "plain.json", None, "text-graphs")
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(real_model, tmp_path / "probed.json", probe, "text-graphs") == plain
    check(tmp_path)


@pytest.mark.parametrize("mode", ["compiled", "piecewise"])
def test_a_rotary_table_of_another_type_is_left_to_compiled_code(tmp_path: Path, mode: str) -> None:
    """Until 2026-11-29 a server of gpt-oss gave other answers with the probe."""
    model = kinds.wide_angles(tmp_path / "model")

    def run(name: str, probe: dict[str, object] | None) -> Any:
        out = tmp_path / f"{name}.json"
        return generate(model, out, probe, mode, gpu_memory_utilization=0.05)

    # An engine that finds compiled code may answer otherwise than the one that has compiled it, by
    # 0.02 of a log probability at 2 of 240 answers here (vLLM 0.32): all three run the found code.
    run("compiling", None)
    plain = run("plain", None)
    assert run("again", None) == plain, "vLLM's own answers differ: they tell nothing here"
    assert run("probed", {**PROBE, "run_dir": str(tmp_path)}) == plain
    check(tmp_path)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kinds.hybrid, id="gated-delta-net"),
        pytest.param(kinds.nemotron, id="mamba-2"),
        pytest.param(kinds.lfm2, id="short-convolutions"),
    ],
)
def hybrid_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers with a recurrent state, and one with a KV cache."""
    model: Path = request.param(tmp_path_factory.mktemp("hybrid"))
    return model


@pytest.mark.parametrize(("mode", "execution"), [("graphs", "full"), ("piecewise", "piecewise")])
def test_outputs_do_not_change_while_recurrent_states_are_probed(
    hybrid_model: Path, tmp_path: Path, mode: str, execution: str
) -> None:
    """The graphs hold the addresses of the probe's own states, never of the server's."""
    plain = generate(hybrid_model, tmp_path / "plain.json", None, mode)
    assert len({tuple(one["tokens"]) for one in plain}) > 8, "the model repeats itself"
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(hybrid_model, tmp_path / "probed.json", probe, mode) == plain
    snapshot = check(tmp_path)
    assert {row.execution for row in snapshot.curves} == {execution}
    measured = {row.module for row in snapshot.curves if row.samples}
    assert measured >= {"attention", "linear_attention", "model"}


def probe_real_graphs(model: Path, folder: Path, mode: str) -> dict[str, Any]:
    out = folder / "seen.json"
    done = subprocess.run(
        [sys.executable, str(REAL_GRAPHS), str(model), str(folder), str(out), mode],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found: dict[str, Any] = json.loads(out.read_text())
    print(f"{mode}: {found.get('ms_per_gib')} ms per GiB, a proof: {found.get('proof_ms')} ms")
    return found


@pytest.mark.parametrize("kind", ["dense_model", "moe_model", "rotary_model"])
@pytest.mark.parametrize("mode", ["piecewise", "partition"])
def test_piecewise_probes_run_on_the_pools_tokens_and_leave_the_runners_buffers(
    kind: str, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Their graphs read the runner's own buffers; a stale padding mask would silence experts."""
    found = probe_real_graphs(request.getfixturevalue(kind), tmp_path, mode)
    assert found["active"] and found["active_after"], found["reason"]
    *runs, kept = found["runs"]
    assert {run["execution"] for run in runs} == {"piecewise"}
    assert all(run["ids"] == run["drawn"] for run in runs)
    assert runs[0]["ids"] == runs[1]["ids"][:4] and runs[1]["ids"] != runs[2]["ids"]
    assert len(set(runs[1]["ids"])) > 16
    # Compiled and plain kernels round otherwise; outputs of other tokens are not alike at all.
    assert min(run["alike"] for run in runs) > 0.98, runs
    assert all(kept["buffers_kept"])
    assert found["same"] and found["measured"] >= 8


def test_full_graphs_are_proven_to_keep_the_kv_cache(dense_model: Path, tmp_path: Path) -> None:
    found = probe_real_graphs(dense_model, tmp_path, "full")
    assert found["active"] and found["active_after"], found["reason"]
    assert found["same"] and found["measured"] >= 8
    assert found["ms_per_gib"] < 20.0


def test_shapes_run_first_and_are_captured_after_the_start_in_the_memory_of_vllms_graphs(
    dense_model: Path, tmp_path: Path
) -> None:
    found = probe_real_graphs(dense_model, tmp_path, "late")
    assert found["active"] and found["active_after"], found["reason"]
    assert found["same"] and found["measured"] >= 8
    assert len(found["grown"]) >= 12, "few shapes ran after the start"
    assert sum(found["grown"]) <= 8 << 20, "runs take memory beside that of vLLM's graphs"
    assert found["graph_bytes"] <= 64 << 20


def test_a_run_that_leaves_something_in_the_graphs_memory_disables_the_probe(
    dense_model: Path, tmp_path: Path
) -> None:
    found = probe_real_graphs(dense_model, tmp_path, "kept")
    assert found["active"] and not found["active_after"]
    assert "in the memory of vLLM's CUDA graphs" in found["reason"]
    assert found["same"], "nobody reads what was left there"


def test_a_graph_that_changes_the_kv_cache_disables_the_probe(
    dense_model: Path, tmp_path: Path
) -> None:
    """Eager runs of the same shape, and graphs of others, change nothing."""
    found = probe_real_graphs(dense_model, tmp_path, "writes")
    assert not found["active_after"]
    assert "B=4 N=4 (CUDA graphs: full) changed the KV cache" in found["reason"]
    assert found["same"], "the null block is read by nobody"
