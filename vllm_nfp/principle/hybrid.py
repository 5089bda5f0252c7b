"""Hybrid models: which layers have attention, a recurrent state, a feed-forward block, experts.

Sizes follow vLLM 0.32 (model_executor/layers/mamba, model_executor/models); defaults of fields are
those of the configuration classes in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Hybrid
from vllm_nfp.principle.sizes import MAX_LAYERS, ShapeError, shown

_ATTENTION = ("full_attention", "attention", "indexed_attention")
_RECURRENT = ("linear_attention", "mamba", "conv")
_BLOCKS = {
    "M": "mamba",
    "*": "attention",
    "-": "mlp",
    "E": "moe",
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}


@dataclass(frozen=True, slots=True)
class Mixed:
    """What each layer has.

    Attributes:
        attends: attention to a cache.
        recurs: a state.
        ffn: whether its feed-forward block has experts; None: it has none. Layers with several
            blocks count several times, after all others.
    """

    attends: tuple[bool, ...]
    recurs: tuple[bool, ...]
    ffn: tuple[bool | None, ...]

    @property
    def attention(self) -> int:
        """Layers with attention."""
        return self.attends.count(True)

    @property
    def recurrent(self) -> int:
        """Layers with a state."""
        return self.recurs.count(True)


def one_or_other(attends: Sequence[bool], ffn: tuple[bool | None, ...]) -> Mixed:
    """Layers that have a state where they have no attention."""
    return Mixed(tuple(attends), tuple(not flag for flag in attends), ffn)


def mixed_layers(
    fields: ConfigFields, hybrid: Hybrid, layers: int, has_experts: tuple[bool, ...]
) -> Mixed:
    """Which layers of a hybrid model have what.

    Raises:
        ShapeError: for a kind of layer that is not known.
    """
    if hybrid == "nemotron_h":
        return _single_blocks(fields, layers)
    if hybrid == "falcon_h1":
        return Mixed((True,) * layers, (True,) * layers, has_experts)
    if hybrid in ("mamba", "mamba2"):
        return one_or_other((False,) * layers, (None,) * layers)
    return one_or_other(_attends(fields, hybrid, layers), has_experts)


def _attends(fields: ConfigFields, hybrid: Hybrid, layers: int) -> list[bool]:
    """Which layers have attention, where every layer has that or a state."""
    every = range(layers)
    if hybrid == "jamba":
        period, offset = fields.whole("attn_layer_period", 8), fields.whole("attn_layer_offset", 4)
        return [index % max(period, 1) == offset for index in every]
    if hybrid in ("lightning", "bailing_kda"):
        group = fields.whole("layer_group_size", 1, least=1)
        # In Bailing V3, layers after all whole groups have attention too.
        whole = layers // group * group if hybrid == "bailing_kda" else layers
        return [(index + 1) % group == 0 or index >= whole for index in every]
    if hybrid == "kda":
        # Numbered from 1.
        delta = _delta_layers(fields)
        return [index + 1 not in delta for index in every]
    kinds = fields.per_layer("layer_types", layers)
    if kinds:
        strange = [kind for kind in kinds if kind not in (*_ATTENTION, *_RECURRENT)]
        if strange:
            raise ShapeError(f"layer_types has {shown(strange[0])}: it is not known in this family")
        return [kind in _ATTENTION for kind in kinds]
    return _attends_by_rule(fields, hybrid, layers)


def _attends_by_rule(fields: ConfigFields, hybrid: Hybrid, layers: int) -> list[bool]:
    lists = {"short_conv": "full_attn_idxs", "granite": "attn_layer_indices"}
    if hybrid == "gated_delta_net":
        every = fields.whole("full_attention_interval", 4, least=1)
        return [(index + 1) % every == 0 for index in range(layers)]
    name = lists.get(hybrid, "")
    if name and fields.get(name) is not None:
        listed = set(fields.whole_items(name, layers - 1))
        return [index in listed for index in range(layers)]
    raise ShapeError("the config lacks layer_types: give a complete config.json")


def with_layer_count(text: Mapping[str, object]) -> Mapping[str, object]:
    """A Nemotron-H config with the number of layers that its list of blocks implies."""
    blocks = text.get("hybrid_override_pattern") or text.get("layers_block_type")
    if text.get("num_hidden_layers") is not None or not isinstance(blocks, (str, list, tuple)):
        return text
    return {**text, "num_hidden_layers": len(blocks)}


def _single_blocks(fields: ConfigFields, layers: int) -> Mixed:
    """Nemotron-H: each layer is one block, by a string of letters or a list of names."""
    given = fields.get("hybrid_override_pattern")
    if given is None:
        given = fields.get("layers_block_type")
    entries = list(given) if isinstance(given, (str, list, tuple)) else []
    strange = [e for e in entries if not isinstance(e, str) or e not in _BLOCKS]
    if strange or not entries:
        wrong = shown(strange[0]) if strange else "nothing"
        raise ShapeError(f"hybrid_override_pattern has {wrong}: only M, *, - and E are known")
    if len(entries) != layers:
        raise ShapeError(
            f"hybrid_override_pattern has {len(entries)} entries for {layers} layers: "
            f"it must have one for each"
        )
    blocks = [_BLOCKS[str(entry)] for entry in entries]
    ffn = tuple(block == "moe" if block in ("mlp", "moe") else None for block in blocks)
    return Mixed(
        tuple(block == "attention" for block in blocks),
        tuple(block == "mamba" for block in blocks),
        ffn,
    )


def delta_config(fields: ConfigFields) -> Mapping[str, object]:
    """The object that says of Kimi Linear which layers keep a state, and their sizes."""
    given = fields.get("linear_attn_config")
    if not isinstance(given, Mapping):
        raise ShapeError(f"linear_attn_config must be an object, not {shown(given)}")
    return given


def _delta_layers(fields: ConfigFields) -> list[object]:
    found = delta_config(fields).get("kda_layers")
    if not isinstance(found, (list, tuple)) or len(found) > MAX_LAYERS:
        raise ShapeError(f"kda_layers must be a list of layers, not {shown(found)}")
    return list(found)
