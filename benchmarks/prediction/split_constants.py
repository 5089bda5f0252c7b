"""Constants of the split: those that saw only the seen sets, of a device.

``kernels.toml`` has some that were fitted to all public sets. A score on unseen sets takes what was
there before, which ``split_kernels.toml`` keeps.
"""

from __future__ import annotations

import dataclasses
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.prediction.fit_public import Fit
from vllm_nfp.principle import target_of
from vllm_nfp.principle.hardware_file import Target

FILE = Path(__file__).with_name("split_kernels.toml")


@lru_cache(maxsize=1)
def _entries() -> tuple[dict[str, Any], ...]:
    return tuple(tomllib.loads(FILE.read_text(encoding="utf-8"))["kernels"])


@lru_cache(maxsize=64)
def split_target(device: str) -> Target:
    """The device with constants that saw no unseen set.

    Raises:
        HardwareError: if the catalogue does not have the device.
    """
    target = target_of(device)
    calibration = target.calibration
    for entry in _entries():
        if entry["device"] == device:
            fit = Fit(entry["part"], device, "", {}, {})
            calibration = fit.with_values(calibration, entry["constants"])
    return dataclasses.replace(target, calibration=calibration)
