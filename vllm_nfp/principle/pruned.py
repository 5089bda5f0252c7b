"""Nemotron-NAS: a Llama whose layers lost their attention, or part of their width, in a search.

``block_configs`` says so for each layer (vLLM 0.32, models/nemotron_nas.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_nfp.principle.shape import MAX_LAYERS, MAX_SIZE, ShapeError, shown

_STEP = 256
"""Widths are rounded up to a multiple of this."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Which layers have attention, and feed-forward blocks by width."""

    attends: tuple[bool, ...]
    ffn: tuple[bool | None, ...]
    """False for a dense block, None for none, by layer."""
    group: int
    """Query heads for each KV head."""
    widths: tuple[tuple[int, int], ...]
    """Feed-forward blocks and width of each, most blocks first."""


def pruned_layers(text: Mapping[str, object]) -> Pruned:
    """Read ``block_configs``.

    Raises:
        ShapeError: for blocks that are linear layers, windows, or groups that differ.
    """
    blocks = text.get("block_configs")
    hidden = text.get("hidden_size")
    if not isinstance(blocks, (list, tuple)) or not 0 < len(blocks) <= MAX_LAYERS:
        raise ShapeError(f"block_configs must be a list of blocks, not {shown(blocks)}")
    if not isinstance(hidden, int) or not 0 < hidden <= MAX_SIZE:
        raise ShapeError(f"hidden_size must be a whole number above 0, not {shown(hidden)}")
    attends = tuple(_part(block, "attention") is not None for block in blocks)
    ffn = tuple(None if _part(block, "ffn") is None else False for block in blocks)
    groups = [_number(p, "n_heads_in_group") for b in blocks if (p := _part(b, "attention"))]
    factors = [_number(p, "ffn_mult") for b in blocks if (p := _part(b, "ffn"))]
    if not groups or not factors or len(set(groups)) > 1:
        raise ShapeError("block_configs must have attention with groups of one size, and ffn")
    widths = [-(-int(2 * factor * hidden / 3) // _STEP) * _STEP for factor in factors]
    counted = tuple((count, width) for width, count in Counter(widths).most_common())
    return Pruned(attends, ffn, int(groups[0]), counted)


def _part(block: object, name: str) -> Mapping[str, object] | None:
    """A block's part; None if the layer lacks it."""
    part = block.get(name) if isinstance(block, Mapping) else None
    if not isinstance(part, Mapping):
        raise ShapeError(f"a block of block_configs lacks {name}: give a complete config.json")
    for unknown in ("replace_with_linear", "window_length", "sparsify"):
        if part.get(unknown):
            raise ShapeError(f"block_configs has {unknown}, which no shape describes")
    return None if part.get("no_op") else part


def _number(part: Mapping[str, object], name: str) -> float:
    value = part.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 4096:
        raise ShapeError(f"{name} of block_configs must be above 0, not {shown(value)}")
    return value
