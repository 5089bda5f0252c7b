"""Draft heads and models with weights of their own, from their config.json or the usual shape.

After vLLM 0.32's ``llama_eagle.py``, ``llama_eagle3.py``, ``deepseek_eagle3.py`` and
``qwen3_dflash.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.drafter.drafter import Drafter, DrafterError
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.shape import Gemm, ModelShape, ShapeError

EAGLE3_VOCABULARY = 32000
"""Tokens that published EAGLE-3 heads can draft (SpecForge's ``configs``)."""
AUX_STATES = 3
"""Hidden states of the target that an EAGLE-3 head takes in, unless its config lists others."""
DFLASH_LAYERS = 5
"""Layers of published DFlash drafters, each with a hidden state of the target (SpecForge)."""
_WIDE = 4
"""Width of the head's feed-forward block over its hidden size, where the target is of experts and
its config names no dense width; published ones have 3 to 6."""
_KV_HEADS = 8
"""Of heads for targets with latent attention (SpecForge, DeepSeek V3)."""
_HEAD_SIZE = 128


def eagle_drafter(
    target: ModelShape, width: int, head: Mapping[str, object] | None, method: str
) -> Drafter:
    """An EAGLE or EAGLE-3 head.

    Args:
        target: the model that it drafts for, as the server splits it.
        width: of the target's dense feed-forward blocks, if its config names one; else 0.
        head: the head's config.json; None: the usual shape.
        method: eagle or eagle3.

    Raises:
        DrafterError: for a config that is no head's.
    """
    layers, assumed = _layers(target, width, head, 1)
    vocabulary = target.vocab_size
    if method == "eagle3":
        usual = min(EAGLE3_VOCABULARY, target.vocab_size)
        vocabulary = _number(head, "draft_vocab_size", usual if head is None else layers.vocab_size)
    layers = replace(layers, vocab_size=vocabulary)
    hidden = layers.hidden_size
    if method == "eagle":
        return Drafter(layers, "chain", each=(Gemm(2 * hidden, hidden, 2.0),), assumptions=assumed)
    states = _aux_states(head) * _number(head, "target_hidden_size", target.hidden_size)
    # The first layer's projections take in embedding and hidden state, side by side.
    wider = Gemm(hidden, layers.projection_gemms[0].outputs, layers.weight_bytes)
    return Drafter(
        layers, "chain", once=(Gemm(states, hidden, 2.0),), each=(wider,), assumptions=assumed
    )


def dflash_drafter(target: ModelShape, width: int, head: Mapping[str, object] | None) -> Drafter:
    """A DFlash drafter: some layers that draft all tokens in one run.

    Raises:
        DrafterError: for a config that is no drafter's.
    """
    layers, assumed = _layers(target, width, head, DFLASH_LAYERS)
    layers = replace(layers, vocab_size=target.vocab_size, decoding="bidirectional_block")
    hidden, heads = layers.hidden_size, layers.attention
    states = _dflash_states(head, layers.num_layers) * target.hidden_size
    # Keys and values of the verified positions, from the target's hidden states, in all layers.
    keys = Gemm(hidden, layers.num_layers * 2 * heads.kv_heads * layers.head_dim, 2.0)
    return Drafter(layers, "parallel", once=(Gemm(states, hidden, 2.0), keys), assumptions=assumed)


def model_drafter(target: ModelShape, config: Mapping[str, object] | None) -> Drafter:
    """A draft model of its own, split over the target's ranks as vLLM does by default.

    Raises:
        DrafterError: without its config, or if no shape describes it.
    """
    if config is None:
        raise DrafterError(
            "draft_model is needed to predict a draft model: give the directory of its config.json "
            "(--draft-model), or its cost (--draft-cost)"
        )
    return Drafter(_shape(target, config), "chain")


def _layers(
    target: ModelShape, width: int, head: Mapping[str, object] | None, usual: int
) -> tuple[ModelShape, tuple[str, ...]]:
    if head is not None:
        return _shape(target, _as_model(head)), ()
    try:
        layers = _usual(target, width, usual)
    except ShapeError as error:
        raise DrafterError(
            f"a head of the usual shape cannot be split ({error}): give its config.json "
            f"(--draft-model), or its cost (--draft-cost)"
        ) from None
    return layers, (
        f"The head is assumed to be of the usual shape ({usual} layer{'s' if usual > 1 else ''} of "
        f"the target's width, in 16 bits): --draft-model DIR reads its own config.json.",
    )


def _usual(target: ModelShape, width: int, layers: int) -> ModelShape:
    """Dense layers as wide as the target, with as many heads."""
    hidden, latent = target.hidden_size, target.mla is not None
    width = target.intermediate_size or width
    heads = hidden // _HEAD_SIZE if latent else target.num_attention_heads
    return ModelShape(
        name="head",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=_WIDE * hidden if width < hidden else width,
        num_attention_heads=heads,
        num_kv_heads=math.gcd(heads, _KV_HEADS) if latent else target.num_kv_heads,
        head_dim=_HEAD_SIZE if latent else target.head_dim,
        vocab_size=target.vocab_size,
        num_dense_layers=layers,
        kv_bytes=target.kv_bytes,
        tensor_parallel_size=target.tensor_parallel_size,
        data_parallel_size=target.data_parallel_size,
    )


def _as_model(head: Mapping[str, object]) -> Mapping[str, object]:
    """The head's layers as the config of a model: published heads borrow their target's type."""
    inner = head.get("transformer_layer_config")
    flat = {**head, **inner} if isinstance(inner, Mapping) else dict(head)
    if flat.get("kv_lora_rank") is None:
        flat["model_type"] = "llama"
    return {"num_hidden_layers": 1, **flat}


def _shape(target: ModelShape, config: Mapping[str, object]) -> ModelShape:
    try:
        return shape_from_config(
            config,
            kv_bits=8 * target.kv_bytes,
            tensor_parallel_size=target.tensor_parallel_size,
            data_parallel_size=target.data_parallel_size,
        )
    except ShapeError as error:
        raise DrafterError(f"the draft model's config cannot be used: {error}") from None


def _number(config: Mapping[str, object] | None, name: str, default: int) -> int:
    found = None if config is None else config.get(name)
    if found is None:
        return default
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= 1 << 24:
        raise DrafterError(f"{name} of the draft model's config is no size: {found!r:.40}")
    return found


def _aux_states(head: Mapping[str, object] | None) -> int:
    if head is None:
        return AUX_STATES
    inner = head.get("eagle_config")
    listed = (inner if isinstance(inner, Mapping) else head).get("eagle_aux_hidden_state_layer_ids")
    return len(listed) if isinstance(listed, list) and listed else AUX_STATES


def _dflash_states(head: Mapping[str, object] | None, layers: int) -> int:
    inner = None if head is None else head.get("dflash_config")
    listed = inner.get("target_layer_ids") if isinstance(inner, Mapping) else None
    return len(listed) if isinstance(listed, list) and listed else layers
