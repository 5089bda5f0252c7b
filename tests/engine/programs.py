"""Runs programs that use vLLM, without the time that each of them would take to import it."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from vllm_nfp.start.server import vllm_program

FORKING = Path(__file__).with_name("forking.py")


@functools.cache
def forking() -> subprocess.Popen[str]:
    """One for this process, with which it ends: its standard input is then at its end."""
    return subprocess.Popen(
        [sys.executable, str(FORKING)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
    )  # fmt: skip


def answer(seconds: float | None = None) -> int | None:
    """The next number of the forking process; None if it does not come in time."""
    out = forking().stdout
    assert out is not None
    if seconds is not None and not select.select([out], [], [], seconds)[0]:
        return None
    line = out.readline()
    assert line, "the process that forks has ended: its standard error says why"
    return int(line)


def run_program(
    program: Path | str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    seconds: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a process that has imported vLLM and nothing of this project.

    Where it does not end in time, the test fails with the stacks of all its threads.

    Args:
        program: its path; or its code, which runs as by ``python -c`` from the checkout's top.
        arguments: what follows on the command line.
        environment: changes to that of this process.
        seconds: the longest time that it may take, for what never ends.
    """
    is_file = isinstance(program, Path)
    argv = [str(program) if is_file else "-c", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {
            "code": None if is_file else program, "argv": argv,
            "environment": {**os.environ, **(environment or {})},
            "folder": str(Path.cwd() if is_file else ROOT), "out": str(out), "err": str(err),
        }  # fmt: skip
        pipe = forking().stdin
        assert pipe is not None
        pipe.write(json.dumps(asked) + "\n")
        pid, status = answer(), answer(seconds)
        if status is None:
            assert pid is not None
            os.kill(pid, signal.SIGABRT)
            answer()
        said, errors = (path.read_text(errors="replace") for path in (out, err))
    if status is None:
        pytest.fail(f"it hangs:\n{said[-3000:]}\n{errors[-6000:]}")
    return subprocess.CompletedProcess(argv, os.waitstatus_to_exitcode(status), said, errors)


def run_vllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The ``vllm`` program with these arguments, until it ends."""
    return run_program(Path(vllm_program()), *arguments)


def result_of(program: Path | str, *arguments: object, **options: Any) -> Any:
    """What a program prints behind ``RESULT``, from JSON; as :func:`run_program` runs it."""
    done = run_program(program, *arguments, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))
