"""Which layers attend to a window only."""

from __future__ import annotations

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.sizes import MAX_TOKENS, ShapeError, shown

_SLIDING = ("sliding_attention", "chunked_attention", "hybrid_sliding")
_FULL = ("full_attention", "attention", "hybrid", "indexed_attention", "minimax_m3_sparse")
"""Layers that see all tokens, or all that an indexer picks."""


def windows(fields: ConfigFields, family: Family, layers: int) -> tuple[int | None, ...]:
    """Tokens that each layer attends to at most; None: all.

    Raises:
        ShapeError: for a kind of layer that is not known.
    """
    kinds = fields.per_layer("layer_types", layers)
    strange = [kind for kind in kinds if kind not in (*_FULL, *_SLIDING)]
    if strange:
        raise ShapeError(
            f"layer_types has {shown(strange[0])}: only full, sliding and chunked attention known"
        )
    window = fields.whole("sliding_window", 0, most=MAX_TOKENS)
    if not window or (family.window_switch and not fields.flag("use_sliding_window", False)):
        return (None,) * layers
    listed = fields.whole_items("sliding_layer_ids", layers - 1)
    if listed:
        slides = [index in listed for index in range(layers)]
    elif kinds:
        slides = [kind in _SLIDING for kind in kinds]
    elif fields.per_layer("sliding_layers", layers):
        slides = [flag == 1 for flag in fields.whole_items("sliding_layers", 1)]
    else:
        slides = [_by_rule(fields, family, layers, index) for index in range(layers)]
    return tuple(window if flag else None for flag in slides)


def _by_rule(fields: ConfigFields, family: Family, layers: int, index: int) -> bool:
    if family.window == "upper":
        return index >= fields.whole("max_window_layers", layers)
    if family.window == "alternate":
        return index < fields.whole("max_window_layers", layers) and index % 2 == 0
    if family.window == "pattern":
        return (index + 1) % fields.whole("sliding_window_pattern", family.pattern, least=1) != 0
    return family.window == "all"
