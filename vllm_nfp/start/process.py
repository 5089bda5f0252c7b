"""Child processes. Each leads a process group of its own and ends with all that it has started."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from vllm_nfp.files import check_replaceable
from vllm_nfp.plugin_list import with_plugin

STOP_SECONDS = 30.0
"""Between SIGTERM and SIGKILL; a server with several GPUs takes many seconds to end."""
POLL_SECONDS = 0.2
FAILURE = "vllm-nfp-failure: "
"""Begins the line of a child's log that says in one sentence why it failed."""
_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


class ProcessError(RuntimeError):
    """A child ended early or was not ready in time; the message names its log."""


class Child:
    """A running process whose output goes to a log file.

    Use it in a ``with`` statement, which ends the process group.

    Args:
        command: the program and its arguments.
        log: takes standard error, and standard output too unless the child talks. It replaces
            a file of this name, and follows no link.
        environment: all environment variables of the child; None gives it those of this process.
        name: what errors call it.
        talks: connect its standard input and output to :meth:`say` and :meth:`wait_for`.

    Raises:
        OSError: if the log cannot be written or the program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "the process",
        talks: bool = False,
    ) -> None:
        self.log = log
        self._name = name
        self._ended = False
        check_replaceable(log)
        log.unlink(missing_ok=True)
        with log.open("xb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                text=True,
                # A kernel that prints odd bytes must not end the measurement.
                errors="replace",
                env=environment,
                # Ctrl-C reaches this process alone, which then ends the group.
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the leader, which is the id of the group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code of the leader; None while it runs."""
        return self._process.poll()

    def require_running(self) -> None:
        """Check that the leader runs.

        Raises:
            ProcessError: if it has ended, with the last lines of its log.
        """
        if self.returncode is not None:
            raise ProcessError(
                f"{self._name} ended with code {self.returncode}; last lines of {self.log}: "
                + " | ".join(last_lines(self.log))
            )

    def wait_until(
        self, ready: Callable[[], bool], limit_seconds: float, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """Poll until the child is ready.

        Raises:
            ProcessError: if the child ends first, or is not ready in time.
        """
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            self.require_running()
            if ready():
                return
            time.sleep(poll_seconds)
        raise ProcessError(f"{self._name} was not ready in {limit_seconds:g} s: see {self.log}")

    def say(self, line: str) -> None:
        """Write a line to its standard input; a child that has ended misses it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def wait_for(self, word: str, on_line: Callable[[str], None] = lambda line: None) -> str | None:
        """Read its standard output up to the line that begins with the word.

        Args:
            on_line: receives each line before that one.

        Returns:
            The line; None if the child ends first.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.strip()
            on_line(line.strip())
        return None

    def wait(self, limit_seconds: float) -> int | None:
        """Wait until it ends; the exit code, or None if it still runs after that time."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(limit_seconds)
        return None

    def pause(self) -> None:
        """Stop all processes of the group, so that they use neither CPU nor GPU."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the group continue."""
        self._signal(signal.SIGCONT)

    def stop(self, patience_seconds: float = STOP_SECONDS) -> None:
        """End the group with SIGTERM, and what is left of it after a while with SIGKILL."""
        try:
            self._signal(signal.SIGTERM)
            self.resume()  # a stopped process handles no other signal
            self.wait(patience_seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the group with SIGKILL, even if its leader is gone."""
        self._signal(signal.SIGKILL)
        self.wait(STOP_SECONDS)
        self._ended = True
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _signal(self, sign: signal.Signals) -> None:
        if not self._ended:  # afterwards the id may be another group's
            with suppress(ProcessLookupError):
                os.killpg(self.pid, sign)


def last_lines(log: Path, count: int = 3) -> list[str]:
    """The last lines of a log file."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def vllm_environment(
    changes: Mapping[str, str] | None = None, *, offline: bool = True
) -> dict[str, str]:
    """Environment variables of a child that runs vLLM: those of this process, completed.

    ``VLLM_PLUGINS`` of this process may exclude the probe: the plugin is added to it.

    Args:
        changes: override the variables of this process.
        offline: default to no downloads, and to a KV cache of 1 GiB on a CPU.
    """
    defaults = {"VLLM_NO_USAGE_STATS": "1"}
    if offline:
        defaults |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {**defaults, **os.environ, **with_plugin(os.environ), **(changes or {})}


def end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, so that no engine keeps a GPU.

    Only Linux has prctl; elsewhere the parent alone ends its children.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
