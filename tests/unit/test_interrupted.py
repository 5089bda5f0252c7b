"""A command that is ended, in whatever way, ends what it has started and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys
from vllm_nfp import demo
from vllm_nfp.cli import main

SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]

class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(SLEEP, **options)
        print(self.pid, flush=True)

demo.server_command = lambda *args, **kwargs: SLEEP
demo.has_gpu = lambda: False
subprocess.Popen = Popen
main(sys.argv[1:])
"""
COMMANDS = {"demo": ["demo", "--folder", "{}"], "measure": ["measure", "m", "-o", "{}/p.json"]}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_what_it_started_ends_with_it(
    words: list[str], sign: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *(word.format(tmp_path) for word in words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        preexec_fn=heed_hangups,  # noqa: PLW1509 - no thread of this process runs then
    )  # fmt: skip
    assert process.stdout is not None
    child = next(int(line) for line in process.stdout if line.strip().isdecimal())
    try:
        assert is_running(child)
        time.sleep(0.3)  # it is in its wait
        process.send_signal(sign)
        _, errors = process.communicate(timeout=120)
        assert not is_running(child)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)
        process.kill()
    assert "Traceback" not in errors
    assert process.returncode == (1 if sign is signal.SIGINT else 128 + sign)
    assert not list((tmp_path / "tmp").glob("vllm-nfp-measure-*"))
    assert not (tmp_path / "p.json").exists()


def heed_hangups() -> None:
    """Whoever runs the tests may have been started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_command_in_another_thread_leaves_signals_alone() -> None:
    program = """
import signal, threading
from click.testing import CliRunner
from vllm_nfp.cli import main
thread = threading.Thread(target=CliRunner().invoke, args=(main, ["--version"]))
thread.start(); thread.join()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)


def test_what_nohup_ignores_stays_ignored() -> None:
    program = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from click.testing import CliRunner
from vllm_nfp.cli import main
CliRunner().invoke(main, ["--version"])
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
