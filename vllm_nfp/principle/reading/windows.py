"""Which layers attend to a window only."""

from __future__ import annotations

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.sizes import MAX_LAYERS, MAX_TOKENS, ShapeError, shown

_SLIDING = ("sliding_attention", "chunked_attention", "hybrid_sliding")
_FULL = ("full_attention", "attention", "hybrid", "indexed_attention", "minimax_m3_sparse")
"""Layers that see all tokens, or all that an indexer picks."""


def windows(fields: ConfigFields, family: Family, layers: int) -> tuple[int | None, ...]:
    """Tokens that each layer attends to at most; None: all.

    Raises:
        ShapeError: for a kind of layer that is not known.
    """
    if family.special == "domyn_edge":
        return _listed(fields, layers)
    kinds = _kinds(fields, layers)
    strange = [kind for kind in kinds if kind not in (*_FULL, *_SLIDING)]
    if strange:
        raise ShapeError(
            f"layer_types has {shown(strange[0])}: only full, sliding and chunked attention known"
        )
    window = fields.whole("sliding_window", 0, most=MAX_TOKENS)
    switch = fields.flag("use_sliding_window", not family.window_switch)
    if not window or not switch:
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


def _kinds(fields: ConfigFields, layers: int) -> list[object]:
    """Kind of each layer. Entries after them may be those of layers that draft (Step 5)."""
    found = fields.items("layer_types")
    drafting = fields.whole("num_nextn_predict_layers", 0, most=MAX_LAYERS)
    if len(found) == layers + drafting:
        return found[:layers]
    return fields.per_layer("layer_types", layers)


def _listed(fields: ConfigFields, layers: int) -> tuple[int | None, ...]:
    """Windows of single layers, each with the tokens before and after a position (Domyn Edge)."""
    found: list[int | None] = []
    for pair in fields.per_layer("window_sizes", layers):
        before = pair[0] if isinstance(pair, (list, tuple)) and len(pair) == 2 else None
        if isinstance(before, bool) or not isinstance(before, int) or before > MAX_TOKENS:
            raise ShapeError(f"window_sizes must have a pair of whole numbers, not {shown(pair)}")
        # The token itself counts too (vLLM 0.33, models/domyn_edge.py).
        found.append(before + 1 if before > 0 else None)
    return tuple(found)


def _by_rule(fields: ConfigFields, family: Family, layers: int, index: int) -> bool:
    if family.window == "upper":
        return index >= fields.whole("max_window_layers", layers)
    if family.window == "alternate":
        return index < fields.whole("max_window_layers", layers) and index % 2 == 0
    if family.window == "pattern":
        return (index + 1) % fields.whole("sliding_window_pattern", family.pattern, least=1) != 0
    # vLLM takes a window of any config that lists no kinds of layers for all layers that cache
    # keys and values (engine/arg_utils.py).
    own = family.window == "none" and "sliding_window" not in family.defaults
    return family.window == "all" or (own and not family.latent)
