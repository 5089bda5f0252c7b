"""What checkpoints call a module: its paths within a layer, and before the layers.

A module is named here by its part and its matrix, such as ``ffn.up_proj``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
LATENT = (
    "attention.q_a_proj",
    "attention.q_b_proj",
    "attention.kv_a_proj_with_mqa",
    "attention.kv_b_proj",
    "attention.o_proj",
)
DENSE, SHARED, EXPERTS = "ffn", "ffn.shared_experts", "ffn.experts.0"
"""Feed-forward blocks. One expert stands for all of its layer."""
BESIDE = "beside.experts.0"
"""Experts that are no part of the layer's feed-forward module."""
LM_HEAD = ("lm_head", "head", "output_layer", "embed_out")
ELSEWHERE = ("mtp", "model.mtp", "visual", "model.visual", "vision_", "model.vision_", "audio_")
"""How names begin that are no part of the language model's layers: asked of none of them."""
TEXT_PREFIXES = (
    "model.",
    "model.language_model.",
    "language_model.model.",
    "backbone.",
    "transformer.",
    "",
)

_BLOCKS = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "mixer", "moe")
"""Names of a layer's feed-forward module."""
_PLACES: Mapping[str, tuple[str, ...]] = {
    "attention": ("self_attn", "attn", "attention", "self_attention", "mixer"),
    "delta": ("linear_attn", "self_attn"),
    "mamba": ("mamba", "mixer"),
    "conv": ("conv", "short_conv"),
    "lightning": ("attention", "self_attn"),
    "ffn": _BLOCKS,
    "beside": ("", "moe"),
}
"""Names of the module that holds a part."""
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("qkv_proj", "wqkv", "query_key_value", "W_pack", "c_attn", "Wqkv", "wq_b"),
    "k_proj": ("qkv_proj", "wqkv", "query_key_value", "W_pack", "c_attn", "Wqkv", "wkv"),
    "v_proj": ("qkv_proj", "wqkv", "query_key_value", "W_pack", "c_attn", "Wqkv", "wkv"),
    "o_proj": ("dense", "out_proj", "wo", "wo_b", "c_proj"),
    "q_a_proj": ("fused_qkv_a_proj",),
    "kv_a_proj_with_mqa": ("fused_qkv_a_proj",),
    "q_b_proj": ("q_proj",),
    "gate_proj": ("gate_up_proj", "w1"),
    "up_proj": ("gate_up_proj", "w3", "fc1"),
    "down_proj": ("w2", "fc2"),
    "in_proj": ("in_proj_qkvz", "in_proj_qkv", "qkv_proj", "q_proj"),
    "in_proj_z": ("in_proj_qkvz", "in_proj", "g_proj", "g_b_proj"),
    "out_proj": ("o_proj", "dense"),
}
"""What a matrix is called where it is merged with its neighbours, or in other families."""


def feed_forward(block: str, gated: bool) -> tuple[str, ...]:
    """Matrices of a feed-forward block."""
    names = ("gate_proj", "up_proj", "down_proj") if gated else ("up_proj", "down_proj")
    return tuple(f"{block}.{name}" for name in names)


def of_other_expert(entry: str) -> bool:
    """A module of an expert that is not asked for, which is most of a long list."""
    _, found, inner = entry.partition(".experts.")
    number = inner.partition(".")[0]
    return bool(found) and number.isdecimal() and number != "0"


def recurrent(kind: str) -> tuple[str, ...]:
    """Projections of a layer with a state, by how the family names them."""
    places = {
        "gated_delta_net": "delta",
        "kda": "delta",
        "glm_kda": "delta",
        "bailing_kda": "lightning",
        "lightning": "lightning",
        "short_conv": "conv",
    }
    place = places.get(kind, "mamba")
    return tuple(f"{place}.{name}" for name in ("in_proj", "in_proj_z", "out_proj"))


@functools.cache
def paths_of(module: str) -> tuple[str, ...]:
    """Every path within a layer that a checkpoint may have for a module."""
    parent, _, matrix = module.rpartition(".")
    names = (matrix, *_OTHER_NAMES.get(matrix, ()))
    return tuple(f"{place}.{name}".lstrip(".") for place in _places(parent) for name in names)


def _places(parent: str) -> list[str]:
    part, dot, rest = parent.partition(".")
    rests = [rest, "shared_expert"] if rest == "shared_experts" else [rest]
    return [f"{place}{dot}{inner}" for place in _PLACES[part] for inner in rests]


@functools.cache
def runs(module: str) -> frozenset[str]:
    """Every run of whole components of a module's paths: the module and parts around it."""
    return frozenset(
        ".".join(parts[start:stop])
        for parts in (path.split(".") for path in paths_of(module))
        for start in range(len(parts))
        for stop in range(start + 1, len(parts) + 1)
    )


@functools.cache
def heads(module: str) -> frozenset[str]:
    """A module's paths and those of the modules around it; an empty one is the whole layer."""
    return frozenset(
        ".".join(parts[:stop])
        for parts in (path.split(".") for path in paths_of(module))
        for stop in range(len(parts) + 1)
    )


def without_prefix(entry: str) -> str:
    """An entry of a list without what stands before its layers."""
    for prefix in reversed(TEXT_PREFIXES[:-1]):
        if entry.startswith(prefix):
            return entry.removeprefix(prefix)
    return entry
