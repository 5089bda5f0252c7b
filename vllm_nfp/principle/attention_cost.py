"""Cost of attention in all layers of a model, each kind with its own heads and cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.attention import (
    AttentionBackend,
    AttentionConstants,
    attention_terms,
    fixed_seconds,
    latent_cost,
)
from vllm_nfp.principle.cost import NOTHING, Cost
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.layer_parts import AttentionHeads, AttentionPart
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.sparse_attention import (
    INDEXER_FIXED_SECONDS,
    gathered_terms,
    indexer_terms,
)
from vllm_nfp.principle.terms import FloatArray


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """A step as attention sees it.

    Attributes:
        batch_size: B.
        context: L, tokens in the cache of each sequence before the step.
        positions: N, shape [n].
        max_graph_tokens: largest captured step; 0: none.
    """

    backend: AttentionBackend
    batch_size: int
    context: int
    positions: FloatArray
    max_graph_tokens: int

    @property
    def cached(self) -> FloatArray:
        """Tokens that the last position sees."""
        return self.context + self.positions

    @property
    def tokens(self) -> FloatArray:
        """T = B N."""
        return self.batch_size * self.positions


def attention_cost(
    shape: ModelShape, hardware: Hardware, constants: AttentionConstants, work: AttentionWork
) -> Cost:
    """All layers; the cache holds context and positions."""
    cost = NOTHING
    for heads, part in shape.attentions:
        layer = _picked if part.sparse else _layer
        each = layer(shape, hardware, constants, work, heads, part)
        if shape.use_mla:
            each += Cost(*latent_cost(hardware, heads, constants, work.tokens))
        cost += each.times(part.layers)
    indexer = shape.indexer
    if indexer is not None:
        scored = indexer_terms(hardware, indexer, work.batch_size, work.cached, work.positions)
        cost += Cost(INDEXER_FIXED_SECONDS, scored).times(indexer.layers)
    return cost


def _picked(
    shape: ModelShape,
    hardware: Hardware,
    constants: AttentionConstants,
    work: AttentionWork,
    heads: AttentionHeads,
    part: AttentionPart,
) -> Cost:
    """A layer that reads some entries of its cache only."""
    sizes = (work.batch_size, work.cached, work.positions)
    return Cost(fixed_seconds(heads, constants), gathered_terms(hardware, heads, part, *sizes))


def _layer(
    shape: ModelShape,
    hardware: Hardware,
    constants: AttentionConstants,
    work: AttentionWork,
    heads: AttentionHeads,
    part: AttentionPart,
) -> Cost:
    cached, window = work.cached, part.window
    if window is not None:
        # The windows of N neighbours together span N - 1 tokens more than one of them.
        cached = np.minimum(cached, window + work.positions - 1)
    terms = attention_terms(
        hardware,
        heads,
        batch_size=work.batch_size,
        cached_tokens=cached,
        positions=work.positions,
        constants=constants,
        backend=work.backend,
        windowed=window is not None,
        causal=not shape.bidirectional,
        max_graph_tokens=work.max_graph_tokens,
    )
    return Cost(fixed_seconds(heads, constants), terms)
