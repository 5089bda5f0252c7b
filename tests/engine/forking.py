"""Run as a program: imports vLLM once, and runs other programs in forks of itself.

Importing vLLM takes most of a small program's time. A fork has the modules and nothing else: no
plugin is loaded before it, no engine has run, and there is one thread. It leads a process group of
its own, and ends as any interpreter does, with its exit handlers. What it spawns is forked as well
(:mod:`nests`).

Standard input is a socket. Each message is JSON and asks for one program:

    {"code": CODE or null, "argv": [PATH, ...], "environment": {...}, "folder": ...}

The code, if any, is run instead of the file ``argv[0]``, as ``python -c`` does. With it come the
program's standard streams, and a pipe that is told two lines: the process id, and in the end the
status that ``waitpid`` gave. A message "nest" brings the streams and the two descriptors of
:func:`nests.brood`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from multiprocessing import process
from pathlib import Path
from types import ModuleType
from typing import Any

import inspecting
import nests

MODULES = (
    "entrypoints.cli.main", "entrypoints.cli.serve", "entrypoints.llm", "v1.engine.core",
    "v1.engine.llm_engine", "v1.metrics.prometheus", "v1.worker.gpu_model_runner",
    "v1.worker.gpu_worker",
)  # fmt: skip
"""Nearly all that an engine, also on a CPU, and the parser of ``vllm serve`` bring in."""
OURS = "vllm_nfp"
MOST_BYTES = 1 << 20
STREAMS = 3
NEST = b"nest"
forever = ExitStack()
"""What holds until this process ends."""


def import_vllm() -> None:
    for name in MODULES:
        importlib.import_module(f"vllm.{name}")
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would have the locks of the others"
    assert OURS not in sys.modules, f"{OURS} reads the environment of this process, not the fork's"


def take(streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def watched(told: int) -> None:
    """Go on in a fork that leads a group, and tell how it is called and how it ends."""
    os.setsid()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.close(told)
        return
    with suppress(OSError):  # one of the two is first
        os.setpgid(pid, pid)
    os.write(told, b"%d\n" % pid)
    os.write(told, b"%d\n" % os.waitpid(pid, 0)[1])
    os._exit(0)


def become(asked: dict[str, Any]) -> None:
    """Take over the environment and folder that are asked for."""
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    process.ORIGINAL_DIR = asked["folder"]
    faulthandler.enable()  # for the one who waits, who aborts what hangs
    forever.enter_context(nests.spawning_from(*nests.nest_here()))


def run(code: str | None, argv: list[str]) -> None:
    sys.argv = argv
    sys.path[0] = "" if code is not None else str(Path(argv[0]).parent)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if code is None:
        runpy.run_path(argv[0], run_name="__main__")
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(code, vars(sys.modules["__main__"]))


def main() -> None:
    import_vllm()
    forever.enter_context(inspecting.in_this_process())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    with socket.socket(fileno=os.dup(0)) as asking:
        while True:
            message, given, *_ = socket.recv_fds(asking, MOST_BYTES, STREAMS + 2)
            if not message:
                return
            if not os.fork():
                break
            for number in given:
                os.close(number)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    take(given[:STREAMS])
    if message == NEST:
        nests.brood(*given[STREAMS:])
    watched(*given[STREAMS:])
    asked = json.loads(message)
    become(asked)
    run(asked["code"], asked["argv"])


if __name__ == "__main__":
    main()
