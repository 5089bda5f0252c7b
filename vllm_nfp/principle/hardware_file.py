"""Hardware files: a data sheet and what kernels reach of it, as ``calibrate`` writes them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nfp.files import FileError, write_whole
from vllm_nfp.principle.calibration import Calibration, default_calibration
from vllm_nfp.principle.hardware import Hardware, HardwareError, hardware_by_name
from vllm_nfp.strict_json import read_object

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

    @property
    def basis(self) -> str:
        """What the constants rest on: own runs, public kernels, or assumption."""
        return self.calibration.basis


@dataclass(frozen=True, slots=True)
class _Content:
    """What of a hardware file is used."""

    hardware: Hardware
    calibration: Calibration
    environment: Any = None


def target_of(name_or_file: str | os.PathLike[str]) -> Target:
    """A device by name, see :func:`hardware_by_name`, or from a hardware file (``*.json``).

    Raises:
        HardwareError: for an unknown name, with the known ones, or a file that cannot be used.
    """
    if isinstance(name_or_file, os.PathLike):
        return read_hardware_file(Path(name_or_file))
    if not isinstance(name_or_file, str):
        raise HardwareError(
            f"hardware {name_or_file!r:.80} is no name: give one as in 'H100-SXM', or a file"
        )
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
        found = read_object(path, MAX_BYTES)
        schema = found.values.get("schema")
        if schema != SCHEMA:
            raise FileError(f"schema is {schema!r:.80} where {SCHEMA} is known")
        read = found.decode(_Content, pass_over=True)
    except OSError as error:
        raise HardwareError(
            f"hardware file {path} cannot be read ({error.strerror}): give a file that "
            f"vllm-nfp calibrate wrote, or a name"
        ) from None
    except ValueError as error:  # FileError, or a path with a null character
        raise HardwareError(
            f"hardware file {path} cannot be used ({error}): write it with vllm-nfp calibrate"
        ) from None
    environment = read.environment if isinstance(read.environment, dict) else {}
    return Target(read.hardware, read.calibration, environment)


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
    write_whole(path, json.dumps(values, indent=1) + "\n")
