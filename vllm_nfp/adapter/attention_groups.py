"""Groups of layers that share attention metadata, with metadata builders of the probe's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_nfp.adapter import bindings, versions
from vllm_nfp.adapter.decoding import Bound, decoding_bound

if TYPE_CHECKING:
    import torch


PROMPT_SCRATCH = "chunked_prefill_workspace"
"""Where builders of latent attention keep what prompts in chunks are gathered in."""


class CellDoesNotFitError(RuntimeError):
    """The KV cache has too few blocks for the cell, or the model too short a context."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Layers that share attention metadata, and the blocks of their KV cache."""

    builder: Any
    """The probe's own metadata builder, of the kind that the server uses."""
    layer_names: tuple[str, ...]
    block_tokens: int
    """Tokens in a block as the kernels see it."""
    num_blocks: int
    """Blocks in the pool as the kernels see it."""
    bound: Bound | None = None
    """A sequence with more positions in a step is read as a prompt; None: none is."""
    kv_cache_group: int = 0
    """Place of its KV cache group among those that the scheduler lists blocks for."""
    kernel_blocks: int = 1
    """Blocks as the kernels see them in one of the scheduler's. Its block b is theirs from
    b * kernel_blocks on (sources of 0.29.0 to 0.33.0: ``v1/worker/block_table.py``, since 0.32
    ``v1/worker/utils.py``)."""

    def blocks_needed(self, batch_size: int, tokens: int) -> int:
        """Distinct blocks that ``batch_size`` sequences of ``tokens`` tokens read."""
        return batch_size * -(-tokens // self.block_tokens)


def own_groups(
    attn_groups: Sequence[Sequence[Any]], num_blocks: int, vllm_config: Any, device: torch.device
) -> tuple[AttentionGroup, ...]:
    """Groups like the runner's, with metadata builders made anew.

    The runner's builders keep buffers that captured graphs read; the probe must not share them.

    Raises:
        CellDoesNotFitError: if a group's blocks cannot be addressed one by one.
        UnknownVllmError: if its kind, its builder, or how that is called, is unknown.
    """
    may_be_packed = versions.is_since(versions.PACKED_KV_LAYERS)
    groups = []
    for runner_group in (group for groups_of_spec in attn_groups for group in groups_of_spec):
        live = runner_group.metadata_builders[0]
        if may_be_packed and runner_group.kernel_block_stride:
            raise CellDoesNotFitError("the KV cache packs layers of different page sizes together")
        spec = live.kv_cache_spec
        bindings.check_kv_cache_kind(spec)
        bindings.check_builder(live)
        bindings.check_backend(runner_group.backend)
        names = tuple(runner_group.layer_names)
        builder = _new_builder(type(live), spec, names, vllm_config, device)
        _share_scratch(live, builder)
        per_block = runner_group.kv_cache_spec.block_size // spec.block_size
        blocks, bound = num_blocks * per_block, decoding_bound(builder)
        of = runner_group.kv_cache_group_id
        groups.append(AttentionGroup(builder, names, spec.block_size, blocks, bound, of, per_block))
    return tuple(groups)


def _new_builder(
    kind: Any, spec: Any, layer_names: Sequence[str], vllm_config: Any, device: torch.device
) -> Any:
    extra = {}
    if kind.requires_block_table_width:
        extra["block_table_width"] = -(-vllm_config.model_config.max_model_len // spec.block_size)
    return kind(spec, list(layer_names), vllm_config, device, **extra)


def _share_scratch(live: Any, builder: Any) -> None:
    """Let both use one scratch buffer: it is tens or hundreds of MiB.

    FlashInfer's builder has one, and vLLM shares it between its own builders
    (``v1/attention/backends/flashinfer.py``). Builders of latent attention have one for prompts in
    chunks (``model_executor/layers/attention/mla_attention.py``), which no probe runs.
    """
    if hasattr(builder, "set_workspace_buffer"):
        builder.set_workspace_buffer(live._get_workspace_buffer())
    if hasattr(builder, PROMPT_SCRATCH):
        setattr(builder, PROMPT_SCRATCH, getattr(live, PROMPT_SCRATCH))
