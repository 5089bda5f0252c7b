"""Layers that keep a state: their projections and what they keep for each sequence.

Sizes follow vLLM 0.32 (model_executor/layers/mamba, model_executor/models); defaults of fields are
those of the configuration classes in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Hybrid
from vllm_nfp.principle.hybrid import delta_config
from vllm_nfp.principle.layer_parts import LinearAttention, Matrix
from vllm_nfp.principle.sizes import ShapeError


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


def _kimi_delta_attention(fields: ConfigFields, layers: int) -> LinearAttention:
    given = delta_config(fields)
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
