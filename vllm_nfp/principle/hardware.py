"""Data-sheet figures of known devices, for dense (not sparse) arithmetic."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vllm_nfp.text import nearest_name, plain

_MIB = 1 << 20
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
        for name, value in figures.items():
            if not math.isfinite(value) or value <= 0:
                raise HardwareError(f"{name} of {self.name!r} must be above 0, not {value!r}")
            if not 1 <= value <= MOST:
                raise HardwareError(f"{name} of {self.name!r} must lie from 1 to {MOST:g}")
        if self.num_sms > MAX_SMS:
            raise HardwareError(f"num_sms of {self.name!r} must be {MAX_SMS} or less")

    def peak_flops(self, fp8: bool) -> float:
        """Dense FLOP/s for the type; BF16's where FP8 is asked for and not there."""
        return self.fp8_flops if fp8 and self.fp8_flops is not None else self.bf16_flops

    def ridge(self, fp8: bool) -> float:
        """FLOPs per byte at which arithmetic takes as long as memory, rho in docs/theory.md."""
        return self.peak_flops(fp8) / self.memory_bytes_per_second


CATALOGUE: tuple[Hardware, ...] = (
    Hardware(
        name="A100-SXM4-80GB",
        bf16_flops=312e12,
        fp8_flops=None,
        memory_bytes_per_second=2039e9,
        num_sms=108,
        l2_bytes=40 * _MIB,
        link_bytes_per_second=300e9,
        source="NVIDIA A100 data sheet (dense 312 TFLOPS, NVLink 600 GB/s both ways) "
        "and Ampere architecture white paper (SMs, L2)",
        device_names=("NVIDIA A100-SXM4-80GB",),
    ),
    Hardware(
        name="H100-SXM",
        bf16_flops=989.4e12,
        fp8_flops=1978.9e12,
        memory_bytes_per_second=3.35e12,
        num_sms=132,
        l2_bytes=50 * _MIB,
        link_bytes_per_second=450e9,
        source="NVIDIA H100 data sheet, SXM column (sparse 1979 and 3958 TFLOPS, halved; "
        "NVLink 900 GB/s both ways) and Hopper architecture white paper (SMs, L2)",
        device_names=("NVIDIA H100 80GB HBM3",),
    ),
    Hardware(
        name="H100-PCIe",
        bf16_flops=756.5e12,
        fp8_flops=1513e12,
        memory_bytes_per_second=2.0e12,
        num_sms=114,
        l2_bytes=50 * _MIB,
        link_bytes_per_second=64e9,
        source="NVIDIA H100 data sheet, PCIe column (sparse 1513 and 3026 TFLOPS, halved; "
        "PCIe Gen5 128 GB/s both ways, no NVLink bridge assumed) and Hopper white paper",
        device_names=("NVIDIA H100 PCIe",),
    ),
    Hardware(
        name="H200",
        bf16_flops=989.4e12,
        fp8_flops=1978.9e12,
        memory_bytes_per_second=4.8e12,
        num_sms=132,
        l2_bytes=50 * _MIB,
        link_bytes_per_second=450e9,
        source="NVIDIA H200 data sheet, SXM column (sparse 1979 and 3958 TFLOPS, halved; "
        "NVLink 900 GB/s both ways); SMs and L2 as H100 SXM, the same die",
        device_names=("NVIDIA H200",),
    ),
    Hardware(
        name="B200",
        bf16_flops=2250e12,
        fp8_flops=4500e12,
        memory_bytes_per_second=8.0e12,
        num_sms=148,
        l2_bytes=126 * _MIB + _MIB // 2,
        link_bytes_per_second=900e9,
        source="NVIDIA Blackwell architecture brief, HGX B200 at 1000 W (sparse 4500 and 9000 "
        "TFLOPS, halved; 8 TB/s, where drivers report a bus of 7.67 TB/s; NVLink 1.8 TB/s both "
        "ways); SMs and L2 as the driver reports them",
        device_names=("NVIDIA B200",),
    ),
    Hardware(
        name="L4",
        bf16_flops=121e12,
        fp8_flops=242.5e12,
        memory_bytes_per_second=300e9,
        num_sms=58,
        l2_bytes=48 * _MIB,
        link_bytes_per_second=32e9,
        source="NVIDIA L4 data sheet (sparse 242 and 485 TFLOPS, halved; PCIe Gen4 64 GB/s "
        "both ways) and Ada architecture white paper (SMs, L2)",
        device_names=("NVIDIA L4",),
    ),
    Hardware(
        name="L40S",
        bf16_flops=362.05e12,
        fp8_flops=733e12,
        memory_bytes_per_second=864e9,
        num_sms=142,
        l2_bytes=96 * _MIB,
        link_bytes_per_second=32e9,
        source="NVIDIA L40S data sheet (dense column; PCIe Gen4 64 GB/s both ways) "
        "and Ada architecture white paper (SMs, L2)",
        device_names=("NVIDIA L40S",),
    ),
    Hardware(
        name="RTX-4090",
        bf16_flops=165.2e12,
        fp8_flops=330.3e12,
        memory_bytes_per_second=1008e9,
        num_sms=128,
        l2_bytes=72 * _MIB,
        link_bytes_per_second=32e9,
        source="NVIDIA Ada architecture white paper, GeForce RTX 4090 (dense, FP32 accumulation; "
        "PCIe Gen4 64 GB/s both ways)",
        device_names=("NVIDIA GeForce RTX 4090",),
    ),
    Hardware(
        name="MI300X",
        bf16_flops=1307.4e12,
        fp8_flops=2614.9e12,
        memory_bytes_per_second=5.3e12,
        num_sms=304,
        l2_bytes=32 * _MIB,
        link_bytes_per_second=448e9,
        source="AMD Instinct MI300X data sheet (dense; 7 Infinity Fabric links of 128 GB/s both "
        "ways) and CDNA 3 white paper (8 XCDs with 4 MB L2 each; the 256 MB Infinity Cache "
        "is left out)",
        device_names=("AMD Instinct MI300X", "AMD Instinct MI300X OAM"),
    ),
)


