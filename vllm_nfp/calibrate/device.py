"""This machine's first GPU, as a child process reports it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT_SECONDS = 180.0
"""Importing torch from a cold disk takes long."""
COMMAND = (sys.executable, "-m", "vllm_nfp.adapter.device")
FP8_CAPABILITY = (8, 9)
"""First compute capability of NVIDIA with FP8 units."""


class DeviceError(RuntimeError):
    """The GPU could not be queried; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU."""

    name: str
    free_bytes: int
    capability: tuple[int, ...]
    rocm: bool = False

    @property
    def has_fp8(self) -> bool:
        """Whether its compute capability comes with FP8; AMD numbers its devices otherwise."""
        return self.rocm or self.capability >= FP8_CAPABILITY


def gpu_at_hand(command: Sequence[str] = COMMAND) -> Gpu | None:
    """The first GPU; None if torch sees none.

    Raises:
        DeviceError: if torch is missing or fails.
    """
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"torch did not say within {LIMIT_SECONDS:g} s what GPU it has") from None
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"torch cannot be asked for its GPU: {last:.200}")
    try:
        found = json.loads(asked.stdout.strip().splitlines()[-1])
        if found is None:
            return None
        return Gpu(found["name"], found["free_bytes"], tuple(found["capability"]), found["rocm"])
    except (ValueError, LookupError, TypeError):
        raise DeviceError(f"torch gave no answer that can be read: {asked.stdout:.200}") from None
