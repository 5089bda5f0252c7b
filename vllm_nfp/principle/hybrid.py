"""Hybrid models: which layers have attention, a recurrent state, a feed-forward block, experts.

Sizes follow vLLM 0.32 (model_executor/layers/mamba, model_executor/models); defaults of fields are
those of the configuration classes in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Hybrid
from vllm_nfp.principle.layer_parts import LinearAttention, Matrix
from vllm_nfp.principle.shape import MAX_LAYERS, ShapeError, shown

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


def linear_attention(fields: ConfigFields, hybrid: Hybrid, layers: int) -> LinearAttention:
    """The recurrent layers of a hybrid model."""
    return _READERS[hybrid](fields, layers)


def _gated_delta_net(fields: ConfigFields, layers: int) -> LinearAttention:
    hidden = fields.whole("hidden_size", least=1)
    value_heads = fields.whole("linear_num_value_heads", 32, least=1)
    key_dim = fields.whole("linear_key_head_dim", 128, least=1)
    value_dim = fields.whole("linear_value_head_dim", 128, least=1)
    keys = fields.whole("linear_num_key_heads", 16, least=1) * key_dim
    values = value_heads * value_dim
    kernel = fields.whole("linear_conv_kernel_dim", 4, least=1)
    return LinearAttention(
        "Gated DeltaNet",
        layers,
        (
            Matrix(hidden, 2 * keys + 2 * values),
            Matrix(hidden, 2 * value_heads),
            Matrix(values, hidden, "rows"),
        ),
        value_heads * key_dim * value_dim,
        _state_bytes(fields, 2.0),
        (2 * keys + values) * (kernel - 1),
    )


def _kimi(fields: ConfigFields) -> Mapping[str, object]:
    given = fields.get("linear_attn_config")
    if not isinstance(given, Mapping):
        raise ShapeError(f"linear_attn_config must be an object, not {shown(given)}")
    return given


def _delta_layers(fields: ConfigFields) -> list[object]:
    found = _kimi(fields).get("kda_layers")
    if not isinstance(found, (list, tuple)) or len(found) > MAX_LAYERS:
        raise ShapeError(f"kda_layers must be a list of layers, not {shown(found)}")
    return list(found)


def _kimi_delta_attention(fields: ConfigFields, layers: int) -> LinearAttention:
    given = _kimi(fields)
    sizes = [given.get(name) for name in ("num_heads", "head_dim")]
    kernel = given.get("short_conv_kernel_size", 4)
    heads, width, taps = (
        size if isinstance(size, int) and 0 < size <= 1 << 16 else 0 for size in (*sizes, kernel)
    )
    if not (heads and width and taps):
        raise ShapeError("linear_attn_config needs num_heads, head_dim, short_conv_kernel_size")
    hidden, inner = fields.whole("hidden_size", least=1), heads * width
    gate = (
        (Matrix(hidden, inner),)
        if given.get("use_full_rank_gate")
        else (Matrix(hidden, width, "none"), Matrix(width, inner))
    )
    return LinearAttention(
        "Kimi Delta Attention",
        layers,
        (
            Matrix(hidden, 3 * inner + heads),
            Matrix(hidden, width, "none"),
            Matrix(width, inner),
            *gate,
            Matrix(inner, hidden, "rows"),
        ),
        heads * width * width,
        4.0,
        3 * inner * (taps - 1),
    )


def _glm_kda(fields: ConfigFields, layers: int) -> LinearAttention:
    """Kimi Delta Attention under GLM's names (models/glm5next)."""
    hidden = fields.whole("hidden_size", least=1)
    heads, width = fields.whole("linear_num_heads", least=1), fields.whole("linear_head_dim", 128)
    inner = heads * width
    return LinearAttention(
        "Kimi Delta Attention",
        layers,
        (
            Matrix(hidden, 3 * inner + heads),
            Matrix(hidden, 2 * width, "none"),
            Matrix(width, inner),
            Matrix(width, inner),
            Matrix(inner, hidden, "rows"),
        ),
        inner * width,
        4.0,
        3 * inner * (fields.whole("linear_conv_kernel_dim", 4, least=1) - 1),
    )


