"""What kernels reach of a data sheet: all constants of the kernel models in one place, and as JSON.

The constants are shares, counts and seconds, so that those of one device serve another one as an
assumption until ``vllm-nfp calibrate`` has run there.
"""

from __future__ import annotations

import dataclasses
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


def default_calibration(hardware_name: str) -> Calibration:
    """Constants for a device of the catalogue."""
    return H100_CALIBRATION if hardware_name == "H100-SXM" else CARRIED_OVER
