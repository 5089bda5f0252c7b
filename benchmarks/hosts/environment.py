"""What a benchmark ran on, for the raw results; reads only, and works without a GPU.

    python -m benchmarks.hosts.environment

prints the record alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nfp import __version__
from vllm_nfp.adapter import versions

_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "memory.used",
    "memory.total",
)
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""Why clocks are held down, a bit mask: the name since driver 535, and the one before it."""
COMMIT_VARIABLE = "NFP_BENCH_COMMIT"
"""Names the commit on a host that has the files but not their history: a hash, with ``-dirty`` if
tracked files differ from it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One record; fields of a GPU are None without one."""

    date: str
    command: tuple[str, ...]
    commit: str | None
    """Of the checkout, with ``-dirty`` if tracked files differ; None where it is unknown."""
    gpu: dict[str, str] | None
    vllm: str | None
    vllm_nfp: str
    torch: str | None
    cuda: str | None
    python: str
    machine: str


def gpu_state() -> dict[str, str] | None:
    """Name, driver, clocks and limits of the first visible GPU, from nvidia-smi; None without."""
    for reason in _REASONS:
        fields = (*_FIELDS, reason)
        text = _query(fields)
        if text is not None:
            return parse_state(text, fields)
    return None


def _query(fields: tuple[str, ...]) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if visible:
        command.append(f"--id={visible}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def parse_state(text: str, fields: tuple[str, ...]) -> dict[str, str] | None:
    """The first line of nvidia-smi's CSV by field; None if it does not hold those fields."""
    lines = text.splitlines()
    values = lines[0].split(", ") if lines else []
    if len(values) != len(fields):
        return None
    state = dict(zip(fields, values, strict=True))
    return {("throttle_reasons" if key in _REASONS else key): v for key, v in state.items()}


def record() -> dict[str, Any]:
    """The environment of this run, JSON-serializable."""
    torch_version, cuda_version = _torch_versions()
    return dataclasses.asdict(
        Environment(
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            # Without directories: the paths of the machine are of no use to others.
            command=("python", *(_without_folder(argument) for argument in sys.argv)),
            commit=commit(),
            gpu=gpu_state(),
            vllm=versions.installed_version(),
            vllm_nfp=__version__,
            torch=torch_version,
            cuda=cuda_version,
            python=platform.python_version(),
            machine=platform.machine(),
        )
    )


def commit() -> str | None:
    """What :data:`COMMIT_VARIABLE` says, else the checkout's commit from git; None without both."""
    given = os.environ.get(COMMIT_VARIABLE)
    if given:
        return given
    root = Path(__file__).resolve().parents[2]
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head if changed == "" else f"{head}-dirty"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _without_folder(argument: str) -> str:
    return Path(argument).name if argument.startswith("/") else argument


def _torch_versions() -> tuple[str | None, str | None]:
    try:
        import torch
    except ImportError:
        return None, None
    return str(torch.__version__), torch.version.cuda


if __name__ == "__main__":
    print(json.dumps(record(), indent=1))
