"""Sizes of configuration classes, which a language model's part of a config may leave out.

Parts of multimodal configs are written as what differs from their class. The values are those of
transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_SIZES: Mapping[str, tuple[int, ...]] = {
    "llama": (4096, 11008, 32, 32, 32, 32000),
    "mistral": (4096, 14336, 32, 32, 8, 32000),
    "qwen2": (4096, 22016, 32, 32, 32, 151936),
    "qwen3": (4096, 22016, 32, 32, 32, 151936),
    "gemma": (3072, 24576, 28, 16, 16, 256000),
    "gemma2": (2304, 9216, 26, 8, 4, 256000),
    "phi3": (3072, 8192, 32, 32, 32, 32064),
}
NESTED_SIZES: Mapping[str, Mapping[str, int]] = {
    name: dict(zip(_NAMES, sizes, strict=True)) for name, sizes in _SIZES.items()
}
"""By model_type."""
