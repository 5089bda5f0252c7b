"""Children of multiprocessing's spawn method as forks of a process that has imported vLLM.

An engine and each worker of a server is such a child, which would import vLLM again: 13 s of CPU
time. Here multiprocessing's own fork server makes them, in a nest: a process with the modules, one
thread, and nothing that has run. They get what spawned ones get: their parent's environment, folder
and ``sys.path``, the main module, and the process object through a pipe. They end as spawned ones
do, with their exit handlers.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, popen_forkserver, spawn, util
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn
from unittest import mock

LAST = -1000
"""Of multiprocessing's finalizers: after all others."""


class Prepared(dict[str, Any]):
    """What multiprocessing tells a child first; reading it gives the child its environment."""

    def __reduce__(self) -> Any:
        return hatched, (dict(os.environ), dict(self))


def hatched(environment: dict[str, str], told: dict[str, Any]) -> dict[str, Any]:
    """Begin in a child, before anything else is read."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    util.Finalize(None, atexit._run_exitfuncs, exitpriority=LAST)
    return told


def listen() -> socket.socket:
    """Where a nest will be asked for children: a socket without a file."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0vllm-nfp-{secrets.token_hex(8)}")
    listener.listen()
    return listener


def brood(listener: int, alive: int) -> NoReturn:
    """Be a nest until no process holds the other end of a pipe; this never returns.

    Args:
        listener: descriptor of what :func:`listen` gave.
        alive: the end of the pipe that is read.
    """
    # In a group that is told to end, the nest tells how the others did.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = 1
    try:
        with spawning_from(b"", -1):  # the fork server tells its children better
            forkserver.main(listener, alive, [])
    except SystemExit:
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextmanager
def spawning_from(address: bytes, alive: int) -> Iterator[None]:
    """Have a nest make what this process, and each child of it, spawns.

    Args:
        address: of the nest.
        alive: the other end of its pipe.
    """
    prepare = spawn.get_preparation_data
    with (
        mock.patch.multiple(
            forkserver._forkserver, _forkserver_address=address, _forkserver_alive_fd=alive,
            ensure_running=lambda: None,
        ),
        mock.patch.object(spawn, "get_preparation_data", lambda name: Prepared(prepare(name))),
        mock.patch.object(SpawnProcess, "_Popen", staticmethod(popen_forkserver.Popen)),
    ):  # fmt: skip
        yield


def nest_here() -> tuple[bytes, int]:
    """Fork a nest of this process as it is now; its address, and the end of its pipe."""
    listener, (read, write) = listen(), os.pipe()
    if not os.fork():
        os.close(write)
        brood(listener.detach(), read)
    os.close(read)
    with listener:
        return listener.getsockname(), write
