"""How a server runs its steps, as far as it changes their time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_nfp.principle.graphs import DEFAULT_GRAPHS, CapturedGraphs


@dataclass(frozen=True, slots=True)
class Serving:
    """How the server runs its steps.

    Attributes:
        attention_backend: vLLM's name of it; FLASH_ATTN takes the version for the device.
        graphs: the CUDA graphs; without any no padding is counted.
        expert_tiles: content of vLLM's tuned configuration file for the experts, tokens -> tiles;
            empty: vLLM's default rule.
        routing_skew: exponent of the experts' shares by rank; 0: uniform routing.
        routing_source: what shows that routing; empty: it is assumed.
    """

    attention_backend: str = "FLASH_ATTN"
    graphs: CapturedGraphs = DEFAULT_GRAPHS
    expert_tiles: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    routing_skew: float = 0.0
    routing_source: str = ""
