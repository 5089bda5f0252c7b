"""Attention that only one family has, as lists of parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.layer_parts import AttentionPart, Indexer, Matrix
from vllm_nfp.principle.reading.attention import attention_kinds, own_sizes
from vllm_nfp.principle.sizes import MAX_SIZE, ShapeError, shown

_V4_RATES = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}
_V4_PICKS = 4
"""The rate of layers whose entries an indexer picks from, with overlapping windows."""
_V4_EXTRA_BYTES = 64 + 8
"""Of an entry of 512 numbers, 64 have 16 bits, the rest 8, and 8 bytes are scales
(vLLM 0.32, models/deepseek_v4/compressor.py: 584 bytes)."""

_V4_CACHE = "Its cache has entries of mostly 8 bits, whatever the type of the KV cache."


@dataclass(frozen=True, slots=True)
class Special:
    """Attention of a model, its indexer, and matrices beside it."""

    kinds: tuple[AttentionPart, ...]
    indexer: Indexer | None = None
    assumed: tuple[str, ...] = ()
    """Sentences on what is taken for granted."""


def special_attention(
    fields: ConfigFields, family: Family, windows: tuple[int | None, ...]
) -> Special:
    """The attention of a family with a reader of its own, or by kinds of layers."""
    reader = _READERS.get(family.special or "")
    if reader is not None:
        return reader(fields, family, windows)
    return Special(attention_kinds(fields, family, windows))


def _deepseek_v4(fields: ConfigFields, family: Family, windows: tuple[int | None, ...]) -> Special:
    """A window of 128 tokens and one entry for each 4 or 128 tokens before it."""
    fields.require(("q_lora_rank", "o_lora_rank", "o_groups", "index_topk", "sliding_window"))
    hidden, heads = fields.whole("hidden_size", least=1), fields.whole("num_attention_heads")
    width, rank = fields.whole("head_dim", 512, least=1), fields.whole("q_lora_rank", least=1)
    groups, narrow = fields.whole("o_groups", least=1), fields.whole("o_lora_rank", least=1)
    picks, window = fields.whole("index_topk", least=1), fields.whole("sliding_window", least=1)
    index_heads = fields.whole("index_n_heads", 64, least=1)
    index_width = fields.whole("index_head_dim", 128, least=1)
    rates = Counter(_rates(fields, len(windows)))
    parts = []
    for rate, layers in sorted(rates.items()):
        # Keys and gates of the entries; those of overlapping windows twice.
        entries = 0 if not rate else 2 * width * (2 if rate == _V4_PICKS else 1)
        matrices = (
            Matrix(hidden, rank + width + entries, "none"),
            Matrix(rank, heads * width),
            Matrix(heads * width // groups, groups * narrow),
            Matrix(groups * narrow, hidden, "rows"),
        )
        parts.append(
            AttentionPart(
                layers,
                heads,
                1,
                width,
                width,
                window,
                compress=rate,
                top_k=picks if rate == _V4_PICKS else 0,
                entry_bytes=width + _V4_EXTRA_BYTES,
                matrices=matrices,
            )
        )
    own = rates[_V4_PICKS]
    columns = index_heads + 4 * index_width
    indexer = Indexer(own, picks, index_heads, index_width, rank, columns, _V4_PICKS)
    most_first = sorted(parts, key=lambda part: -part.layers)
    return Special(tuple(most_first), indexer if own else None, (_V4_CACHE,))


def _rates(fields: ConfigFields, layers: int) -> list[int]:
    """Tokens for each entry, by layer; 0: none."""
    given = fields.items("compress_ratios")
    if given:
        # The list goes on with the layers that draft.
        if len(given) < layers:
            raise ShapeError(f"compress_ratios has {len(given)} entries for {layers} layers")
        return fields.whole_items("compress_ratios", MAX_SIZE)[:layers]
    kinds = fields.per_layer("layer_types", layers)
    strange = [kind for kind in kinds if kind not in _V4_RATES]
    if strange or not kinds:
        raise ShapeError(
            f"layer_types has {shown(strange[0]) if strange else 'nothing'}: "
            f"give a complete config.json, with compress_ratios or layer_types"
        )
    return [_V4_RATES[str(kind)] for kind in kinds]


def _minimax_m3(fields: ConfigFields, family: Family, windows: tuple[int | None, ...]) -> Special:
    """Layers that read blocks of tokens which an indexer picks, and others that read all."""
    kinds = fields.per_layer("layer_types", len(windows))
    flags = fields.per_layer("sparse_layers", len(windows))
    sparse = kinds.count("minimax_m3_sparse") or sum(flag == 1 for flag in flags)
    heads = fields.whole("num_attention_heads", least=1)
    kv_heads, width = fields.whole("num_key_value_heads", heads), fields.whole("head_dim", 128)
    if not sparse:
        return Special(())
    block = fields.whole("index_block_size", 128, least=1)
    picks = block * fields.whole("index_topk_blocks", 16, least=1)
    index_heads = fields.whole("index_n_heads", 4, least=1)
    index_width = fields.whole("index_head_dim", 128, least=1)
    full = AttentionPart(len(windows) - sparse, heads, kv_heads, width, width)
    picking = AttentionPart(sparse, heads, kv_heads, width, width, top_k=picks)
    hidden = fields.whole("hidden_size", least=1)
    # Its keys are cached in 16 bits (vLLM 0.32, models/minimax_m3).
    indexer = Indexer(
        sparse, picks, index_heads, index_width, hidden, index_width, 1, 2.0 * index_width
    )
    parts = (picking, full) if full.layers else (picking,)
    return Special(parts, indexer)


def _step3(fields: ConfigFields, family: Family, windows: tuple[int | None, ...]) -> Special:
    """Queries of all heads made of one narrow one; one head of keys and values."""
    hidden, heads = fields.whole("hidden_size", least=1), fields.whole("num_attention_heads")
    width = fields.whole("head_dim", 256, least=1)
    narrow = fields.whole("share_q_dim", width) or width
    matrices = (
        Matrix(hidden, narrow + 2 * width, "none"),
        Matrix(narrow, heads * width),
        Matrix(heads * width, hidden, "rows"),
    )
    return Special((AttentionPart(len(windows), heads, 1, width, width, matrices=matrices),))


def _step5(fields: ConfigFields, family: Family, windows: tuple[int | None, ...]) -> Special:
    """A window, or regions of eight tokens that an indexer picks by their summaries.

    Sizes that a config may leave out are those of vLLM 0.33 (models/step5/nvidia/config.py).
    """
    needed = ("layer_types", "sliding_window", "sparse_config", "shared_expert_intermediate_size")
    fields.require(needed)
    kinds = attention_kinds(fields, family, windows)
    full = sum(window is None for window in windows)
    if not full or not fields.flag("sparse_config.enabled", True):
        return Special(kinds)
    heads = fields.whole("index_n_heads", 16, least=1)
    width = fields.whole("index_head_dim", 256, least=1)
    region = fields.whole("index_block_size", 8, least=1)
    picks = region * fields.whole("index_topk_blocks", 512, least=1)
    hidden = fields.whole("hidden_size", least=1)
    # A key and what weighs it in its region's summary, and a weight for each head. A summary has
    # one byte for each number.
    indexer = Indexer(full, picks, heads, width, hidden, 2 * width + heads, region, width)
    return Special(
        tuple(part if part.window else replace(part, top_k=picks) for part in kinds), indexer
    )


def _domyn_edge(fields: ConfigFields, family: Family, windows: tuple[int | None, ...]) -> Special:
    """Heads and windows of each layer's own."""
    fields.require(("window_sizes",))
    own = own_sizes(fields, len(windows))
    if fields.get("head_dim") is None and any(
        "head_dim" not in own.get(index, {}) for index in range(len(windows))
    ):
        raise ShapeError(
            "the config lacks the head size of some layer: give a complete config.json, with "
            "head_sizes or per_layer_config"
        )
    return Special(attention_kinds(fields, family, windows))


_Reader = Callable[[ConfigFields, Family, tuple[int | None, ...]], Special]
_READERS: Mapping[str, _Reader] = {
    "deepseek_v4": _deepseek_v4,
    "minimax_m3": _minimax_m3,
    "step3": _step3,
    "step5": _step5,
    "domyn_edge": _domyn_edge,
}
