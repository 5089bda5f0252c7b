"""Run as a program: imports vLLM once, and runs other programs in forks of itself.

Importing vLLM takes most of a small program's time. A fork has the modules and nothing else: no
plugin is loaded before it, no engine has run, and there is one thread. It ends as any interpreter
does, with its exit handlers.

Each line of standard input asks for one program, as JSON:

    {"code": CODE or null, "argv": [PATH, ...], "environment": {...}, "folder": ...,
     "out": FILE, "err": FILE}

The code, if any, is run instead of the file ``argv[0]``, as ``python -c`` does. Two lines answer:
the program's process id, and the status that ``waitpid`` gave.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "entrypoints.cli.main", "entrypoints.cli.serve", "entrypoints.llm", "v1.engine.core",
    "v1.engine.llm_engine", "v1.metrics.prometheus", "v1.worker.gpu_model_runner",
    "v1.worker.gpu_worker",
)  # fmt: skip
"""Nearly all that an engine, also on a CPU, and the parser of ``vllm serve`` bring in."""
OURS = "vllm_nfp"


def import_vllm() -> None:
    for name in MODULES:
        importlib.import_module(f"vllm.{name}")
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would have the locks of the others"
    assert OURS not in sys.modules, f"{OURS} reads the environment of this process, not the fork's"


def become(asked: dict[str, Any]) -> None:
    """Take over the streams, environment and folder that are asked for."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, asked["out"], os.O_WRONLY | os.O_CREAT),
        (2, asked["err"], os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    faulthandler.enable()  # for the one who waits, who aborts what hangs


def run(code: str | None, argv: list[str]) -> None:
    sys.argv = argv
    if code is None:
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
    else:
        sys.path[0] = ""
        sys.modules["__main__"] = ModuleType("__main__")
        exec(code, vars(sys.modules["__main__"]))


def main() -> None:
    import_vllm()
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            become(asked)
            run(asked["code"], asked["argv"])
            return
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
