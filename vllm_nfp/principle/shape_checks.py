"""Which sizes a :class:`~vllm_nfp.principle.shape.ModelShape` may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_nfp.principle.sizes import MAX_LAYERS, MAX_SIZE, MAX_TOKENS, ShapeError, shown

if TYPE_CHECKING:
    from vllm_nfp.principle.shape import ModelShape

_OPTIONAL_BYTES = ("dense_weight_bytes", "shared_weight_bytes", "recurrent_weight_bytes")
_BYTES = (
    "weight_bytes",
    "expert_weight_bytes",
    "lm_head_weight_bytes",
    "router_weight_bytes",
    "kv_bytes",
    *_OPTIONAL_BYTES,
)


def check_shape(shape: ModelShape) -> None:
    """Refuse sizes that no model or split over ranks can have.

    Raises:
        ShapeError: naming the size.
    """
    _check_sizes(shape)
    _check_bytes(shape)
    _check_layers(shape)
    _check_heads(shape)
    _check_widths(shape)
    _check_experts_split(shape)


def _check_sizes(shape: ModelShape) -> None:
    for name, (least, most) in _bounds(shape).items():
        value = getattr(shape, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise ShapeError(
                f"{name} must be a whole number from {least} to {most}, not {shown(value)}"
            )


def _bounds(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Least and most of every size."""
    needed = {
        "num_attention_heads": True,
        "num_kv_heads": True,
        "head_dim": True,
        "hidden_size": True,
        "vocab_size": True,
        "intermediate_size": shape.num_dense_layers != 0,
        "num_experts": shape.num_moe_layers != 0,
        "experts_per_token": shape.num_moe_layers != 0,
        "moe_intermediate_size": shape.num_moe_layers != 0,
        "num_shared_experts": False,
        "shared_intermediate_size": False,
        "tensor_parallel_size": True,
        "data_parallel_size": True,
    }
    bounds = {name: (int(least), MAX_SIZE) for name, least in needed.items()}
    layers = dict.fromkeys(("num_dense_layers", "num_moe_layers", "num_sliding_layers"), 0)
    bounds |= {name: (least, MAX_LAYERS) for name, least in layers.items()}
    bounds["num_layers"] = (1, MAX_LAYERS)
    bounds["expert_hidden_size"] = (0, MAX_SIZE)
    if shape.num_attention_layers is not None:
        # A model all of whose layers keep a state has no attention at all.
        bounds["num_attention_layers"] = (int(shape.linear_attention is None), MAX_LAYERS)
    if shape.num_sliding_layers or shape.sliding_window is not None:
        bounds["sliding_window"] = (1, MAX_TOKENS)
    if shape.diffusion_block_size is not None:
        bounds["diffusion_block_size"] = (1, MAX_SIZE)
    return bounds


def _check_bytes(shape: ModelShape) -> None:
    for name in _BYTES:
        value = getattr(shape, name)
        if value is None and name in _OPTIONAL_BYTES:
            continue
        if not isinstance(value, (int, float)) or not 0 < value <= 8:
            raise ShapeError(f"{name} must be above 0 and at most 8, not {shown(value)}")


def _check_layers(shape: ModelShape) -> None:
    uniform = shape.num_attention_layers is None
    if uniform and shape.num_dense_layers + shape.num_moe_layers != shape.num_layers:
        raise ShapeError(
            f"num_dense_layers {shape.num_dense_layers} and num_moe_layers "
            f"{shape.num_moe_layers} must add up to num_layers {shape.num_layers}"
        )
    if shape.num_sliding_layers > shape.num_layers:
        raise ShapeError(
            f"num_sliding_layers {shape.num_sliding_layers} must be at most "
            f"num_layers {shape.num_layers}"
        )
    if shape.experts_per_token > shape.num_experts:
        raise ShapeError(
            f"experts_per_token {shape.experts_per_token} is above num_experts {shape.num_experts}"
        )


def _check_heads(shape: ModelShape) -> None:
    ranks = shape.tensor_parallel_size
    for _, part in shape.attentions:
        heads, kv_heads = part.heads, part.kv_heads
        if not part.layers:
            continue
        if heads % kv_heads and not shape.use_mla:
            raise ShapeError(f"num_kv_heads {kv_heads} does not divide {heads} attention heads")
        if heads % ranks:
            raise ShapeError(f"tensor_parallel_size {ranks} does not divide {heads} heads")
        if not shape.use_mla and kv_heads % ranks and ranks % kv_heads:
            raise ShapeError(f"tensor_parallel_size {ranks} does not fit {kv_heads} KV heads")


def _check_widths(shape: ModelShape) -> None:
    ranks = shape.tensor_parallel_size
    dense = [width for _, width in shape.dense_widths] or [shape.intermediate_size]
    widths = [("intermediate_size", width) for width in dense if shape.num_dense_layers]
    for name, width in (*widths, ("shared_intermediate_size", shape.shared_intermediate_size)):
        if width % ranks:
            raise ShapeError(f"tensor_parallel_size {ranks} does not divide {name} {width}")


def _check_experts_split(shape: ModelShape) -> None:
    if shape.expert_parallel and not shape.num_moe_layers:
        raise ShapeError(f"expert_parallel needs experts, and {shape.name} has none")
    if shape.expert_parallel_size > max(1, shape.num_experts):
        raise ShapeError(
            f"expert_parallel over {shape.expert_parallel_size} ranks leaves some without one "
            f"of {shape.num_experts} experts"
        )
    if shape.moe_intermediate_size % shape.expert_tensor_parallel_size:
        ranks = f"tensor_parallel_size {shape.tensor_parallel_size}"
        if shape.data_parallel_size > 1:
            ranks += f" x data_parallel_size {shape.data_parallel_size}"
        raise ShapeError(
            f"{ranks} does not divide moe_intermediate_size {shape.moe_intermediate_size}: "
            f"use expert_parallel or fewer ranks"
        )
