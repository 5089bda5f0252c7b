"""What a result was measured on: device, versions, settings that shape a step."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from vllm_nfp import __version__
from vllm_nfp.engine import versions


def describe_device() -> dict[str, Any]:
    """The device, and the software that chooses its kernels."""
    device: dict[str, Any] = {"type": "cpu"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device = {
            "type": "cuda",
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
    return {
        "vllm_nfp": __version__,
        "vllm": versions.installed_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "device": device,
    }


def describe_environment(vllm_config: Any) -> dict[str, Any]:
    """A JSON-serializable record; no paths beyond the served model's name, no secrets."""
    model = vllm_config.model_config
    compilation = vllm_config.compilation_config
    served = model.served_model_name
    return {
        "date_unix_seconds": time.time(),
        **describe_device(),
        "model": served[0] if isinstance(served, list) else served,
        "dtype": str(model.dtype),
        "max_model_len": model.max_model_len,
        "max_num_seqs": vllm_config.scheduler_config.max_num_seqs,
        "cudagraph_mode": str(compilation.cudagraph_mode),
        "cudagraph_capture_sizes": list(compilation.cudagraph_capture_sizes or ()),
        "num_kv_blocks": vllm_config.cache_config.num_gpu_blocks,
        "block_size": vllm_config.cache_config.block_size,
    }
