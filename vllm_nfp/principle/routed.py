"""Cost of a layer's routed experts, as a server runs them."""

from __future__ import annotations

from vllm_nfp.principle.alike import AlikeRouting
from vllm_nfp.principle.cost import Cost
from vllm_nfp.principle.expert_kernels import served_config
from vllm_nfp.principle.experts import ROUTED_KERNELS, ExpertConstants, expert_terms
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.routing import Routed, Routing, skewed_shares
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.terms import FloatArray


def routed_cost(
    shape: ModelShape,
    hardware: Hardware,
    constants: ExpertConstants,
    serving: Serving,
    tokens: FloatArray,
    sequences: int | None = None,
) -> Cost:
    """Of one layer.

    Args:
        tokens: of all data-parallel replicas together, shape [n].
        sequences: of all replicas together, where the positions of each choose the same experts;
            None: all tokens choose independently.
    """
    experts, chosen = shape.local_experts, shape.local_experts_per_token
    routing = Routing(
        experts,
        chosen,
        skewed_shares(experts, chosen, serving.routing_skew),
        expert_parallel=shape.expert_parallel_size > 1,
    )
    config = served_config(
        hardware,
        shape.quantization,
        tokens,
        experts,
        chosen,
        shape.expert_gemms[-1].inputs,
        serving.expert_tiles,
    )
    met: Routed = routing if sequences is None else AlikeRouting(routing, sequences)
    terms = expert_terms(
        hardware,
        constants,
        shape.expert_gemms,
        tokens,
        met,
        hidden_size=shape.expert_hidden_size or shape.hidden_size,
        config=config,
    )
    return Cost(ROUTED_KERNELS * constants.kernel_seconds, terms)
