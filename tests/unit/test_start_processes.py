"""Child processes: what they write, how long is waited for them, and how their group ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from vllm_nfp.start.process import Child, ProcessError, vllm_environment

SLEEP = "import time; time.sleep(600)"


def child(code: str, folder: Path, **options: object) -> Child:
    return Child([sys.executable, "-c", code], folder / "log", name="the child", **options)  # type: ignore[arg-type]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_child_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    with (
        child("print('first'); print('last words'); raise SystemExit(3)", tmp_path) as one,
        pytest.raises(
            ProcessError, match=r"the child ended with code 3; last lines of .*last words"
        ),
    ):
        one.wait_until(lambda: False, 60)


def test_a_child_that_is_late_is_named(tmp_path: Path) -> None:
    with (
        child(SLEEP, tmp_path) as one,
        pytest.raises(ProcessError, match=r"the child was not ready in 0\.1 s: see .*log"),
    ):
        one.wait_until(lambda: False, 0.1, poll_seconds=0.01)
    assert one.returncode is not None


def test_a_group_ends_even_if_its_leader_is_gone(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; "
        f"print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True)"
    )
    with child(code, tmp_path) as one:
        assert one.wait(60) == 0
        pid = int((tmp_path / "log").read_text())
        assert not is_gone(pid)
    deadline = time.monotonic() + 60
    while not is_gone(pid):
        assert time.monotonic() < deadline, "it outlives its group"
        time.sleep(0.02)


def test_a_child_that_ignores_sigterm_or_is_paused_is_ended(tmp_path: Path) -> None:
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    )
    one = child(stubborn + SLEEP, tmp_path)
    one.wait_until((tmp_path / "log").read_text, 60)  # type: ignore[arg-type]
    one.pause()
    one.stop(patience_seconds=0.2)
    assert one.returncode == -9
    one.stop()  # a second time is harmless


def test_a_child_that_talks_is_heard_and_may_be_deaf(tmp_path: Path) -> None:
    code = "print('noise'); print('ready', flush=True); print('got', input(), flush=True)"
    heard: list[str] = []
    with child(code, tmp_path, talks=True) as one:
        assert one.wait_for("ready", heard.append) == "ready"
        one.say("words")
        assert one.wait_for("got") == "got words"
        assert one.wait_for("more") is None
        assert one.wait(60) == 0
        one.say("nobody reads this")
    assert heard == ["noise"]
    assert (tmp_path / "log").read_text() == ""


def test_the_callers_environment_wins_and_changes_win_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    found = vllm_environment({"VLLM_CACHE_ROOT": "/c"})
    assert (found["HF_HUB_OFFLINE"], found["VLLM_CACHE_ROOT"]) == ("0", "/c")
    assert found["VLLM_NO_USAGE_STATS"] == "1"
    assert vllm_environment({"HF_HUB_OFFLINE": "2"})["HF_HUB_OFFLINE"] == "2"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "HF_HUB_OFFLINE" not in vllm_environment(offline=False)
