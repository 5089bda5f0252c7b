"""Seconds of what the ranks of a step send each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.collective import LinkConstants, all_reduce_seconds, transfer_seconds
from vllm_nfp.principle.cost import NOTHING, Cost
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.terms import ACTIVATION_BYTES, FloatArray


@dataclass(frozen=True, slots=True)
class Ranks:
    """A model's ranks and what joins them.

    Attributes:
        bytes_per_second: of the link, one direction.
    """

    shape: ModelShape
    constants: LinkConstants
    bytes_per_second: float


def communication_cost(ranks: Ranks, tokens: FloatArray) -> Cost:
    """The mean layer's: all-reduces after attention and FFN, and the experts' transfers."""
    shape = ranks.shape
    moe_share = shape.num_moe_layers / shape.num_layers
    linear = 0 if shape.linear_attention is None else shape.linear_attention.layers
    blocks = shape.attention_layers + linear + shape.num_dense_layers + shape.num_moe_layers
    reduced = all_reduce_cost(ranks, tokens).times(blocks / shape.num_layers)
    return reduced + _expert_transfer(ranks, tokens).times(moe_share)


def all_reduce_cost(ranks: Ranks, tokens: FloatArray) -> Cost:
    """Of the tokens' hidden states."""
    count = ranks.shape.tensor_parallel_size
    if count == 1:
        return NOTHING
    size = tokens * ranks.shape.hidden_size * ACTIVATION_BYTES

    def seconds(of: FloatArray) -> FloatArray:
        alone = all_reduce_seconds(ranks.constants, ranks.bytes_per_second, count, of)
        return ranks.constants.skew_seconds + alone

    return _collective(seconds(size), float(seconds(np.zeros(1))[0]))


def gathered_logits(ranks: Ranks, tokens: FloatArray) -> Cost:
    """Each rank has a part of the vocabulary."""
    count = ranks.shape.tensor_parallel_size
    if count == 1:
        return NOTHING
    return _transfer(ranks, tokens * ranks.shape.vocab_size, (count - 1) / count)


def _expert_transfer(ranks: Ranks, tokens: FloatArray) -> Cost:
    """Tokens to the data-parallel ranks' experts and back: an all-gather and its reverse."""
    replicas = ranks.shape.data_parallel_size
    if replicas == 1:
        return NOTHING
    elements = tokens * replicas * ranks.shape.hidden_size
    return _transfer(ranks, elements, 2 * (replicas - 1) / replicas)


def _transfer(ranks: Ranks, elements: FloatArray, share: float) -> Cost:
    sent = share * elements * ACTIVATION_BYTES
    seconds = transfer_seconds(ranks.constants, ranks.bytes_per_second, sent)
    return _collective(seconds, ranks.constants.collective_seconds)


def _collective(seconds: FloatArray, latency: float) -> Cost:
    """A collective that takes ``latency`` with no bytes at all."""
    return Cost(latency, {"communication": seconds - latency})
