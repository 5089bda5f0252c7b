"""Which settings, versions and numbers of the model differ between two profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllm_nfp.results.profile import Profile

_NOT_COMPARED = frozenset({"environment.date_unix_seconds"})

_OLD_PROFILES_LACK = frozenset(
    f"environment.{name}"
    for name in (
        "device.multiprocessors", "device.memory_bytes", "kv_cache_dtype", "attention_backends",
        "max_model_len", "max_num_seqs", "max_num_batched_tokens", "cudagraph_mode",
        "cudagraph_capture_sizes", "num_kv_blocks", "block_size",
    )
)  # fmt: skip
"""Empty in a profile that does not record them: that says nothing of a change."""

SUBJECTS = {
    "environment.device.name": "devices",
    "model.name": "models",
    "environment.quantization": "quantizations",
    "environment.tensor_parallel_size": "tensor parallel sizes",
    "environment.data_parallel_size": "data parallel sizes",
    "model.num_layers": "layer counts",
}
"""Settings that make two profiles those of two things, not of one thing before and after."""


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting, version or number of the model that differs."""

    name: str
    before: str
    after: str


def setting_changes(before: Profile, after: Profile) -> Iterable[SettingChange]:
    """Each setting, version or number of the model that differs."""
    old = {**_flat("environment", before.environment), **_flat("model", before.model),
           **_flat("probe", before.probe)}  # fmt: skip
    new = {**_flat("environment", after.environment), **_flat("model", after.model),
           **_flat("probe", after.probe)}  # fmt: skip
    for name, value in old.items():
        if value == new[name] or name in _NOT_COMPARED:
            continue
        if not (name in _OLD_PROFILES_LACK and not (value and new[name])):
            yield SettingChange(name, _text(value), _text(new[name]))


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Fields of nested dataclasses by dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        name, entry = f"{prefix}.{field.name}", getattr(value, field.name)
        found.update(_flat(name, entry) if dataclasses.is_dataclass(entry) else {name: entry})
    return found


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "-"
    return str(value)
