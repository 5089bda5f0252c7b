"""What kernels reach of a data sheet: all constants of the kernel models in one place, and as JSON.

The constants are shares, counts and seconds, so that those of one device serve another one as an
assumption until ``vllm-nfp calibrate`` has run there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_nfp.principle.attention import AttentionConstants
from vllm_nfp.principle.collective import LinkConstants
from vllm_nfp.principle.experts import ExpertConstants
from vllm_nfp.principle.gemm import GemmConstants


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
    # benchmarks.score_communication --fit, on two H100 joined by NVLink (2026-11-24).
    link=LinkConstants(
        bandwidth=0.56,
        collective_seconds=31.4e-6,
        custom_bandwidth=0.61,
        custom_seconds=7.1e-6,
        meeting_seconds=2e-6,
        fitted=True,
    ),
)
"""The constants of the H100, which all others are taken from until they have their own."""
CARRIED_OVER = dataclasses.replace(
    H100_CALIBRATION,
    link=dataclasses.replace(H100_CALIBRATION.link, fitted=False),
    source="carried over from an H100 SXM: run vllm-nfp calibrate on this device for its own",
    fitted=False,
)


PUBLIC = "public kernels (benchmarks.fit_public, docs/validation.md)"
A100_CALIBRATION = dataclasses.replace(
    CARRIED_OVER,
    source=f"dense products and transfers fitted to {PUBLIC}, others carried over from an H100 SXM",
    gemm=GemmConstants(
        flops=0.78, row_tile=128, padding_paid=1.0, narrow_tokens=64, wide_slowdown=1.18
    ),
    link=LinkConstants(
        bandwidth=0.649,
        collective_seconds=47.0e-6,
        custom_bandwidth=0.707,
        custom_seconds=5.34e-6,
        meeting_seconds=9.13e-6,
        fitted=True,
    ),
)
"""An A100's: its dense products step at 65, 129, 257, ... tokens."""
B200_CALIBRATION = dataclasses.replace(
    CARRIED_OVER,
    source=f"transfers fitted to {PUBLIC}, others carried over from an H100 SXM",
    link=LinkConstants(
        bandwidth=0.63,
        collective_seconds=27.8e-6,
        custom_bandwidth=0.239,
        custom_seconds=7.01e-6,
        meeting_seconds=14.8e-6,
        fitted=True,
    ),
)
PCIE_LINK = LinkConstants(
    bandwidth=0.592,
    collective_seconds=5.29e-6,
    custom_bandwidth=0.592,
    custom_seconds=5.29e-6,
    shared_bandwidth=0.49,
    shared_seconds=3.03e-6,
    fitted=True,
)
"""Of GPUs on PCIe without peer-to-peer access, fitted to those of an L40S: 8 MiB and more take as
long through NCCL as below."""
L40S_CALIBRATION = dataclasses.replace(B200_CALIBRATION, link=PCIE_LINK)
PCIE_CALIBRATION = dataclasses.replace(
    CARRIED_OVER, link=dataclasses.replace(PCIE_LINK, fitted=False)
)
_ON_PCIE = (
    "A10G", "A40", "RTX-A6000", "RTX-3090", "L4", "L20", "RTX-4090", "RTX-6000-Ada", "RTX-5090",
    "RTX-PRO-6000", "RTX-PRO-6000-Server",
)  # fmt: skip


def default_calibration(hardware_name: str) -> Calibration:
    """Constants for a device of the catalogue."""
    if hardware_name.startswith("A100-PCIe"):
        return dataclasses.replace(A100_CALIBRATION, link=PCIE_CALIBRATION.link)
    return _OWN.get(hardware_name, CARRIED_OVER)


_OWN: Mapping[str, Calibration] = {
    "H100-SXM": H100_CALIBRATION,
    "A100-SXM4-80GB": A100_CALIBRATION,
    "A100-SXM4-40GB": A100_CALIBRATION,
    "B200": B200_CALIBRATION,
    "L40S": L40S_CALIBRATION,
    **dict.fromkeys(_ON_PCIE, PCIE_CALIBRATION),
}
