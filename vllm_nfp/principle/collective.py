"""Seconds of a collective between ranks: a latency, and bytes over the link.

An all-reduce of vLLM on one host takes one of three ways (``custom_all_reduce.py`` and its kernels
in 0.32, which choose by bytes and ranks):

- *one-shot*: each rank reads all of every other rank's input, (R - 1) S bytes, after one meeting;
  for two ranks at any size, for more where S is small;
- *two-shot*: a reduce-scatter and an all-gather, 2 (R - 1)/R S bytes, after two meetings;
- *through the host* between more than two GPUs on PCIe that have no peer-to-peer access;
- *NCCL* from 8 MiB on, or where ranks are not all linked: the bytes of a ring are the same
  2 (R - 1)/R S, the latency is larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.terms import FloatArray, check_bounds

MIB = 1 << 20
CUSTOM_BYTES = 8 * MIB
"""vLLM's own all-reduce takes inputs below this."""
CUSTOM_RANKS = (2, 4, 6, 8)
FEW_RANKS = 4
ONE_SHOT_BYTES_FEW, ONE_SHOT_BYTES_MANY = MIB // 2, MIB // 4
"""One-shot below these, for up to four ranks and for more."""
LINKED_BYTES_PER_SECOND = 100e9
"""From this rate on a link is NVLink or alike, which joins every rank of a host to every other."""


@dataclass(frozen=True, slots=True)
class LinkConstants:
    """Collectives between ranks. The defaults are assumed; none was measured.

    Shares lie where published all-reduce tests on NVLink do; a meeting of two GPUs takes a few
    microseconds through peer memory, and more through NCCL's launch and channels.

    Attributes:
        fitted: whether to collectives of the device that they are used for.
    """

    bandwidth: float = 0.7
    """NCCL's share of the link's bytes per second."""
    collective_seconds: float = 8e-6
    """Of one NCCL collective beside its bytes."""
    custom_bandwidth: float = 0.7
    """The share that vLLM's own all-reduce reaches."""
    custom_seconds: float = 5e-6
    """Of one of vLLM's own, one-shot, beside its bytes; a two-shot one meets once more."""
    meeting_seconds: float = 2e-6
    """Of the second meeting."""
    skew_seconds: float = 0.0
    """Of each collective inside a server: ranks wait for the slowest. 2.7 us where kernels were
    timed alone: they take 4.4 us on an H100, in a server of two 7.1 us (own run, 2026-11-24)."""
    shared_bandwidth: float = 1.0
    """Where more than two ranks have no peer-to-peer link: the share of one link's bytes per
    second that all of them together get through the host's memory; 1: it does not bound them."""
    shared_seconds: float = 0.0
    """Of such a collective, for each rank; 0: as one of NCCL."""
    fitted: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)


BOUNDS: Mapping[str, tuple[float, float]] = {
    "bandwidth": (0.01, 1.0),
    "collective_seconds": (0.0, 1e-2),
    "custom_bandwidth": (0.01, 1.0),
    "custom_seconds": (0.0, 1e-2),
    "meeting_seconds": (0.0, 1e-2),
    "skew_seconds": (0.0, 1e-2),
    "shared_bandwidth": (0.01, 1.0),
    "shared_seconds": (0.0, 1e-2),
}
"""Least and most of every constant."""


def all_reduce_seconds(
    constants: LinkConstants, link_bytes_per_second: float, ranks: int, size: FloatArray
) -> FloatArray:
    """Seconds of an all-reduce; 0 for one rank.

    Args:
        size: S, bytes of one rank's input, shape [n].
    """
    if ranks == 1:
        return np.zeros_like(size)
    ring = 2 * (ranks - 1) / ranks * size
    nccl = transfer_seconds(constants, link_bytes_per_second, ring)
    linked = ranks == 2 or link_bytes_per_second >= LINKED_BYTES_PER_SECOND
    if not linked and constants.shared_seconds:
        rate = constants.shared_bandwidth * link_bytes_per_second / ranks
        shared: FloatArray = ranks * constants.shared_seconds + ring / rate
        return shared
    if ranks not in CUSTOM_RANKS or not linked:
        return nccl
    few = ranks <= FEW_RANKS
    one_shot = (size < (ONE_SHOT_BYTES_FEW if few else ONE_SHOT_BYTES_MANY)) | (ranks == 2)
    meetings = constants.custom_seconds + np.where(one_shot, 0.0, constants.meeting_seconds)
    sent = np.where(one_shot, (ranks - 1) * size, ring)
    custom = meetings + sent / (constants.custom_bandwidth * link_bytes_per_second)
    return np.where(size < CUSTOM_BYTES, custom, nccl)


def transfer_seconds(
    constants: LinkConstants, link_bytes_per_second: float, sent: FloatArray
) -> FloatArray:
    """Seconds of a collective of NCCL in which each rank sends so many bytes."""
    return constants.collective_seconds + sent / (constants.bandwidth * link_bytes_per_second)
