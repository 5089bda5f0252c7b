"""A server's log names what its engine was doing when no step followed."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.serving import stall_watch
from benchmarks.serving.stall_watch import StallWatch

SERVED = """
import time
from types import SimpleNamespace
from benchmarks.serving.stall_watch import StallWatch

class Worker:
    def execute_model(self, scheduled):
        wait_for_something(scheduled.seconds)
        return "done"

def wait_for_something(seconds):
    time.sleep(seconds)

counts = iter([{"num_device_alloc": 3}, {"num_device_alloc": 5}])
StallWatch(gap_seconds=0.2, counters=lambda: next(counts)).install(Worker)
worker = Worker()
for seconds, requests in ((0.0, 2), (0.5, 2), (0.0, 1), (0.0, 0)):
    scheduled = SimpleNamespace(num_scheduled_tokens=dict.fromkeys(range(requests), 1),
                                seconds=seconds)
    assert worker.execute_model(scheduled) == "done"
time.sleep(0.4)  # without requests: nobody waits for a step
"""


def test_the_log_names_the_function_that_kept_the_next_step_waiting() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no step follows") == 1, "one gap, and none without requests"
    assert "thread MainThread" in done.stderr and "thread stall-watch" not in done.stderr
    assert "in wait_for_something" in done.stderr
    (line,) = [one for one in done.stderr.splitlines() if "a step of" in one]
    assert "a step of 1 requests begins 0.5" in line
    assert line.endswith("s after the last; num_device_alloc +2")


def test_long_collections_alone_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.serving.stall_watch.time.monotonic", lambda: now[0])
    with (tmp_path / "log").open("wb") as file:
        watch = StallWatch(file.fileno(), counters=dict)
        for seconds in (0.01, 0.7):
            watch.collection("start", {"generation": 2})
            now[0] += seconds
            watch.collection("stop", {"generation": 2})
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("a collection of generation 2 took 0.70 s")


def test_nothing_is_watched_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(Worker=type("Worker", (), {"execute_model": lambda *_: None}))
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu_worker", module)
    original, callbacks = module.Worker.execute_model, [*gc.callbacks]
    monkeypatch.delenv(stall_watch.VARIABLE, raising=False)
    stall_watch.watch_if_asked()
    assert module.Worker.execute_model is original
    monkeypatch.setenv(stall_watch.VARIABLE, "1")
    monkeypatch.setattr(gc, "callbacks", callbacks)
    stall_watch.watch_if_asked()
    assert module.Worker.execute_model is not original
