"""On a CUDA GPU: FULL CUDA graphs, and outputs that the probe does not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_nfp.config import ENV_VAR, config_from_mapping
from vllm_nfp.metrics import State, read_snapshot

pytestmark = pytest.mark.gpu

GENERATE = Path(__file__).parents[1] / "engine" / "generate.py"


def generate(model: Path, out: Path, probe: dict[str, object] | None) -> object:
    environment = dict(os.environ)
    if probe is not None:
        environment[ENV_VAR] = config_from_mapping(probe).to_json()
    done = subprocess.run(
        [sys.executable, str(GENERATE), str(model), str(out), "graphs"],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def plain(dense_model: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    return generate(dense_model, tmp_path_factory.mktemp("plain") / "plain.json", None)


@pytest.mark.parametrize(("graph_memory_mib", "shared"), [(64, True), (1024, False), (0, False)])
def test_outputs_do_not_change_in_full_graphs(
    dense_model: Path, plain: object, tmp_path: Path, graph_memory_mib: int, shared: bool
) -> None:
    """Without any memory for graphs of its own the probe only times real steps, and says why."""
    probe = {
        "batch_sizes": [1, 4],
        "contexts": [32, 128],
        "max_positions": 8,
        "overhead_budget": 0.5,
        "startup_seconds": 0.5,
        "publish_seconds": 0.2,
        "graph_memory_mib": graph_memory_mib,
        "share_graph_pool": shared,
        "run_dir": str(tmp_path),
    }
    assert generate(dense_model, tmp_path / "probed.json", probe) == plain
    snapshot = read_snapshot(tmp_path / "engine-0.json")
    if graph_memory_mib:
        assert snapshot.state is not State.DISABLED, snapshot.reason
        assert {row.execution for row in snapshot.curves} == {"full"}
        assert snapshot.probes["measured"] >= 5
        assert 0 < snapshot.graph_bytes <= graph_memory_mib << 20
        assert {row.positions for row in snapshot.steps} == {1}
    else:
        assert snapshot.state is State.PASSIVE
        assert "no cell can be probed" in snapshot.reason
        assert {row.positions for row in snapshot.steps} == {1}
