"""One real server, abused: scraped without end, soaked, and its engine killed."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from generate import by_transformers
from serving import server, wait_for

from vllm_nfp.results.scrape import find_samples

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("aiohttp")

from benchmarks.overhead import soak

pytestmark = pytest.mark.engine

PROBE = (
    '{"batch_sizes": [1, 4], "contexts": [64], "startup_seconds": 0, "publish_seconds": 0.3, '
    '"min_samples": 2, "max_positions": 4}'
)


def processes(wanted: Callable[[int, bytes], bool]) -> list[int]:
    """Processes by group and command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            if wanted(os.getpgid(pid), (folder / "cmdline").read_bytes()):
                found.append(pid)
        except OSError:
            continue
    return found


def value(metrics: str, name: str, **labels: str) -> float:
    rows = find_samples(metrics, (name,)).get(name, [])
    return sum(v for found, v in rows if labels.items() <= found.items())


def slow_reader(port: int) -> socket.socket:
    """Asks for the metrics and reads nothing of them."""
    one = socket.create_connection(("127.0.0.1", port), timeout=30)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    return one


def test_a_server_survives_its_scrapers_and_a_killed_engine_leaves_nothing(
    dense_model: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    flags = ("--nfp-probe", "--nfp-config", PROBE)
    # Paths of sockets must be short.
    folders = {"TMPDIR": str(runs), "VLLM_RPC_BASE_PATH": tempfile.gettempdir()}
    with server(dense_model, tmp_path, *flags, **folders) as running:
        port = int(running.url.rsplit(":", 1)[1])
        prompt = list(range(10, 60))
        (expected,) = by_transformers(dense_model, [prompt], 32)
        assert len(set(expected)) > 10, "the model repeats itself"
        assert running.complete(prompt, temperature=0) == expected

        slow = [slow_reader(port) for _ in range(20)]
        with ThreadPoolExecutor(16) as pool:
            scrapes = [pool.submit(running.metrics) for _ in range(200)]
            outputs = [pool.submit(running.complete, prompt, temperature=0) for _ in range(4)]
            assert all(one.result() == expected for one in outputs)
            assert all("vllm_nfp_state" in one.result() for one in scrapes)
        for one in slow:
            one.close()
        metrics = running.metrics()
        assert value(metrics, "vllm_nfp_state", state="disabled") == 0.0
        assert value(metrics, "vllm_nfp_age_seconds") < 60.0
        wait_for(lambda: value(running.metrics(), "vllm_nfp_steps_total") > 30)

        (folder,) = runs.glob("vllm-nfp-*")
        names = {*find_samples(running.metrics(), ())}
        # In one go: the engine writes into it meanwhile.
        folder.rename(tmp_path / "gone")
        back_in_time = time.monotonic() + 300.0
        # The last one is there while the last published step lies in a reported cell: not after the
        # end of these requests, whose context is longer.
        names -= {"vllm_nfp_state_info", "vllm_nfp_live_cell_info"}
        while missing := names - {*find_samples(running.metrics(), ())}:
            assert value(running.metrics(), "vllm_nfp_state") == 1.0
            assert time.monotonic() < back_in_time, f"these series do not come back: {missing}"
            time.sleep(0.05)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert running.complete(prompt, temperature=0) == expected
        assert running.log_text().count("it has been made again") == 1

        leader = running.server.child.pid
        samples: list[soak.Sample] = []
        while len(samples) < 20:  # a busy machine takes few in that time
            samples += soak.soak(
                leader, running.url, 12.0, 0.6, lambda: running.complete(prompt, temperature=0)
            )
        assert soak.grown(samples) == []

        engine = processes(lambda group, command: group == leader and b"EngineCore" in command)
        assert engine
        for pid in engine:
            os.kill(pid, signal.SIGKILL)
        # vLLM's API server ends itself when its engine is gone, as it does without the probe.
        wait_for(lambda: not Path(f"/proc/{leader}").exists() or is_zombie(leader))
        assert list(runs.glob("vllm-nfp-*")) == [], "the hand-over folder is left behind"


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
