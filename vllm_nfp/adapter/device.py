"""Says what the first GPU is: ``python -m vllm_nfp.adapter.device`` prints one line of JSON.

Asking creates a CUDA context, which keeps memory as long as its process lives; so a process asks
that ends at once.
"""

from __future__ import annotations

import json
from typing import Any


def describe() -> dict[str, Any] | None:
    """Name, free bytes and compute capability; None without a GPU. ROCm's GPUs count as well."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(0)
    return {
        "name": torch.cuda.get_device_name(0),
        "free_bytes": int(free),
        "capability": list(torch.cuda.get_device_capability(0)),
        "rocm": torch.version.hip is not None,
    }


if __name__ == "__main__":
    print(json.dumps(describe()))
