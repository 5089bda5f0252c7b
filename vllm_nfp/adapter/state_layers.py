"""Layers that keep a recurrent state: which kinds a probe can run, and their metadata.

Such a layer reads the state of each sequence and writes it back, wherever its metadata says. A
probe must never let it write to the server's states, so that it runs these layers on states of its
own (:mod:`vllm_nfp.probe.states`). That is possible for a layer whose code looks up its
``kv_cache`` in Python at every call that no vLLM graph holds, and that verifies drafts by keeping a
state for each of N positions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.state_kinds import (
    KNOWN_BUILDERS,
    KNOWN_LAYERS,
    KNOWN_MODES,
    STATE_SPEC,
    draft_length,
    set_draft_length,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class StateGroup:
    """Layers that keep a state and share metadata."""

    kind: str
    """What they are called."""
    layers: tuple[Any, ...]
    """The modules."""
    layer_names: tuple[str, ...]
    num_blocks: int
    """Blocks of the server's own states, none of which a probe may touch."""
    builder_kind: Any
    """vLLM's class of their metadata builder."""
    spec: Any
    vllm_config: Any
    device: torch.device

    def builder(self, positions: int) -> Any:
        """A metadata builder like that of a server whose draft length is ``positions`` - 1."""
        drafts = positions - 1
        spec = replace(self.spec, num_speculative_blocks=drafts, mamba_cache_mode="none")
        config = _with_drafts(self.vllm_config, drafts)
        return self.builder_kind(spec, list(self.layer_names), config, self.device)

    def state_bytes(self, positions: int) -> int:
        """Bytes of the state of one position of one layer, in a step of so many positions."""
        layer = self.layers[0]
        with _drafting(layer, positions - 1):
            shapes, dtypes = layer.get_state_shape(), layer.get_state_dtype()
            pairs = zip(shapes, dtypes, strict=True)
            return sum(prod(shape) * dtype.itemsize for shape, dtype in pairs)


def without_states(attn_groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The runner's groups of layers that keep a cache."""
    return [[group for group in groups if not _keeps_state(group)] for groups in attn_groups]


def _keeps_state(group: Any) -> bool:
    return type(group.kv_cache_spec).__name__ == STATE_SPEC


def state_groups(
    attn_groups: Sequence[Sequence[Any]], num_blocks: int, vllm_config: Any, device: torch.device
) -> tuple[StateGroup, ...]:
    """The runner's groups of layers with a recurrent state.

    Raises:
        UnknownVllmError: naming a kind, or a way to keep states, that a probe does not know.
    """
    contexts = vllm_config.compilation_config.static_forward_context
    groups = []
    for group in (group for groups_of_spec in attn_groups for group in groups_of_spec):
        if not _keeps_state(group):
            continue
        live = group.metadata_builders[0]
        names = tuple(group.layer_names)
        layers = tuple(contexts[name] for name in names)
        _check(layers, live, vllm_config)
        kind = KNOWN_LAYERS[type(layers[0]).__name__]
        groups.append(
            StateGroup(
                kind, layers, names, num_blocks, type(live), live.kv_cache_spec, vllm_config, device
            )
        )
    return tuple(groups)


def _check(layers: Sequence[Any], builder: Any, vllm_config: Any) -> None:
    """Whether a probe knows these layers and how their states are kept."""
    unprobed = "real steps are timed, nothing is probed"
    if not versions.is_since(versions.BOUND_STATES):
        raise UnknownVllmError(
            f"layers with a recurrent state are probed on vLLM "
            f"{'.'.join(map(str, versions.BOUND_STATES))} or later: {unprobed}"
        )
    unknown = [type(layer).__name__ for layer in layers if type(layer).__name__ not in KNOWN_LAYERS]
    if unknown or type(builder).__name__ not in KNOWN_BUILDERS:
        raise UnknownVllmError(
            f"recurrent state of kind {(unknown or [type(builder).__name__])[0]} is unknown to "
            f"this vllm-nfp: {unprobed}"
        )
    cache = vllm_config.cache_config
    if cache.mamba_cache_mode not in KNOWN_MODES:
        raise UnknownVllmError(
            f"with --mamba-cache-mode {cache.mamba_cache_mode} a probe does not know where states "
            f"are kept: {unprobed}"
        )
    if cache.use_replayssm or cache.use_kda_recoverssm:
        raise UnknownVllmError(
            f"states are replayed (ReplaySSM or RecoverSSM), which a probe does not know: "
            f"{unprobed}"
        )


def _with_drafts(vllm_config: Any, drafts: int) -> Any:
    """The configuration as a metadata builder would find it with such a draft length.

    N-gram drafts, since they need no second model; builders ask for the length alone. States are
    not kept for prefix caching: a probe's table lists its states one by one.
    """
    config = copy.copy(vllm_config)
    config.cache_config = copy.copy(vllm_config.cache_config)
    config.cache_config.mamba_cache_mode = "none"
    config.speculative_config = None
    if drafts:
        from vllm.config import SpeculativeConfig

        config.speculative_config = SpeculativeConfig(
            method="ngram", num_speculative_tokens=drafts, prompt_lookup_max=1,
            target_model_config=vllm_config.model_config,
            target_parallel_config=vllm_config.parallel_config,
        )  # fmt: skip
    return config


@contextmanager
def _drafting(layer: Any, drafts: int) -> Iterator[None]:
    """The layer as in a server of this draft length, which widens the state of convolutions."""
    kept = draft_length(layer)
    set_draft_length(layer, drafts)
    try:
        yield
    finally:
        set_draft_length(layer, kept)


def bound(layer: Any, pages: torch.Tensor, drafts: int) -> Any:
    """The ``kv_cache`` that a layer would have in this memory; its own stays as it is.

    Args:
        pages: bytes of states, [states, 1, 1, bytes of a state], as vLLM binds them.
        drafts: draft length that the metadata is made for.
    """
    kept = layer.kv_cache
    try:
        with _drafting(layer, drafts):
            layer.bind_kv_cache(pages)
            return layer.kv_cache
    finally:
        layer.kv_cache = kept


@contextmanager
def on_other_states(layers: Sequence[Any], caches: Sequence[Any], drafts: int) -> Iterator[None]:
    """Let layers work on other states than the server's while the context lasts.

    Args:
        caches: what :func:`bound` has given for each.
        drafts: draft length that they were made for.
    """
    kept = [(layer, layer.kv_cache, draft_length(layer)) for layer in layers]
    try:
        for layer, cache in zip(layers, caches, strict=True):
            layer.kv_cache = cache
            set_draft_length(layer, drafts)
        yield
    finally:
        for layer, cache, before in kept:
            layer.kv_cache = cache
            set_draft_length(layer, before)
