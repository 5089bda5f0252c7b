"""What a result was measured on: device, versions, settings that shape a step, the model."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vllm_nfp import __version__
from vllm_nfp.adapter import versions
from vllm_nfp.adapter.dummies import engines_together
from vllm_nfp.files import FileError, read_bytes
from vllm_nfp.types import Device, Environment, ModelDescription

MOST_CONFIG_BYTES = 1 << 20
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_CPU_FILE = Path("/proc/cpuinfo")


def describe_environment(vllm_config: Any, attention_backends: tuple[str, ...] = ()) -> Environment:
    """What shapes a step; no paths beyond the served model's name, no secrets."""
    model = vllm_config.model_config
    compilation = vllm_config.compilation_config
    scheduler = vllm_config.scheduler_config
    cache = vllm_config.cache_config
    return Environment(
        date_unix_seconds=time.time(),
        device=describe_device(),
        vllm_nfp=__version__,
        vllm=versions.installed_version() or "",
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=_text_or_none(model.quantization),
        kv_cache_dtype=str(cache.cache_dtype),
        attention_backends=attention_backends,
        tensor_parallel_size=int(vllm_config.parallel_config.tensor_parallel_size),
        enforce_eager=bool(model.enforce_eager),
        max_model_len=int(model.max_model_len),
        max_num_seqs=int(scheduler.max_num_seqs),
        max_num_batched_tokens=int(scheduler.max_num_batched_tokens),
        cudagraph_mode=_mode_name(compilation.cudagraph_mode),
        cudagraph_capture_sizes=tuple(compilation.cudagraph_capture_sizes or ()),
        num_kv_blocks=int(cache.num_gpu_blocks or 0),
        block_size=int(cache.block_size or 0),
        data_parallel_size=engines_together(vllm_config),
    )


def describe_device() -> Device:
    """The first GPU, or the processor where there is none."""
    if not torch.cuda.is_available():
        return Device("cpu", _cpu_name(), None, None, None)
    properties = torch.cuda.get_device_properties(0)
    return Device(
        "cuda",
        properties.name,
        _driver_version(),
        properties.multi_processor_count,
        properties.total_memory,
    )


def _cpu_name() -> str:
    found = _search(_CPU_FILE, r"^model name\s*:\s*(.+)$")
    return found or platform.processor() or platform.machine()


def _driver_version() -> str | None:
    return _search(_DRIVER_FILE, r"^NVRM version:.*?\s(\d+\.[\d.]+)\s")


def _search(path: Path, pattern: str) -> str | None:
    try:
        match = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None


def _mode_name(mode: Any) -> str:
    return str(None if mode is None else mode.name)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def attention_backends(runner: Any) -> tuple[str, ...]:
    """The distinct names of a model runner's attention backends, in the order of its groups."""
    names = [str(group.backend.get_name()) for groups in runner.attn_groups for group in groups]
    return tuple(dict.fromkeys(names))


def describe_model(name: str, vllm_config: Any) -> ModelDescription:
    """The numbers of the served model that set its cost; None for those that it lacks.

    Args:
        name: under which it is served.
    """
    config = vllm_config.model_config.hf_text_config
    architectures = getattr(vllm_config.model_config.hf_config, "architectures", None) or ("",)
    values: Mapping[str, int | None] = {
        field: _first_number(config, names) for field, names in _NAMES.items()
    }
    whole = _whole_num_layers(vllm_config.model_config)
    return ModelDescription(
        name=name, architecture=str(architectures[0]), whole_num_layers=whole, **values
    )


def _whole_num_layers(model_config: Any) -> int | None:
    """Layers of the model's own config.json, where overrides of it change their number."""
    overrides = model_config.hf_overrides
    if not isinstance(overrides, Mapping) or not {*_NAMES["num_layers"]} & {*overrides}:
        return None
    try:
        values = json.loads(read_bytes(Path(model_config.model, "config.json"), MOST_CONFIG_BYTES))
    except (OSError, FileError, ValueError):  # a name of the hub, whose files are elsewhere
        return None
    found = values.get("text_config", values) if isinstance(values, Mapping) else {}
    numbers = (found.get(name) for name in _NAMES["num_layers"])
    return next((n for n in numbers if isinstance(n, int) and n > 0), None)


_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "vocab_size": ("vocab_size",),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "moe_topk", "moe_k"),
    "moe_intermediate_size": ("moe_intermediate_size",),
}
"""Field of ModelDescription -> the names that model configurations give it."""


def _first_number(config: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
