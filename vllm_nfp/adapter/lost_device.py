"""Whether a fault has cost this process its GPU."""

from __future__ import annotations

import torch


def device_is_lost() -> bool:
    """CUDA refuses every call of this process from now on, as after an illegal address.

    Waits for nothing, and asks what CUDA answers during a capture as well.
    """
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.mem_get_info()
    except RuntimeError:
        return True
    return False
