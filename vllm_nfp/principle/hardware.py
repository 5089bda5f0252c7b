"""Data-sheet figures of known devices, for dense (not sparse) arithmetic."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vllm_nfp.text import nearest_names, plain

_MIB, _GIB = 1 << 20, 1 << 30
NEAREST = 3
"""Names that a refusal offers."""
BASES = ("own runs", "public kernels", "assumption")
"""What the constants used for a device may rest on, the best first."""
MAX_NAME = 100
MAX_SMS = 65536
MAKERS = frozenset({"nvidia", "geforce", "amd", "instinct"})
"""Words of a device's name that people leave out."""
MOST = 1e30
"""Bound on figures: what is computed from them stays a finite number."""


class HardwareError(ValueError):
    """A device that is not known or figures that cannot be; the message says which are."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device's peak figures; what kernels reach of them is in ``Calibration``."""

    name: str
    bf16_flops: float
    """Dense BF16 FLOP/s with FP32 accumulation."""
    fp8_flops: float | None
    """Dense FP8 FLOP/s with FP32 accumulation; None: no FP8 units, FP8 weights run in BF16."""
    memory_bytes_per_second: float
    num_sms: int
    """Streaming multiprocessors, or compute units on AMD."""
    l2_bytes: int
    link_bytes_per_second: float
    """To the other ranks, one direction: NVLink or Infinity Fabric if it has one, else PCIe."""
    source: str
    device_names: tuple[str, ...] = ()
    """Names under which torch.cuda.get_device_name reports the device."""
    memory_bytes: float | None = None
    """Capacity as drivers report it; None: not known, so that no prediction is too large."""
    generation: str = ""
    """Of its kernels: ampere, ada, hopper, blackwell, blackwell-consumer, cdna3, cdna4."""
    basis: str = "assumption"
    """What the built-in constants for it rest on, one of :data:`BASES`."""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MAX_NAME or not self.name.isprintable():
            raise HardwareError(
                f"a device's name must have 1 to {MAX_NAME} printable characters, "
                f"not {self.name[:MAX_NAME]!r}"
            )
        figures = {
            "bf16_flops": self.bf16_flops,
            "fp8_flops": 1.0 if self.fp8_flops is None else self.fp8_flops,
            "memory_bytes_per_second": self.memory_bytes_per_second,
            "num_sms": self.num_sms,
            "l2_bytes": self.l2_bytes,
            "link_bytes_per_second": self.link_bytes_per_second,
        }
        if self.memory_bytes is not None:
            figures["memory_bytes"] = self.memory_bytes
        if self.basis not in BASES:
            raise HardwareError(
                f"basis of {self.name!r} must be one of {', '.join(BASES)}, not {self.basis!r:.60}"
            )
        for name, value in figures.items():
            if not math.isfinite(value) or value <= 0:
                raise HardwareError(f"{name} of {self.name!r} must be above 0, not {value!r}")
            if not 1 <= value <= MOST:
                raise HardwareError(f"{name} of {self.name!r} must lie from 1 to {MOST:g}")
        if self.num_sms > MAX_SMS:
            raise HardwareError(f"num_sms of {self.name!r} must be {MAX_SMS} or less")

    @property
    def capability_10(self) -> bool:
        """Data-center Blackwell: GB10 and the RTX cards (12) run what Ada runs."""
        return self.name.startswith(("B200", "B300", "GB200", "GB300"))

    def peak_flops(self, fp8: bool) -> float:
        """Dense FLOP/s for the type; BF16's where FP8 is asked for and not there."""
        return self.fp8_flops if fp8 and self.fp8_flops is not None else self.bf16_flops

    def ridge(self, fp8: bool) -> float:
        """FLOPs per byte at which arithmetic takes as long as memory, rho in docs/theory.md."""
        return self.peak_flops(fp8) / self.memory_bytes_per_second


