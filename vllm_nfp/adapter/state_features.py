"""What the probe does with models that keep a recurrent state; part of the list of features."""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.feature import Feature, Kind
from vllm_nfp.adapter.own_ways import architecture_of
from vllm_nfp.adapter.state_kinds import KNOWN_MODELS, KNOWN_MODES
from vllm_nfp.adapter.versions import Mode


def _without_attention(config: Any) -> bool:
    return bool(config.model_config.is_attention_free)


def _hybrid(config: Any) -> bool:
    return bool(config.model_config.is_hybrid) and not _without_attention(config)


def _older_hybrid(config: Any) -> bool:
    return _hybrid(config) and not versions.is_since(versions.BOUND_STATES)


def _newer_hybrid(config: Any) -> bool:
    return _hybrid(config) and versions.is_since(versions.BOUND_STATES)


def _known_hybrid(config: Any) -> bool:
    return _newer_hybrid(config) and architecture_of(config) in KNOWN_MODELS


def _unknown_hybrid(config: Any) -> bool:
    return _newer_hybrid(config) and architecture_of(config) not in KNOWN_MODELS


def _mode_of_states(config: Any) -> str:
    return str(config.cache_config.mamba_cache_mode)


def _keeps_states_otherwise(config: Any) -> bool:
    return _known_hybrid(config) and _mode_of_states(config) not in KNOWN_MODES


def _replays_states(config: Any) -> bool:
    if not _known_hybrid(config):
        return False
    cache = config.cache_config
    return bool(cache.use_replayssm or cache.use_kda_recoverssm)


STATES = (
    Feature(
        "recurrent state without any attention (Mamba)",
        Kind.MODEL,
        _without_attention,
        Mode.PASSIVE,
        "the model keeps recurrent (mamba) state and no KV cache, which a probe does not know",
        unpredicted="recurrent state",
    ),
    Feature(
        "recurrent state beside attention (layers listed below)",
        Kind.MODEL,
        _known_hybrid,
        Mode.ACTIVE,
        "module linear_attention; probes run on states of their own (state_memory_mib), N "
        "positions on N states, as when drafts are verified",
    ),
    Feature(
        "recurrent state beside attention, before vLLM 0.32",
        Kind.MODEL,
        _older_hybrid,
        Mode.PASSIVE,
        "the model keeps recurrent (mamba) state, which is probed on vLLM 0.32 or later: upgrade "
        "vLLM",
        unpredicted="recurrent state",
    ),
    Feature(
        "other models with recurrent state",
        Kind.MODEL,
        _unknown_hybrid,
        Mode.PASSIVE,
        "the model {} keeps recurrent (mamba) state of a kind that a probe does not know and might "
        "overwrite",
        value=architecture_of,
        placeholder="NAME",
        unpredicted="recurrent state",
    ),
    Feature(
        "recurrent state kept at every block",
        Kind.MODEL,
        _keeps_states_otherwise,
        Mode.PASSIVE,
        "with --mamba-cache-mode {} a probe does not know where states are kept: leave it out",
        value=_mode_of_states,
        placeholder="all",
        flag="--mamba-cache-mode",
    ),
    Feature(
        "recurrent state that is replayed (ReplaySSM, RecoverSSM)",
        Kind.MODEL,
        _replays_states,
        Mode.PASSIVE,
        "states are replayed from a buffer, which a probe does not know: leave the flag out",
        flag="--use-replayssm",
    ),
)
"""All of them."""
