"""Tells a failed allocation from other errors."""

from __future__ import annotations

import torch

_STABLE_ABI_ALLOCATIONS = ("aten::new_empty", "aten::empty")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation on the GPU failed.

    Kernels behind torch's stable ABI, FlashAttention 3 among them, report it as a plain
    RuntimeError that names the allocating call (seen with vLLM 0.32 on an H100).
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return "API call failed" in text and any(name in text for name in _STABLE_ABI_ALLOCATIONS)
