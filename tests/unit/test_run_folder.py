"""The hand-over folder ends with its launcher, however that ends."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_nfp.results import run_folder
from vllm_nfp.results.run_folder import RunFolder, remove_abandoned

LAUNCHER = """
import sys, time
from vllm_nfp.results.run_folder import make_run_folder
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


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A launcher that lives, and its folder."""
    process, folder = launch(tmp_path, "wait")
    yield process, folder
    process.kill()
    process.wait(30)


def test_a_folder_that_is_removed_is_made_again_while_its_launcher_lives(
    served: tuple[subprocess.Popen[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process, folder = served
    writer = RunFolder(str(folder))
    writer.write("engine-0.json", "one")
    before = os.umask(0)
    try:
        with caplog.at_level(logging.INFO, "vllm.nfp"):
            for content in ("two", "three"):
                shutil.rmtree(folder)
                writer.write("engine-0.json", content)
                writer.write("engine-0.json", content)
                assert (folder / "engine-0.json").read_text() == content
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
                assert sorted(entry.name for entry in folder.iterdir()) == [
                    "engine-0.json", "owner.lock",
                ]  # fmt: skip
    finally:
        os.umask(before)
    assert caplog.text.count("was removed; it has been made again") == 2, "once for each time"
    remove_abandoned(tmp_path)
    assert folder.exists(), "its writer lives"
    process.kill()
    process.wait(30)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        writer.write("engine-0.json", "four")
    assert not folder.exists(), "nobody would remove it"


def test_a_folder_whose_owner_is_not_known_is_not_made_again(tmp_path: Path) -> None:
    """As with settings of an earlier run that a shell still carries."""
    gone = tmp_path / "vllm-nfp-gone"
    with pytest.raises(FileNotFoundError, match=r"on another host.*set --nfp-output-dir"):
        RunFolder(str(gone)).write("engine-0.json", "{}")
    assert not gone.exists()


def test_what_others_put_in_the_folders_place_is_not_written_to(
    served: tuple[subprocess.Popen[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = served
    writer = RunFolder(str(folder))
    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        writer.write("engine-0.json", "{}")
    folder.unlink()
    folder.write_text("a file")
    with pytest.raises(NotADirectoryError):
        writer.write("engine-0.json", "{}")
    folder.unlink()
    folder.mkdir(mode=0o777)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(PermissionError, match="another user's"):
            writer.write("engine-0.json", "{}")
    assert list(folder.iterdir()) == list(elsewhere.iterdir()) == []
    folder.rmdir()
    writer.write("engine-0.json", "{}")
    assert (folder / "engine-0.json").exists()


def test_a_fork_does_not_keep_the_folder_of_a_launcher_that_is_gone(tmp_path: Path) -> None:
    """As an engine's process that outlives its API server by a moment."""
    program = """
import os, sys, time
from vllm_nfp.results.run_folder import RunFolder, make_run_folder
folder = make_run_folder()
writer = RunFolder(folder)
if os.fork():
    os._exit(0)
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
time.sleep(0.1)
os.system(f"rm -r {folder}")
try:
    writer.write("engine-0.json", "{}")
    print("made again")
except FileNotFoundError:
    print("gone")
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys\nsys.argv[1:] = [str(os.getpid())]\n{program}"],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip() == "gone"
    assert list(tmp_path.iterdir()) == []


def test_a_locked_folder_is_left_alone_by_cleaners(
    served: tuple[subprocess.Popen[str], Path],
) -> None:
    """systemd-tmpfiles skips directories whose lock it does not get."""
    import fcntl

    descriptor = os.open(served[1], os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_without_a_place_for_the_folder_the_start_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from vllm_nfp.adapter import switch_on
    from vllm_nfp.config import ConfigError, ProbeConfig

    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.tempfile, "mkdtemp", full)
    with pytest.raises(ConfigError, match=r"No space left on device\): set TMPDIR"):
        switch_on.publish_settings(ProbeConfig())
