"""What kernels reach of a data sheet: all constants of the kernel models in one place, and as JSON.

The constants are shares, counts and seconds, so that those of one device serve another one as an
assumption until ``vllm-nfp calibrate`` has run there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vllm_nfp.principle.attention import AttentionConstants
from vllm_nfp.principle.experts import ExpertConstants
from vllm_nfp.principle.gemm import GemmConstants

T = TypeVar("T")


class CalibrationError(ValueError):
    """Constants that cannot be; the message names the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class LinkConstants:
    """Collectives between ranks; assumed, not fitted."""

    bandwidth: float = 0.7
    """Share of the link's bytes per second."""
    collective_seconds: float = 8e-6
    """Of one collective beside its bytes."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """All constants of the kernel models.

    Attributes:
        source: what they were fitted to, for people.
        fitted: whether to kernels of the device that they are used for.
    """

    source: str
    fitted: bool = False
    gemm: GemmConstants = field(default_factory=GemmConstants)
    attention: AttentionConstants = field(default_factory=AttentionConstants)
    experts: ExpertConstants = field(default_factory=ExpertConstants)
    link: LinkConstants = field(default_factory=LinkConstants)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-serializable."""
        return dataclasses.asdict(self)


H100_CALIBRATION = Calibration(
    source="kernels of vLLM 0.32 on an H100 SXM (2026-11-24), benchmarks/README.md",
    fitted=True,
)
"""The defaults of all constants."""
CARRIED_OVER = dataclasses.replace(
    H100_CALIBRATION,
    source="carried over from an H100 SXM: run vllm-nfp calibrate on this device for its own",
    fitted=False,
)


def default_calibration(hardware_name: str) -> Calibration:
    """Constants for a device of the catalogue."""
    return H100_CALIBRATION if hardware_name == "H100-SXM" else CARRIED_OVER


def calibration_from_mapping(values: object) -> Calibration:
    """Read :meth:`Calibration.to_mapping` back.

    Raises:
        CalibrationError: for an unknown or missing field, or a value that cannot be.
    """
    return read_dataclass(Calibration, values, "calibration")


def read_dataclass(kind: type[T], values: object, where: str) -> T:
    """A frozen dataclass of numbers, texts, tuples and the like, from parsed JSON.

    Raises:
        CalibrationError: naming the field.
    """
    if not isinstance(values, Mapping):
        raise CalibrationError(f"{where} must be an object, not {type(values).__name__}")
    hints = get_type_hints(kind)
    unknown = sorted(set(map(str, values)) - set(hints))
    if unknown:
        raise CalibrationError(
            f"{where} has no field {unknown[0]!r:.80}: allowed are {_all(hints)}"
        )
    given = {
        name: _read(hints[name], values[name], f"{where}.{name}")
        for name in hints
        if name in values
    }
    try:
        return kind(**given)
    except TypeError:
        raise CalibrationError(f"{where} lacks a field: it needs {_all(hints)}") from None
    except ValueError as error:
        raise CalibrationError(f"{where}: {error}") from None


def _read(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_dataclass(hint, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) > 64:
            raise CalibrationError(f"{where} must be a list of at most 64 values")
        item = get_args(hint)[0]
        return tuple(_read(item, one, where) for one in value)
    allowed = get_args(hint) or (hint,)
    if value is None and type(None) in allowed:
        return None
    if str in allowed and isinstance(value, str) and len(value) <= 1000:
        return value
    if bool in allowed and isinstance(value, bool):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if int in allowed and number and int(value) == value and abs(value) < 1 << 53:  # type: ignore[arg-type, call-overload]
        return int(value)  # type: ignore[call-overload]
    if float in allowed and number and math.isfinite(value) and value >= 0:  # type: ignore[arg-type, operator]
        return float(value)  # type: ignore[arg-type]
    names = " or ".join(kind.__name__ for kind in allowed)
    raise CalibrationError(f"{where} must be a finite {names} of 0 or more, not {value!r:.80}")


def _all(hints: Mapping[str, object]) -> str:
    return ", ".join(hints)
