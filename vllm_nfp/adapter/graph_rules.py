"""Reads the server's CUDA graph settings out of vLLM's configuration."""

from __future__ import annotations

from typing import Any

import torch

from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.verification import verifies_adaptively
from vllm_nfp.principle.graphs import CapturedGraphs


def graph_rules(vllm_config: Any, attn_groups: Any, device: torch.device) -> GraphRules:
    """The server's CUDA graph settings, after vLLM has resolved them."""
    mode = vllm_config.compilation_config.cudagraph_mode
    enabled = device.type == "cuda" and bool(mode)
    return GraphRules(
        full_decode=enabled and _is_full(mode.decode_mode()),
        full_mixed=enabled and _is_full(mode.mixed_mode()),
        piecewise=enabled and mode.has_piecewise_cudagraphs(),
        multi_position=enabled and _allows_multi_position(vllm_config, attn_groups),
        graphs=captured_graphs(vllm_config) if enabled else CapturedGraphs(),
        max_num_seqs=vllm_config.scheduler_config.max_num_seqs,
    )


def captured_graphs(vllm_config: Any) -> CapturedGraphs:
    """The CUDA graphs that the server captures on a GPU; none where it is told to run without."""
    compilation = vllm_config.compilation_config
    sizes = compilation.cudagraph_capture_sizes if compilation.cudagraph_mode else None
    mixes = _positions_of_any_mix(vllm_config.speculative_config)
    return CapturedGraphs(tuple(sorted(sizes or ())), mixes)


def _positions_of_any_mix(speculation: Any) -> int:
    """Positions of the longest sequence under adaptive verification; 0 without it."""
    if speculation is None or not verifies_adaptively(speculation):
        return 0
    return 1 + int(speculation.num_speculative_tokens)


def _is_full(mode: Any) -> bool:
    return bool(mode is not None and mode.name == "FULL")


def _allows_multi_position(vllm_config: Any, attn_groups: Any) -> bool:
    """Whether every attention backend allows FULL graphs for batches of equal query lengths."""
    from vllm.v1.attention.backend import AttentionCGSupport

    return all(
        type(group.metadata_builders[0])
        .get_cudagraph_support(vllm_config, group.kv_cache_spec)
        .value
        >= AttentionCGSupport.UNIFORM_BATCH.value
        for groups in attn_groups
        for group in groups
    )
