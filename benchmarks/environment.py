"""What a benchmark ran on, for the raw results."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from typing import Any

from vllm_nfp import __version__
from vllm_nfp.engine import versions

_QUERY = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,"
    "temperature.gpu,clocks_throttle_reasons.active,memory.used"
)


def gpu_state() -> dict[str, str] | None:
    """The GPU's name, driver, clocks and limits as nvidia-smi tells them; None without one."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(_QUERY.split(","), values, strict=True))


def record() -> dict[str, Any]:
    """The environment of this run, JSON-serializable."""
    import torch

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": ["python", *sys.argv],
        "gpu": gpu_state(),
        "vllm": versions.installed_version(),
        "vllm_nfp": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