def _mamba2(fields: ConfigFields, layers: int) -> LinearAttention:
    hidden = fields.whole("hidden_size", least=1)
    heads = fields.whole("mamba_num_heads", least=1)
    inner = fields.whole("mamba_inner", 0) or fields.whole("expand", 2, least=1) * hidden
    if not fields.get("mamba_inner") and isinstance(fields.get("mamba_head_dim"), int):
        inner = heads * fields.whole("mamba_head_dim", least=1)
    states = fields.whole("ssm_state_size", 128, least=1)
    groups = fields.whole("n_groups", 1, least=1)
    conv = inner + 2 * groups * states
    return LinearAttention(
        "Mamba 2",
        layers,
        (Matrix(hidden, inner + conv + heads), Matrix(inner, hidden, "rows")),
        inner * states,
        _state_bytes(fields, fields.whole("default_state_bytes", 2)),
        conv * (fields.whole("conv_kernel", 4, least=1) - 1),
    )


def _mamba1(fields: ConfigFields, layers: int) -> LinearAttention:
    hidden = fields.whole("hidden_size", least=1)
    inner = fields.whole("mamba_inner", fields.whole("mamba_expand", 2, least=1) * hidden)
    states = fields.whole("mamba_d_state", 16, least=1)
    rank = -(-hidden // 16)
    if isinstance(fields.get("mamba_dt_rank"), int):
        rank = fields.whole("mamba_dt_rank", least=1)
    return LinearAttention(
        "Mamba",
        layers,
        (
            Matrix(hidden, 2 * inner),
            Matrix(inner, rank + 2 * states, "rows"),
            Matrix(rank, inner),
            Matrix(inner, hidden, "rows"),
        ),
        inner * states,
        2.0,
        inner * (fields.whole("mamba_d_conv", 4, least=1) - 1),
    )


def _short_conv(fields: ConfigFields, layers: int) -> LinearAttention:
    hidden = fields.whole("hidden_size", least=1)
    kernel = fields.whole("conv_L_cache", 3, least=1)
    return LinearAttention(
        "short convolution",
        layers,
        (Matrix(hidden, 3 * hidden), Matrix(hidden, hidden, "rows")),
        0,
        2.0,
        hidden * (kernel - 1),
    )


def _lightning(fields: ConfigFields, layers: int) -> LinearAttention:
    """Bailing V2.5: a decay without a rule that looks for the key (bailing_moe_linear.py)."""
    hidden, heads = fields.whole("hidden_size", least=1), fields.whole("num_attention_heads")
    width = fields.whole("head_dim", hidden // max(1, heads), least=1)
    inner = heads * width
    return LinearAttention(
        "lightning attention",
        layers,
        (Matrix(hidden, 4 * inner), Matrix(inner, hidden, "rows")),
        inner * width,
        4.0,
        flops_per_element=4.0,
    )


def _bailing_kda(fields: ConfigFields, layers: int) -> LinearAttention:
    """Kimi Delta Attention whose gates have full rank (bailing_moe_v3.py)."""
    hidden, heads = fields.whole("hidden_size", least=1), fields.whole("num_attention_heads")
    width = fields.whole("head_dim", least=1)
    inner = heads * width
    return LinearAttention(
        "Kimi Delta Attention",
        layers,
        (Matrix(hidden, 5 * inner + heads), Matrix(inner, hidden, "rows")),
        inner * width,
        4.0,
        3 * inner * (fields.whole("short_conv_kernel_size", 4, least=1) - 1),
    )


def _state_bytes(fields: ConfigFields, default: float) -> float:
    """Bytes of a number of the state, by the type that the config names."""
    named = fields.get("mamba_ssm_dtype")
    if named is None:
        return default
    return 4.0 if named == "float32" else 2.0


_READERS: Mapping[Hybrid, Callable[[ConfigFields, int], LinearAttention]] = {
    "gated_delta_net": _gated_delta_net,
    "kda": _kimi_delta_attention,
    "nemotron_h": _mamba2,
    "granite": _mamba2,
    "falcon_h1": _mamba2,
    "mamba2": _mamba2,
    "mamba": _mamba1,
    "lightning": _lightning,
    "bailing_kda": _bailing_kda,
    "glm_kda": _glm_kda,
    "jamba": _mamba1,
    "short_conv": _short_conv,
}
