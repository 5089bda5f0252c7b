"""The seconds of a decode step, put together from its kernels, for an array of N.

Times are those of one rank; per layer for a module, per step for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm_nfp.principle.attention import (
    AttentionBackend,
    attention_terms,
    backend_by_name,
    fixed_seconds,
)
from vllm_nfp.principle.collective import all_reduce_seconds, transfer_seconds
from vllm_nfp.principle.expert_tiles import MoeConfig, default_config, tuned_config
from vllm_nfp.principle.experts import ROUTED_KERNELS, SHARED_STREAM_TOKENS, expert_terms
from vllm_nfp.principle.ffn import KERNEL_SECONDS, activation_seconds, elementwise_seconds
from vllm_nfp.principle.gemm import gemm_fixed_seconds, gemm_terms
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES, padded_tokens
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.layer_parts import AttentionHeads, AttentionPart
from vllm_nfp.principle.matrices import Counted
from vllm_nfp.principle.recurrence import FIXED_SECONDS, recurrence_terms
from vllm_nfp.principle.routing import Routing, skewed_shares
from vllm_nfp.principle.shape import Gemm, ModelShape
from vllm_nfp.principle.sparse_attention import (
    INDEXER_FIXED_SECONDS,
    gathered_terms,
    indexer_terms,
)
from vllm_nfp.principle.terms import ACTIVATION_BYTES, FloatArray, Terms, add_terms, sum_terms
from vllm_nfp.types import Module

LAYER_KERNELS = 3
"""Two norms with their residual sums, and rotary embedding; torch.compile fuses the rest."""
STEP_KERNELS = 2
"""Embedding and the last norm."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: what no N changes, and terms that may."""

    fixed: float
    terms: Terms

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.fixed + other.fixed, add_terms(self.terms, other.terms))

    def times(self, factor: float) -> Cost:
        """The same work, ``factor`` times."""
        terms: Terms = {limit: factor * seconds for limit, seconds in self.terms.items()}
        return Cost(factor * self.fixed, terms)

    def seconds(self) -> FloatArray:
        """All of it, for each N."""
        return self.fixed + sum_terms(self.terms)


NOTHING = Cost(0.0, {})


@dataclass(frozen=True, slots=True)
class Serving:
    """How the server runs its steps.

    Attributes:
        attention_backend: vLLM's name of it; FLASH_ATTN takes the version for the device.
        capture_sizes: token counts of the CUDA graphs; empty: no padding is counted.
        expert_tiles: content of vLLM's tuned configuration file for the experts, tokens -> tiles;
            empty: vLLM's default rule.
        routing_skew: exponent of the experts' shares by rank; 0: uniform routing.
    """

    attention_backend: str = "FLASH_ATTN"
    capture_sizes: tuple[int, ...] = DEFAULT_CAPTURE_SIZES
    expert_tiles: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    routing_skew: float = 0.0


