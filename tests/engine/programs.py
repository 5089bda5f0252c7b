"""Runs programs that use vLLM, without the time that each of them would take to import it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import nests
import pytest
from conftest import ROOT

from vllm_nfp.start.process import Child
from vllm_nfp.start.server import vllm_program

FORKING = Path(__file__).with_name("forking.py")
NEST = b"nest"
"""What asks it for a nest."""


@functools.cache
def forking() -> socket.socket:
    """Asks one for this process, with which it ends: its standard input is then at its end."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen([sys.executable, str(FORKING)], stdin=its, cwd=ROOT)
    return ours


def ask(message: bytes, streams: Sequence[int | IO[Any]], *others: int) -> None:
    """Send it a message, with standard streams and other descriptors."""
    given = [one if isinstance(one, int) else one.fileno() for one in streams]
    socket.send_fds(forking(), [message], [*given, *others])


class Program:
    """A program in a fork, with what a ``subprocess.Popen`` has of it.

    Args:
        argv: the path of a Python program, and arguments.
        streams: standard input, output and error.
        environment: all variables.
        folder: the current one.
        code: what to run instead of a file, as ``python -c`` does; ``argv[0]`` is then ``-c``.
    """

    stdin = stdout = None

    def __init__(
        self,
        argv: Sequence[str],
        streams: Sequence[int | IO[Any]],
        environment: Mapping[str, str],
        folder: Path,
        code: str | None = None,
    ) -> None:
        asked = {
            "code": code, "argv": list(argv), "environment": dict(environment),
            "folder": str(folder),
        }  # fmt: skip
        read, told = os.pipe()
        self._told = io.FileIO(read)
        try:
            ask(json.dumps(asked).encode(), streams, told)
        finally:
            os.close(told)
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        """The next line."""
        line = self._told.readline()
        assert line, "the process that forks has ended: its standard error says why"
        return int(line)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: if it has not ended in so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(FORKING.name, timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(self._number())
            self._told.close()
        return self.returncode


class ForkedChild(Child):
    """A child process in a fork: a Python program, or ``python -m MODULE``, that does not talk."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        name: str = "the process",
    ) -> None:
        self.log, self._name, self._ended = log, name, False
        code, argv = None, list(command)
        if argv[:2] == [sys.executable, "-m"]:
            code = f"import runpy; runpy.run_module({argv[2]!r}, None, '__main__', True)"
            argv[:3] = ["-m"]
        with log.open("xb") as file, open(os.devnull) as nothing:
            self._process = Program(argv, (nothing, file, file), environment, Path.cwd(), code)


@contextlib.contextmanager
def spawning_forks() -> Iterator[None]:
    """Have what multiprocessing spawns in this process be forks as well."""
    read, write = os.pipe()
    with nests.listen() as listener, open(os.devnull) as nothing:
        ask(NEST, (nothing, 1, 2), listener.fileno(), read)
        address = listener.getsockname()
    os.close(read)
    try:
        with nests.spawning_from(address, write):
            yield
    finally:
        os.close(write)


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
    with (
        open(os.devnull) as nothing,
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        ran = Program(
            argv, (nothing, out, err), {**os.environ, **(environment or {})},
            Path.cwd() if is_file else ROOT, None if is_file else program,
        )  # fmt: skip
        code = None
        try:
            code = ran.wait(seconds)
        except subprocess.TimeoutExpired:
            os.kill(ran.pid, signal.SIGABRT)
            ran.wait()
        finally:
            if ran.returncode is None:  # the wait was interrupted
                os.killpg(ran.pid, signal.SIGKILL)
        said, errors = (file.seek(0) or file.read() for file in (out, err))
    if code is None:
        pytest.fail(f"it hangs:\n{said[-3000:]}\n{errors[-6000:]}")
    return subprocess.CompletedProcess(argv, code, said, errors)


def run_vllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The ``vllm`` program with these arguments, until it ends."""
    return run_program(Path(vllm_program()), *arguments)


def result_of(program: Path | str, *arguments: object, **options: Any) -> Any:
    """What a program prints behind ``RESULT``, from JSON; as :func:`run_program` runs it."""
    done = run_program(program, *arguments, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))
