"""vLLM's forward context and attention metadata, as a run of the probe's own needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def metadata_class() -> type:
    """vLLM's class of the metadata that attention backends build theirs from."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    found: type = CommonAttentionMetadata
    return found


@contextmanager
def forward_context(
    vllm_config: Any,
    metadata: Mapping[str, Any],
    tokens: int,
    slot_mapping: Mapping[str, torch.Tensor],
    is_padding: torch.Tensor | None,
    *,
    piecewise: bool,
    compiled: bool,
    has_lora: bool = False,
) -> Iterator[None]:
    """The context that the model reads its attention metadata and KV cache slots from.

    Only PIECEWISE graphs are chosen through it; a FULL graph is captured and replayed around a
    forward pass that knows of no graph.

    Args:
        metadata: attention metadata by the name of the layer.
        tokens: of the step, with padding. Data-parallel ranks all run as many, which spares them
            vLLM's exchange of their numbers.
        slot_mapping: KV cache slots that the step writes to, by the name of the layer.
        is_padding: marks padding tokens, where the runner does.
        piecewise: run in the PIECEWISE graph of so many tokens.
        compiled: run the compiled model; False: plain PyTorch.
        has_lora: the PIECEWISE graphs without an adapter are kept under this mark.
    """
    from vllm.config.compilation import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor, get_forward_context, set_forward_context

    with set_forward_context(
        metadata,
        vllm_config,
        num_tokens=tokens,
        num_tokens_across_dp=_tokens_across_engines(vllm_config.parallel_config, tokens),
        cudagraph_runtime_mode=CUDAGraphMode.PIECEWISE if piecewise else CUDAGraphMode.NONE,
        batch_descriptor=BatchDescriptor(tokens, has_lora=has_lora) if piecewise else None,
        slot_mapping=slot_mapping,
        skip_compiled=not compiled,
        is_padding=is_padding,
    ):
        if not compiled:
            # MoE layers take their names from this list in turn, which skipped layers upset;
            # without it each layer uses its own.
            get_forward_context().all_moe_layers = None
        yield


def _tokens_across_engines(parallel: Any, tokens: int) -> torch.Tensor | None:
    """As many on each data-parallel rank; None if there is one."""
    if parallel.data_parallel_size == 1:
        return None
    return torch.full((parallel.data_parallel_size,), tokens, dtype=torch.int32, device="cpu")