class Step:
    """A decode step of B sequences over L cached tokens, for an array of N.

    Args:
        shape: the model.
        target: the device of each rank.
        serving: how steps are run.
        batch_size: B.
        context: L, tokens in the cache of each sequence before the step.
        positions: N, shape [n].

    Raises:
        PredictionError: for an unknown attention backend.
    """

    def __init__(
        self,
        shape: ModelShape,
        target: Target,
        serving: Serving,
        batch_size: int,
        context: int,
        positions: FloatArray,
    ) -> None:
        self._shape = shape
        self._hardware = target.hardware
        self._calibration = target.calibration
        self._serving = serving
        self._batch_size = batch_size
        self._context = context
        self._positions = positions
        self._backend: AttentionBackend = backend_by_name(
            serving.attention_backend, target.hardware
        )
        self._known: dict[str, Cost] = {}
        """Costs that a module and the whole step share: each is reckoned once."""
        self._parts: dict[str, Cost] | None = None

    def _once(self, name: str, cost: Callable[[], Cost]) -> Cost:
        if name not in self._known:
            self._known[name] = cost()
        return self._known[name]

    @property
    def tokens(self) -> FloatArray:
        """T = B N."""
        return self._batch_size * self._positions

    @property
    def in_graphs(self) -> int:
        """Largest N for which a CUDA graph was captured; 0 if there are none at all."""
        sizes = self._serving.capture_sizes
        fitting = [
            int(n) for n in self._positions if padded_tokens(sizes, self._batch_size, int(n))
        ]
        return max(fitting, default=0)

    def module(self, module: Module) -> Cost:
        """One layer's module, the mean over layers for attention, or the whole step."""
        costs: dict[Module, Callable[[], Cost]] = {
            Module.DENSE_FFN: self.dense_ffn,
            Module.MOE_FFN: self.moe_ffn,
            Module.ATTENTION: lambda: self.attention().times(1 / self._shape.attention_layers),
            Module.LINEAR_ATTENTION: self.linear_attention,
            Module.COMMUNICATION: self.communication,
            Module.MODEL: lambda: sum(self.parts().values(), NOTHING),
        }
        return costs[module]()

    def parts(self) -> dict[str, Cost]:
        """The whole step, by part."""
        if self._parts is None:
            self._parts = self._all_parts()
        return dict(self._parts)

    def _all_parts(self) -> dict[str, Cost]:
        shape = self._shape
        layers = shape.num_layers
        parts = {
            "attention": self.attention(),
            "projections": self._all_projections(),
            "norms and rotary": self._elementwise().times(layers),
        }
        if shape.linear_attention is not None:
            layers_with_state = shape.linear_attention.layers
            parts["linear attention"] = self.linear_attention().times(layers_with_state)
        if shape.num_dense_layers:
            parts["dense FFN"] = self.dense_ffn().times(shape.num_dense_layers)
        if shape.num_moe_layers:
            parts["MoE FFN"] = self.moe_ffn().times(shape.num_moe_layers)
        if shape.beside:
            parts["other projections"] = self._counted(shape.beside)
        if shape.num_ranks > 1:
            # And the embedding's, which is split over the ranks by vocabulary.
            parts["communication"] = self.communication().times(layers) + self._all_reduce()
        parts["LM head"] = self._lm_head()
        return parts

    def dense_ffn(self) -> Cost:
        """The mean layer's gate-up product, activation, down product."""
        return self._once("dense_ffn", self._dense_ffn)

    def _dense_ffn(self) -> Cost:
        activation = activation_seconds(self._hardware, self._shape, self.tokens)
        products = self._counted(self._shape.dense_blocks)
        return products.times(1 / self._shape.num_dense_layers) + _growing(activation)

    def moe_ffn(self) -> Cost:
        """Router, routed and shared experts.

        CUDA graph padding adds no expert work: vLLM 0.32 routes padded tokens to no expert.
        """
        return self._once("moe_ffn", self._moe_ffn)

    def _moe_ffn(self) -> Cost:
        shape = self._shape
        constants = self._calibration.experts_of(shape.quantization)
        tokens = self.tokens * shape.data_parallel_size
        routed = expert_terms(
            self._hardware,
            constants,
            shape.expert_gemms,
            tokens,
            Routing(
                shape.local_experts,
                shape.local_experts_per_token,
                skewed_shares(
                    shape.local_experts, shape.local_experts_per_token, self._serving.routing_skew
                ),
                expert_parallel=shape.expert_parallel_size > 1,
            ),
            hidden_size=shape.expert_hidden_size or shape.hidden_size,
            config=self._expert_tiles(tokens),
        )
        fixed = ROUTED_KERNELS * constants.kernel_seconds
        router, *shared = shape.shared_gemms
        cost = Cost(fixed, routed) + self._products((router,), padded=False)
        if shape.latent_gemms:
            cost += self._products(shape.latent_gemms)
        if shared:
            cost += self._shared_experts(shared, hidden_behind=fixed)
        return cost

    def _expert_tiles(self, tokens: FloatArray) -> MoeConfig:
        if self._serving.expert_tiles:
            return tuned_config(tokens, self._serving.expert_tiles)
        return default_config(tokens, self._shape.quantization, self._shape.local_experts)

    def _shared_experts(self, gemms: Sequence[Gemm], hidden_behind: float) -> Cost:
        """On a stream of their own in small steps, where they fill the routed kernels' gaps."""
        alone = self._products(gemms, padded=False)
        beside = np.maximum(0.0, alone.seconds() - alone.fixed - hidden_behind)
        shown = np.where(self.tokens <= SHARED_STREAM_TOKENS, beside, alone.seconds())
        constants = self._calibration.experts_of(self._shape.quantization)
        return Cost(constants.kernel_seconds, {"memory": shown})

    def attention(self) -> Cost:
        """All layers, full and sliding; the cache holds context and positions."""
        return self._once("attention", self._attention)

    def _attention(self) -> Cost:
        cost = NOTHING
        for heads, part in self._shape.attentions:
            layer = self._picked if part.sparse else self._attention_layer
            cost += layer(heads, part).times(part.layers)
        indexer = self._shape.indexer
        if indexer is not None:
            cached = self._context + self._positions
            sizes = (self._batch_size, cached, self._positions)
            scored = indexer_terms(self._hardware, indexer, *sizes)
            cost += Cost(INDEXER_FIXED_SECONDS, scored).times(indexer.layers)
        return cost

    def _picked(self, heads: AttentionHeads, part: AttentionPart) -> Cost:
        """A layer that reads some entries of its cache only."""
        cached = self._context + self._positions
        sizes = (self._batch_size, cached, self._positions)
        gathered = gathered_terms(self._hardware, heads, part, *sizes)
        return Cost(fixed_seconds(heads, self._calibration.attention), gathered)

    def _attention_layer(self, heads: AttentionHeads, part: AttentionPart) -> Cost:
        cached, window = self._context + self._positions, part.window
        if window is not None:
            # The windows of N neighbours together span N - 1 tokens more than one of them.
            cached = np.minimum(cached, window + self._positions - 1)
        constants = self._calibration.attention
        sizes = self._serving.capture_sizes
        terms = attention_terms(
            self._hardware,
            heads,
            batch_size=self._batch_size,
            cached_tokens=cached,
            positions=self._positions,
            constants=constants,
            backend=self._backend,
            windowed=window is not None,
            causal=not self._shape.bidirectional,
            max_graph_tokens=max(sizes, default=0),
        )
        return Cost(fixed_seconds(heads, constants), terms)

    def linear_attention(self) -> Cost:
        """Projections and state of a layer without a cache."""
        return self._once("linear_attention", self._linear_attention)

    def _linear_attention(self) -> Cost:
        shape = self._shape
        if shape.linear_attention is None:
            return NOTHING
        terms = recurrence_terms(
            self._hardware,
            shape.linear_attention,
            shape.tensor_parallel_size,
            self._batch_size,
            self._positions,
        )
        return self._products(shape.linear_attention_gemms) + Cost(FIXED_SECONDS, terms)

    def _all_projections(self) -> Cost:
        """Of attention in all layers, and of the indexers."""
        shape = self._shape
        cost = self._counted(shape.projections)
        if shape.indexer is not None:
            cost += self._products(shape.indexer_gemms).times(shape.indexer.layers)
        return cost

    def _elementwise(self) -> Cost:
        seconds = elementwise_seconds(self._hardware, 4 * self.tokens * self._shape.hidden_size)
        return _growing(seconds).times(LAYER_KERNELS)

    def _lm_head(self) -> Cost:
        """Logits of every position, outside the graph; all growth counts as the LM head's."""
        product = self._products((self._shape.lm_head_gemm,), padded=False)
        cost = Cost(product.fixed, {"lm_head": sum_terms(product.terms)})
        cost += Cost(STEP_KERNELS * KERNEL_SECONDS, {})
        return cost + self._gathered_logits()

    def _counted(self, matrices: Sequence[Counted]) -> Cost:
        """Products of layers that differ, each kind as often as it is there."""
        cost = NOTHING
        for count, gemms in matrices:
            cost += self._products(gemms).times(count)
        return cost

    def _products(self, gemms: Sequence[Gemm], padded: bool = True) -> Cost:
        """Dense products, with the cost of padding to a captured size if in the graph."""
        constants = self._calibration.gemm

        def terms(tokens: FloatArray) -> Terms:
            return add_terms(
                *(gemm_terms(self._hardware, constants, gemm, tokens) for gemm in gemms)
            )

        fixed = sum(gemm_fixed_seconds(self._hardware, constants, gemm) for gemm in gemms)
        plain = terms(self.tokens)
        if not padded or not self._serving.capture_sizes:
            return Cost(fixed, plain)
        added = sum_terms(terms(self._padded())) - sum_terms(plain)
        return Cost(fixed, {**plain, "graph_padding": added})

    def _padded(self) -> FloatArray:
        sizes = self._serving.capture_sizes
        return np.array(
            [
                padded_tokens(sizes, self._batch_size, int(n)) or self._batch_size * n
                for n in self._positions
            ],
            dtype=np.float64,
        )

    def communication(self) -> Cost:
        """The mean layer's: an all-reduce after attention's projection and one after the FFN.

        With data-parallel ranks, also tokens to the experts and back.
        """
        return self._once("communication", self._communication)

    def _communication(self) -> Cost:
        shape = self._shape
        moe_share = shape.num_moe_layers / shape.num_layers
        linear = 0 if shape.linear_attention is None else shape.linear_attention.layers
        blocks = shape.attention_layers + linear + shape.num_dense_layers + shape.num_moe_layers
        return self._all_reduce().times(blocks / shape.num_layers) + self._expert_transfer().times(
            moe_share
        )

    def _all_reduce(self) -> Cost:
        """Of the tokens' hidden states."""
        ranks = self._shape.tensor_parallel_size
        if ranks == 1:
            return NOTHING
        size = self.tokens * self._shape.hidden_size * ACTIVATION_BYTES
        link, constants = self._hardware.link_bytes_per_second, self._calibration.link

        def seconds(of: FloatArray) -> FloatArray:
            return constants.skew_seconds + all_reduce_seconds(constants, link, ranks, of)

        return _collective(seconds(size), float(seconds(np.zeros(1))[0]))

    def _gathered_logits(self) -> Cost:
        """Each rank has a part of the vocabulary."""
        ranks = self._shape.tensor_parallel_size
        if ranks == 1:
            return NOTHING
        return self._transfer(self.tokens * self._shape.vocab_size, (ranks - 1) / ranks)

    def _expert_transfer(self) -> Cost:
        """Tokens to the data-parallel ranks' experts and back: an all-gather and its reverse."""
        replicas = self._shape.data_parallel_size
        if replicas == 1:
            return NOTHING
        tokens = self.tokens * replicas
        share = 2 * (replicas - 1) / replicas
        return self._transfer(tokens * self._shape.hidden_size, share)

    def _transfer(self, elements: FloatArray, share: float) -> Cost:
        link, sent = self._calibration.link, share * elements * ACTIVATION_BYTES
        seconds = transfer_seconds(link, self._hardware.link_bytes_per_second, sent)
        return _collective(seconds, link.collective_seconds)


def _collective(seconds: FloatArray, latency: float) -> Cost:
    """A collective that takes ``latency`` with no bytes at all."""
    return Cost(latency, {"communication": seconds - latency})


def _growing(seconds: FloatArray) -> Cost:
    """Small kernels: their time at the first N is fixed, their growth memory's."""
    return Cost(float(seconds[0]), {"memory": seconds - seconds[0]})