def hardware_by_name(name: str) -> Hardware:
    """The catalogue's entry by its name, or by the device's as torch and nvidia-smi print it.

    Case, spaces, hyphens and the maker's names (NVIDIA GeForce, AMD Instinct) do not matter. As in
    :func:`match_device` nothing else may be missing or added: it would be another device.

    Raises:
        HardwareError: if the name is not in the catalogue, or several devices could be meant; lists
            those that are known.
    """
    wanted = _without_maker(name)
    for hardware in CATALOGUE:
        if wanted in map(_without_maker, (hardware.name, *hardware.device_names)):
            return hardware
    known = ", ".join(hardware.name for hardware in CATALOGUE)
    begun = [hardware.name for hardware in CATALOGUE if _begins(hardware.name, wanted)]
    if len(begun) > 1:
        raise HardwareError(
            f"hardware {name!r:.80} may be {' or '.join(begun)}: give one of these, or another of "
            f"{known}"
        )
    near = f" (did you mean {begun[0]}?)" if begun else _nearest(name)
    raise HardwareError(f"hardware {name!r:.80} is not in the catalogue{near}: use one of {known}")


def _begins(name: str, wanted: str) -> bool:
    """Whether it is the beginning of a device's name, as h100 is, and not a letter or two."""
    return len(wanted) > 2 and _without_maker(name).startswith(wanted)


def _nearest(name: str) -> str:
    """The entry whose name, or whose device's name, is spelled most alike, as a question."""
    homes = {_without_maker(n): h.name for h in CATALOGUE for n in (h.name, *h.device_names)}
    wanted = _without_maker(name)
    near = nearest_name(wanted, homes)
    if near is None:
        # An H100 NVL is next to the other H100s, though most of its letters are not theirs.
        akin = [known for known in homes if len(wanted) > 3 and known.startswith(wanted[:4])]
        near = akin[0] if akin else None
    return "" if near is None else f" (did you mean {homes[near]}?)"


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
    words = re.split(r"[\s_-]+", name.casefold())
    return plain(" ".join(word for word in words if word not in MAKERS))
