"""Two tensor-parallel ranks that Ray starts: settings reach them, and probes change no output."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running, path_with, server, wait_for

from vllm_nfp.results import scrape
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import Child, vllm_environment

pytest.importorskip("ray")

from ray_platform import install

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
PROBE = json.dumps({
    "batch_sizes": [1, 4], "contexts": [32, 128], "max_positions": 4, "startup_seconds": 1.0,
    "publish_seconds": 0.3, "overhead_budget": 0.5, "step_share": 1.0, "min_samples": 2,
    "capture_seconds": 60.0,
})  # fmt: skip
START = "from ray.scripts.scripts import main; main()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ray with two GPUs that are none, started without a word of the probe; how to reach it."""
    folder = tmp_path_factory.mktemp("ray")
    install(folder)
    # Paths of sockets have little room.
    own, port = tempfile.mkdtemp(prefix="ray-"), free_port()
    environment = {
        "PYTHONPATH": path_with(f"{HERE}:{folder}"), "RAY_ADDRESS": f"127.0.0.1:{port}",
    }  # fmt: skip
    command = [
        sys.executable, "-c", START, "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--num-gpus=2", "--num-cpus=2", f"--temp-dir={own}",
        "--include-dashboard=false", "--object-store-memory=80000000", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "ray.log"
    try:
        with Child(command, log, vllm_environment(environment), name="Ray") as ray:
            ray.wait_until(lambda: "Ray runtime started" in log.read_text(), 120.0)
            yield environment
    finally:
        shutil.rmtree(own, ignore_errors=True)


def on_all_ranks(running: Running, method: str, *arguments: str) -> None:
    """Calls a method of rank_extension.py."""
    body = json.dumps({"method": method, "args": arguments}).encode()
    request = urllib.request.Request(
        f"{running.url}/collective_rpc", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60.0).close()


@pytest.mark.parametrize(
    "second",
    [True, pytest.param(False, marks=pytest.mark.thorough)],
    ids=["vLLM's second executor", "its first"],
)
def test_ranks_under_ray_are_probed_and_outputs_stay(
    second: bool, cluster: dict[str, str], dense_model: Path, tmp_path: Path
) -> None:
    with server(
        dense_model, tmp_path, "--tensor-parallel-size", "2", "--distributed-executor-backend",
        "ray", "--worker-extension-cls", "rank_extension.ProbeExtension",
        "--nfp-probe", "--nfp-config", PROBE,
        VLLM_SERVER_DEV_MODE="1", VLLM_USE_RAY_V2_EXECUTOR_BACKEND=str(int(second)), **cluster,
    ) as running:  # fmt: skip
        probed: list[list[list[int]]] = []

        def measured() -> bool:
            probed.append(running.concurrent())
            (status,) = scrape.parse(running.metrics()).statuses
            assert status.state in {"probing", "steady"}, status.reason
            return status.probes["measured"] >= 10

        wait_for(measured, what="ten pairs between steps")
        modules = {row.module for row in scrape.parse(running.metrics()).rows}
        assert modules == {"attention", "dense_ffn", "communication", "model"}
        on_all_ranks(running, "nfp_fault", "prepare@1")  # all ranks take their probes off

        def off() -> bool:
            running.concurrent()
            return scrape.parse(running.metrics()).statuses[0].state == "disabled"

        wait_for(off, what="the end of the probe")
        plain = running.concurrent()
        assert len(set(map(tuple, plain))) > 10, "the model repeats itself"
        assert all(outputs == plain for outputs in probed)