def _read_catalogue() -> tuple[Hardware, ...]:
    """The devices of ``devices.toml``."""
    text = files(__package__).joinpath("devices.toml").read_text(encoding="utf-8")
    return tuple(_device(dict(entry)) for entry in tomllib.loads(text)["device"])


def _device(entry: dict[str, Any]) -> Hardware:
    """One entry, its binary units in bytes."""
    l2, memory = entry.pop("l2_mib"), entry.pop("memory_gib")
    names = tuple(entry.pop("device_names"))
    entry = {"fp8_flops": None, **entry}
    return Hardware(
        **entry, l2_bytes=int(l2 * _MIB), memory_bytes=memory * _GIB, device_names=names
    )


CATALOGUE: tuple[Hardware, ...] = _read_catalogue()


def hardware_by_name(name: str) -> Hardware:
    """The catalogue's entry by its name, or by the device's as torch and nvidia-smi print it.

    Case, spaces, hyphens and the maker's names (NVIDIA GeForce, AMD Instinct) do not matter. Whole
    words at the end may be missing if one device alone begins so. As in :func:`match_device`
    nothing else may be missing or added: it would be another device.

    Raises:
        HardwareError: if the name is not in the catalogue, or several devices could be meant; names
            the nearest, or all if none is near.
    """
    wanted = _without_maker(name)
    for hardware in CATALOGUE:
        if wanted in map(_without_maker, (hardware.name, *hardware.device_names)):
            return hardware
    begun = [hardware.name for hardware in CATALOGUE if _begins(hardware.name, wanted)]
    only = _whole_words(name, begun)
    if only is not None:
        return only
    if len(begun) > 1:
        raise HardwareError(f"hardware {name!r:.80} may be {_either(begun)}: give one of these")
    near = begun or _nearest(name)
    if near:
        raise HardwareError(
            f"hardware {name!r:.80} is not in the catalogue (did you mean {_either(near)}?): give "
            f"a name of the catalogue, or a hardware file with its figures"
        )
    known = ", ".join(hardware.name for hardware in CATALOGUE)
    raise HardwareError(f"hardware {name!r:.80} is not in the catalogue: use one of {known}")


def _either(names: Sequence[str]) -> str:
    """A, B or C."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _whole_words(name: str, begun: Sequence[str]) -> Hardware | None:
    """The one device whose first words these are; an L40 is not the beginning of an L40S."""
    words = _words(name)
    if len(begun) != 1 or _words(begun[0])[: len(words)] != words:
        return None
    return next(hardware for hardware in CATALOGUE if hardware.name == begun[0])


def _words(name: str) -> list[str]:
    words = re.split(r"[\s_-]+", name.casefold().strip())
    return [word for word in words if word not in MAKERS]


def _begins(name: str, wanted: str) -> bool:
    """Whether it is the beginning of a device's name, as h100 is, and not a letter or two."""
    return len(wanted) > 2 and _without_maker(name).startswith(wanted)


def _nearest(name: str) -> list[str]:
    """The entries whose name, or whose device's name, is spelled most alike; up to three."""
    homes = {_without_maker(n): h.name for h in CATALOGUE for n in (h.name, *h.device_names)}
    wanted = _without_maker(name)
    near = nearest_names(wanted, homes, NEAREST)
    if not near:
        # An H200 NVL is next to the H200, though most of its letters are not its own.
        near = [known for known in homes if len(wanted) > 3 and known.startswith(wanted[:4])]
    return list(dict.fromkeys(homes[known] for known in near))[:NEAREST]


def match_device(device_name: str) -> Hardware | None:
    """The entry for a name as torch.cuda.get_device_name gives it.

    None unless the whole name agrees: an H100 NVL, a 40 GB A100 or a MIG slice is another device.
    """
    wanted = " ".join(device_name.split()).casefold()
    for hardware in CATALOGUE:
        if wanted in (name.casefold() for name in hardware.device_names):
            return hardware
    return None


def _without_maker(name: str) -> str:
    return plain(" ".join(_words(name)))
