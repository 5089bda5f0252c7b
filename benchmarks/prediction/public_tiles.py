"""Tiles of the kernels that public sets of routed experts timed.

A set names its kernel and, in its source, the release of vLLM. FlashInfer's kernels were timed
without their autotuner. Tuned files are those that vLLM 0.32 ships.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.principle.expert_kernels import Kernel, blocks_of
from vllm_nfp.principle.expert_tiles import MoeConfig, default_config, tiles, tuned_config
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import Quantization
from vllm_nfp.principle.tuned_tiles import shipped_tiles

Floats = NDArray[np.float64]
KERNELS: Mapping[str, Kernel] = {
    "trtllm": "trtllm",
    "flashinfer_cutlass": "cutlass",
    "oaitriton": "openai",
    "marlin": "marlin",
}
"""By a part of the name that a set gives; all others are vLLM's Triton kernel."""
EARLIER_RULE = (0, 14)
"""Last release of these sets with the earlier default rule."""


def timed_config(
    hardware: Hardware, quantization: Quantization, one: Mapping[str, Any], tokens: Floats
) -> MoeConfig:
    """Tiles of a set at these numbers of tokens."""
    sizes = one["essentials"]
    experts, width = sizes["experts"], sizes["inter"] // sizes["tp"]
    named = sizes["kernel"][0]
    for part, kernel in KERNELS.items():
        if part in named:
            return blocks_of(kernel, tokens * sizes["topk"] / experts, autotuned=False)
    found = shipped_tiles(hardware, quantization, experts, width)
    if found:
        return tuned_config(tokens, found)
    if release_of(one) <= EARLIER_RULE:
        return earlier_default(tokens, experts)
    return default_config(tokens, quantization, experts)


def earlier_default(tokens: Floats, experts: int) -> MoeConfig:
    """``get_default_config`` of vLLM 0.14 for 16-bit weights."""
    few = tokens <= experts
    return tiles(
        np.where(few, 16, 64),
        np.where(few, 32, 64),
        np.where(few, 64, 32),
        np.where(few, 1, 8),
    )


def release_of(one: Mapping[str, Any]) -> tuple[int, int]:
    """vLLM's release that a set was timed with; the latest if its source does not name it."""
    found = re.search(r"/vllm/(\d+)\.(\d+)", one["source"])
    return (int(found[1]), int(found[2])) if found else (1 << 30, 0)
