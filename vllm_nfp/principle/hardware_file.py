"""Hardware files: a device's data sheet and what kernels reach of it, as ``calibrate`` writes it."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nfp.principle.calibration import (
    Calibration,
    CalibrationError,
    calibration_from_mapping,
    default_calibration,
    read_dataclass,
)
from vllm_nfp.principle.hardware import Hardware, HardwareError, hardware_by_name

SCHEMA = 1
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """The device that is predicted for.

    Attributes:
        environment: what the constants were fitted on; empty for the catalogue's.
    """

    hardware: Hardware
    calibration: Calibration
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def target_of(name_or_file: str) -> Target:
    """A device by its name in the catalogue, or from a hardware file (``*.json``).

    Raises:
        HardwareError: for an unknown name, with the known ones, or a file that cannot be used.
    """
    if name_or_file.endswith(".json") or os.sep in name_or_file:
        return read_hardware_file(Path(name_or_file))
    hardware = hardware_by_name(name_or_file)
    return Target(hardware, default_calibration(hardware.name))


def read_hardware_file(path: Path) -> Target:
    """Read what :func:`write_hardware_file` wrote.

    Raises:
        HardwareError: if it cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HardwareError(f"hardware file {path} is larger than {MAX_BYTES >> 20} MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HardwareError(
            f"hardware file {path} cannot be read ({error.strerror}): give a file that "
            f"vllm-nfp calibrate wrote, or a name"
        ) from None
    except (ValueError, RecursionError):
        raise HardwareError(
            f"hardware file {path} is no JSON: give a file that vllm-nfp calibrate wrote"
        ) from None
    if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
        raise HardwareError(
            f"hardware file {path} has no schema {SCHEMA}: write it with this release's calibrate"
        )
    try:
        hardware = read_dataclass(Hardware, values.get("hardware"), "hardware")
        calibration = calibration_from_mapping(values.get("calibration"))
    except CalibrationError as error:
        raise HardwareError(f"hardware file {path}: {error}") from None
    environment = values.get("environment")
    return Target(hardware, calibration, environment if isinstance(environment, Mapping) else {})


def write_hardware_file(path: Path, target: Target) -> None:
    """Write the file whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    values = {
        "schema": SCHEMA,
        "hardware": dataclasses.asdict(target.hardware),
        "calibration": target.calibration.to_mapping(),
        "environment": dict(target.environment),
    }
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.write("\n")
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
