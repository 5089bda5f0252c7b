"""The seconds of a decode step, put together from its kernels, for an array of N.

Times are those of one rank; per layer for a module, per step for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from vllm_nfp.principle.attention import (
    AttentionBackend,
    backend_by_name,
)
from vllm_nfp.principle.attention_cost import AttentionWork, attention_cost
from vllm_nfp.principle.cost import NOTHING, Cost, growing
from vllm_nfp.principle.experts import SHARED_STREAM_TOKENS
from vllm_nfp.principle.ffn import KERNEL_SECONDS, activation_seconds, elementwise_seconds
from vllm_nfp.principle.gemm import gemm_fixed_seconds, gemm_terms
from vllm_nfp.principle.graphs import RunSteps
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.matrices import Counted
from vllm_nfp.principle.recurrence import FIXED_SECONDS, recurrence_terms
from vllm_nfp.principle.routed import routed_cost
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import Gemm, ModelShape
from vllm_nfp.principle.terms import FloatArray, Terms, add_terms, sum_terms
from vllm_nfp.principle.transfers import Ranks, all_reduce_cost, communication_cost, gathered_logits
from vllm_nfp.types import Module

LAYER_KERNELS = 3
"""Two norms with their residual sums, and rotary embedding; torch.compile fuses the rest."""
STEP_KERNELS = 2
"""Embedding and the last norm."""


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
        self._ranks = Ranks(shape, target.calibration.link, target.hardware.link_bytes_per_second)
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

    @cached_property
    def as_run(self) -> RunSteps:
        """The tokens that each N runs with, and whether in a CUDA graph."""
        return self._serving.graphs.run_steps(self._batch_size, self._positions)

    @property
    def in_graphs(self) -> int:
        """Largest N for which a CUDA graph was captured; 0 if there are none at all."""
        return int(max(self._positions[self.as_run.in_graph], default=0))

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
            self._parts = dict(self.each_part())
        return dict(self._parts)

    def each_part(self) -> Iterator[tuple[str, Cost]]:
        """The parts of the whole step, each reckoned when it is asked for: up to 0.5 ms each."""
        shape = self._shape
        layers = shape.num_layers
        yield "attention", self.attention()
        yield "projections", self._all_projections()
        yield "norms and rotary", self._elementwise().times(layers)
        if shape.linear_attention is not None:
            layers_with_state = shape.linear_attention.layers
            yield "linear attention", self.linear_attention().times(layers_with_state)
        if shape.num_dense_layers:
            yield "dense FFN", self.dense_ffn().times(shape.num_dense_layers)
        if shape.num_moe_layers:
            yield "MoE FFN", self.moe_ffn().times(shape.num_moe_layers)
        if shape.beside:
            yield "other projections", self._counted(shape.beside)
        if shape.num_ranks > 1:
            # And the embedding's, which is split over the ranks by vocabulary.
            reduced = all_reduce_cost(self._ranks, self.tokens)
            yield "communication", self.communication().times(layers) + reduced
        yield "LM head", self._lm_head()

    def dense_ffn(self) -> Cost:
        """The mean layer's gate-up product, activation, down product."""
        return self._once("dense_ffn", self._dense_ffn)

    def _dense_ffn(self) -> Cost:
        activation = activation_seconds(self._hardware, self._shape, self.tokens)
        products = self._counted(self._shape.dense_blocks)
        return products.times(1 / self._shape.num_dense_layers) + growing(activation)

    def moe_ffn(self) -> Cost:
        """Router, routed and shared experts.

        CUDA graph padding adds no expert work: vLLM 0.32 routes padded tokens to no expert.
        """
        return self._once("moe_ffn", lambda: self._moe_ffn(None))

    def moe_ffn_alike(self) -> Cost:
        """The same where the positions of each sequence choose the same experts."""
        sequences = self._batch_size * self._shape.data_parallel_size
        return self._once("moe_ffn_alike", lambda: self._moe_ffn(sequences))

    def _moe_ffn(self, sequences: int | None) -> Cost:
        shape = self._shape
        constants = self._calibration.experts_of(shape.quantization)
        tokens = self.tokens * shape.data_parallel_size
        routed = routed_cost(shape, self._hardware, constants, self._serving, tokens, sequences)
        router, *shared = shape.shared_gemms
        # Both routings have the same products beside their experts, and the same kernels.
        cost = routed + self._once("router", lambda: self._products((router,), padded=False))
        if shape.latent_gemms:
            cost += self._once("latent", lambda: self._products(shape.latent_gemms))
        if shared:
            cost += self._once("shared", lambda: self._shared_experts(shared, routed.fixed))
        return cost

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
        largest_graph = self._serving.graphs.largest
        work = AttentionWork(
            self._backend, self._batch_size, self._context, self._positions, largest_graph
        )
        constants = self._calibration.attention
        return attention_cost(self._shape, self._hardware, constants, work)

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
        return growing(seconds).times(LAYER_KERNELS)

    def _lm_head(self) -> Cost:
        """Logits of every position, outside the graph; all growth counts as the LM head's."""
        product = self._products((self._shape.lm_head_gemm,), padded=False)
        cost = Cost(product.fixed, {"lm_head": sum_terms(product.terms)})
        cost += Cost(STEP_KERNELS * KERNEL_SECONDS, {})
        return cost + gathered_logits(self._ranks, self.tokens)

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
        if not padded or not self._serving.graphs.sizes:
            return Cost(fixed, plain)
        added = sum_terms(terms(self.as_run.tokens)) - sum_terms(plain)
        return Cost(fixed, {**plain, "graph_padding": added})

    def communication(self) -> Cost:
        """The mean layer's: an all-reduce after attention's projection and one after the FFN.

        With data-parallel ranks, also tokens to the experts and back.
        """
        return self._once("communication", lambda: communication_cost(self._ranks, self.tokens))
