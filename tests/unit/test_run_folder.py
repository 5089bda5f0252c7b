"""The hand-over folder ends with its launcher, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_nfp.run_folder import remove_abandoned

LAUNCHER = """
import sys, time
from vllm_nfp.run_folder import make_run_folder
print(make_run_folder(), flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
"""


def launch(parent: Path, mode: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, mode],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(parent)},
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_ends_with_its_launcher(tmp_path: Path) -> None:
    process, folder = launch(tmp_path, "end")
    assert process.wait(120) == 0
    assert folder.name.startswith("vllm-nfp-")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_launchers_folder_is_removed_by_the_next_and_a_live_ones_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, orphan = launch(tmp_path, "wait")
    live, kept = launch(tmp_path, "wait")
    other = tmp_path / "vllm-nfp-measure-x"  # of another kind: it has no lock
    other.mkdir()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        assert orphan.exists()
        remove_abandoned(tmp_path)
        assert not orphan.exists()
        assert kept.exists() and other.exists()
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        live.kill()
        live.wait(30)
        remove_abandoned(tmp_path)
        assert kept.exists(), "another user's folder was removed"
    finally:
        live.kill()
        live.wait(30)
