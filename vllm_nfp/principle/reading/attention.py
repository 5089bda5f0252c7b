"""Heads of attention: of the model, and of layers that differ from the others."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.layer_parts import AttentionPart, Indexer, LatentAttention
from vllm_nfp.principle.sizes import ShapeError, shown

_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
_LISTED = {"num_attention_heads": "num_attention_heads_per_layer", "head_dim": "head_sizes"}
"""Sizes by the name of a list with one for each layer."""
_OWN = "per_layer_config"
"""Sizes of single layers in configs of transformers 5.19, by the layer's number."""


def head_dim(fields: ConfigFields, heads: int) -> int:
    """Width of a head: of the config, or the hidden size shared out."""
    if fields.get("head_dim") is not None:
        return fields.whole("head_dim", least=1)
    hidden = fields.whole("hidden_size", least=1)
    if hidden % heads:
        raise ShapeError(f"num_attention_heads {heads} does not divide hidden_size {hidden}")
    return hidden // heads


def latent_attention(fields: ConfigFields, absorbed: bool) -> LatentAttention:
    """Sizes of latent attention."""
    fields.require(_LATENT)
    return LatentAttention(
        q_rank=fields.whole("q_lora_rank", 0),
        kv_rank=fields.whole("kv_lora_rank", least=1),
        nope_dim=fields.whole("qk_nope_head_dim", least=1),
        rope_dim=fields.whole("qk_rope_head_dim"),
        value_dim=fields.whole("v_head_dim", least=1),
        absorbed=absorbed,
    )


def attention_kinds(
    fields: ConfigFields, family: Family, windows: tuple[int | None, ...]
) -> tuple[AttentionPart, ...]:
    """Kinds of attention of a model whose layers differ by more than their windows.

    Args:
        windows: of each layer.

    Returns:
        Kinds with all tokens before those with a window; nothing if layers are alike.
    """
    layers = len(windows)
    own = own_sizes(fields, layers)
    first_shared = layers - fields.whole("num_kv_shared_layers", 0, most=layers)
    every: Counter[AttentionPart] = Counter()
    shared: Counter[AttentionPart] = Counter()
    for index, window in enumerate(windows):
        part = _part(fields, family, window, own.get(index, {}))
        every[part] += 1
        shared[part] += index >= first_shared
    parts = [
        dataclasses.replace(part, layers=count, shared=shared[part])
        for part, count in every.items()
    ]
    unlike = _unlike(parts) or _sizes(parts[0]) != _sizes(_part(fields, Family(), None, {}))
    return tuple(sorted(parts, key=_full_first)) if unlike else ()


def _full_first(part: AttentionPart) -> tuple[bool, int]:
    return part.window is not None, -part.layers


def _sizes(part: AttentionPart) -> tuple[int, int, int]:
    return part.heads, part.kv_heads, part.head_dim


def _unlike(parts: list[AttentionPart]) -> bool:
    """Layers differ in what the flat sizes of a shape cannot say."""
    sizes = {(*_sizes(part), part.value_dim, part.gate) for part in parts}
    plain = all(
        part.head_dim == part.value_dim
        and not (part.shared or part.tied_values)
        and part.gate in (0, part.head_dim)
        for part in parts
    )
    windows = {part.window for part in parts if part.window is not None}
    return len(sizes) > 1 or len(windows) > 1 or not plain


def _part(
    fields: ConfigFields, family: Family, window: int | None, own: Mapping[str, int]
) -> AttentionPart:
    """A layer's attention: its own sizes, else those of its kind, else the model's."""
    other = family.full if window is None else family.sliding
    sizes: dict[str, int] = dict(own)
    for name, named in other.items():
        for own_name in named:
            if name not in sizes and fields.get(own_name) is not None:
                sizes[name] = fields.whole(own_name, least=1)
    heads = sizes.get("num_attention_heads") or fields.whole("num_attention_heads", least=1)
    width = sizes.get("head_dim") or head_dim(fields, heads)
    return AttentionPart(
        1,
        heads,
        sizes.get("num_key_value_heads") or fields.whole("num_key_value_heads", heads, least=1),
        width,
        sizes.get("v_head_dim") or fields.whole("v_head_dim", width, least=1),
        window,
        tied_values=window is None and fields.flag("attention_k_eq_v", False),
        gate=gate_columns(fields, family, width),
    )


def gate_columns(fields: ConfigFields, family: Family, width: int) -> int:
    """Columns of the gate of a head's output: 0 without one."""
    given = fields.get("attn_output_gate")
    if family.gate == "none" or given is False:
        return 0
    named = given if isinstance(given, str) else ""
    if "element" in named:
        return width
    return 1 if "head" in named or family.gate == "heads" else width


def own_sizes(fields: ConfigFields, layers: int) -> dict[int, dict[str, int]]:
    """Sizes that single layers have, by the layer's number."""
    found: dict[int, dict[str, int]] = {}
    for name, listed in _LISTED.items():
        if fields.per_layer(listed, layers):
            for index, size in enumerate(fields.whole_items(listed, 1 << 24)):
                found.setdefault(index, {})[name] = max(1, size)
    given = fields.get(_OWN)
    if given is None:
        return found
    if not isinstance(given, Mapping):
        raise ShapeError(f"{_OWN} must be an object, not {shown(given)}")
    for number, sizes in given.items():
        if not str(number).isdecimal() or len(str(number)) > 4 or not isinstance(sizes, Mapping):
            raise ShapeError(f"{_OWN} must give sizes for each layer, not {shown(sizes)}")
        checked = {name: _size(name, value) for name, value in sizes.items() if name in _SIZES}
        found[int(number)] = {**found.get(int(number), {}), **checked}
    return found


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 24:
        raise ShapeError(f"{name} of {_OWN} must be a whole number above 0, not {shown(value)}")
    return value


def indexer(fields: ConfigFields, attends: tuple[bool, ...], mla: LatentAttention) -> Indexer:
    """The indexer of sparse latent attention, in layers that have attention."""
    fields.require(("index_topk", "index_n_heads", "index_head_dim", "q_lora_rank"))
    heads = fields.whole("index_n_heads", least=1)
    width = fields.whole("index_head_dim", least=1)
    # GLM-5-Next pools keys of so many tokens, with a gate for each (models/glm5next).
    pooled = fields.whole("index_kpool", 1, least=1)
    return Indexer(
        _own_indexers(fields, attends),
        fields.whole("index_topk", least=1),
        heads,
        width,
        mla.q_rank,
        2 * width + heads if pooled > 1 else 0,
        pooled,
    )


def _own_indexers(fields: ConfigFields, attends: tuple[bool, ...]) -> int:
    """Layers with an indexer of their own, by the list or vLLM's rule (models/deepseek_v2.py)."""
    layers = len(attends)
    kinds = fields.per_layer("indexer_types", layers)
    if kinds:
        strange = [kind for kind in kinds if kind not in ("full", "shared")]
        if strange:
            raise ShapeError(f"indexer_types has {shown(strange[0])}: only full, shared known")
        return sum(kind == "full" and has for kind, has in zip(kinds, attends, strict=True))
    pattern = fields.get("index_topk_pattern")
    if isinstance(pattern, str):
        return layers - pattern[:layers].count("S")
    every = fields.whole("index_topk_freq", 1, least=1)
    offset = fields.whole("index_skip_topk_offset", 2)
    return sum(has and max(index - offset + 1, 0) % every == 0 for index, has in enumerate(attends))
