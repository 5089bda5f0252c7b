"""Two tensor-parallel ranks that Ray starts: settings reach them, and probes change no output."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks_probed import EXTENSION, PROBE, check_probes_change_no_output
from serving import path_with, server

from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import Child, vllm_environment

pytest.importorskip("ray")

from ray_platform import install

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

HERE = Path(__file__).parent
START = "from ray.scripts.scripts import main; main()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ray with two GPUs that are none, started without a word of the probe; how to reach it."""
    folder = tmp_path_factory.mktemp("ray")
    install(folder)
    # Paths of sockets have little room.
    own, port = tempfile.mkdtemp(prefix="ray-"), free_port()
    # Ray's own ports may be taken, and its workers' are among those that may be free here.
    ports = (
        "--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
    )  # fmt: skip
    environment = {
        "PYTHONPATH": f"{HERE}:{path_with(folder)}", "RAY_ADDRESS": f"127.0.0.1:{port}",
    }  # fmt: skip
    command = [
        sys.executable, "-c", START, "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--num-gpus=2", "--num-cpus=2", f"--temp-dir={own}",
        "--include-dashboard=false", "--object-store-memory=80000000", "--disable-usage-stats",
        *ports,
    ]  # fmt: skip
    log = folder / "ray.log"
    try:
        with Child(command, log, vllm_environment(environment), name="Ray") as ray:
            ray.wait_until(lambda: "Ray runtime started" in log.read_text(), 120.0)
            yield environment
    finally:
        shutil.rmtree(own, ignore_errors=True)


def test_ranks_under_ray_are_probed_and_outputs_stay(
    cluster: dict[str, str], dense_model: Path, tmp_path: Path
) -> None:
    with server(
        dense_model, tmp_path, "--tensor-parallel-size", "2", "--distributed-executor-backend",
        "ray", "--worker-extension-cls", EXTENSION, "--nfp-probe", "--nfp-config", PROBE,
        as_typed=True, VLLM_SERVER_DEV_MODE="1", **cluster,
    ) as running:  # fmt: skip
        check_probes_change_no_output(running)
