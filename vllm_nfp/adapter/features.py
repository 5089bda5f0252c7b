"""What the probe does with each feature of a model or a server: one list.

Decisions are taken by it (:mod:`vllm_nfp.adapter.support`), ``vllm-nfp doctor`` prints what holds
of a command line, and the tables in ``docs/`` are made of it (``docs/reference.py``).
"""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.connectors import unknown_encoder_connector, unknown_kv_connector
from vllm_nfp.adapter.feature import Feature, Kind
from vllm_nfp.adapter.inputs import is_multimodal
from vllm_nfp.adapter.parallel_features import PARALLEL
from vllm_nfp.adapter.state_layers import KNOWN_MODELS, KNOWN_MODES
from vllm_nfp.adapter.versions import Mode


def _encodes_alone(config: Any) -> bool:
    transfer = config.ec_transfer_config
    return transfer is not None and transfer.ec_role == "ec_producer"


def _can_set_adapters_aside(config: Any) -> bool:
    return bool(config.model_config.enforce_eager) and not config.model_config.is_moe


def _reads_encodings(config: Any) -> bool:
    return config.ec_transfer_config is not None and not _encodes_alone(config)


def _kv_connector(config: Any) -> str | None:
    return unknown_kv_connector(config.kv_transfer_config)


def _encoder_connector(config: Any) -> str | None:
    return unknown_encoder_connector(config.ec_transfer_config)


def _offloads(config: Any) -> bool:
    offload = config.offload_config
    return bool(offload.uva.cpu_offload_gb) or offload.offload_backend == "prefetch"


def _without_attention(config: Any) -> bool:
    return bool(config.model_config.is_attention_free)


def _hybrid(config: Any) -> bool:
    return bool(config.model_config.is_hybrid) and not _without_attention(config)


def _architecture(config: Any) -> str:
    return next(iter(config.model_config.hf_config.architectures or ()), "of an unknown name")


def _older_hybrid(config: Any) -> bool:
    return _hybrid(config) and not versions.is_since(versions.BOUND_STATES)


def _newer_hybrid(config: Any) -> bool:
    return _hybrid(config) and versions.is_since(versions.BOUND_STATES)


def _known_hybrid(config: Any) -> bool:
    return _newer_hybrid(config) and _architecture(config) in KNOWN_MODELS


def _unknown_hybrid(config: Any) -> bool:
    return _newer_hybrid(config) and _architecture(config) not in KNOWN_MODELS


def _mode_of_states(config: Any) -> str:
    return str(config.cache_config.mamba_cache_mode)


def _keeps_states_otherwise(config: Any) -> bool:
    return _known_hybrid(config) and _mode_of_states(config) not in KNOWN_MODES


def _replays_states(config: Any) -> bool:
    if not _known_hybrid(config):
        return False
    cache = config.cache_config
    return bool(cache.use_replayssm or cache.use_kda_recoverssm)


_OFF = (
    Feature(
        "pooling models",
        Kind.MODEL,
        lambda c: c.model_config.runner_type != "generate",
        Mode.OFF,
        "runner type {!r} decodes nothing: there is no step to probe or time",
        value=lambda c: c.model_config.runner_type,
        placeholder="pooling",
        flag="--runner pooling",
    ),
    Feature(
        "an encoder alone",
        Kind.SERVER,
        _encodes_alone,
        Mode.OFF,
        "an engine that only encodes (ec_producer) has no decode step to probe or time",
        flag="--ec-transfer-config",
    ),
)

_MODELS = (
    Feature(
        "dense models",
        Kind.MODEL,
        lambda c: not c.model_config.is_moe,
        Mode.ACTIVE,
        "modules attention and dense_ffn",
    ),
    Feature(
        "mixture of experts",
        Kind.MODEL,
        lambda c: bool(c.model_config.is_moe),
        Mode.ACTIVE,
        "modules attention, moe_ffn, and dense_ffn where it has such layers; probes run on tokens "
        "of live prompts, so that experts are chosen as by traffic",
    ),
    Feature(
        "recurrent state without any attention (Mamba)",
        Kind.MODEL,
        _without_attention,
        Mode.PASSIVE,
        "the model keeps recurrent (mamba) state and no KV cache, which a probe does not know",
        unpredicted="recurrent state",
    ),
    Feature(
        "recurrent state beside attention (Gated DeltaNet, Mamba 2, KDA, short convolutions)",
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
        value=_architecture,
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
    Feature(
        "encoder-decoder models",
        Kind.MODEL,
        lambda c: bool(c.model_config.is_encoder_decoder),
        Mode.PASSIVE,
        "encoder-decoder models are not supported: only decoder-only models are",
        step="that of the decoder; steps with encoder inputs are left out",
        unpredicted="an encoder",
    ),
    Feature(
        "images, audio and video",
        Kind.MODEL,
        lambda c: is_multimodal(c.model_config) and not c.model_config.is_encoder_decoder,
        Mode.ACTIVE,
        "probes decode text: they embed token ids as the runner does, touch no encoder, and run "
        "before decode steps alone, never before one that reads an image",
        flag="without --language-model-only",
    ),
    Feature(
        "multi-dimensional rotary positions (M-RoPE, XD-RoPE)",
        Kind.MODEL,
        lambda c: bool(c.model_config.uses_mrope),
        Mode.ACTIVE,
        "all dimensions of a probe's positions are equal, as those of text are",
    ),
)

_SERVER = (
    Feature(
        "prompts as embeddings",
        Kind.SERVER,
        lambda c: bool(c.model_config.enable_prompt_embeds),
        Mode.ACTIVE,
        "as with images: probes embed token ids as the runner does",
        flag="--enable-prompt-embeds",
    ),
    Feature(
        "KV connectors",
        Kind.SERVER,
        lambda c: c.kv_transfer_config is not None and not _kv_connector(c),
        Mode.ACTIVE,
        "a probe runs between steps and its attention layers see no connector: it carries no "
        "metadata, and stores, sends and loads nothing",
        flag="--kv-transfer-config",
        step="the wait for its KV blocks as well",
    ),
    Feature(
        "other KV connectors",
        Kind.SERVER,
        lambda c: _kv_connector(c) is not None,
        Mode.PASSIVE,
        "the KV connector {} is not known to leave a probe alone: serve without it",
        value=_kv_connector,
        placeholder="NAME",
        flag="--kv-transfer-config",
        step="the wait for its KV blocks as well",
    ),
    Feature(
        "encoder-cache connectors that read",
        Kind.SERVER,
        lambda c: _reads_encodings(c) and not _encoder_connector(c),
        Mode.ACTIVE,
        "they work where images are encoded, which a probe never does",
        flag="--ec-transfer-config",
    ),
    Feature(
        "other encoder-cache connectors",
        Kind.SERVER,
        lambda c: _reads_encodings(c) and _encoder_connector(c) is not None,
        Mode.PASSIVE,
        "the encoder-cache connector {} is not known to leave a probe alone: serve without it",
        value=_encoder_connector,
        placeholder="NAME",
        flag="--ec-transfer-config",
    ),
    Feature(
        "LoRA with --enforce-eager",
        Kind.SERVER,
        lambda c: c.lora_config is not None and _can_set_adapters_aside(c),
        Mode.ACTIVE,
        "probes run the base model, without any adapter, and leave the live batch's mapping alone",
        flag="--enable-lora",
        step="adapters as well",
        unpredicted="LoRA",
    ),
    Feature(
        "LoRA with compiled code or experts",
        Kind.SERVER,
        lambda c: c.lora_config is not None and not _can_set_adapters_aside(c),
        Mode.PASSIVE,
        "a probe cannot set LoRA adapters aside in compiled code, CUDA graphs and experts: serve a "
        "dense model with --enforce-eager, or without --enable-lora",
        flag="--enable-lora",
        step="adapters as well",
        unpredicted="LoRA",
    ),
    Feature(
        "sleep mode",
        Kind.SERVER,
        lambda c: bool(c.model_config.enable_sleep_mode),
        Mode.PASSIVE,
        "sleep mode moves the memory that the probe's CUDA graphs address",
        flag="--enable-sleep-mode",
    ),
    Feature(
        "weights offloaded to the host",
        Kind.SERVER,
        _offloads,
        Mode.PASSIVE,
        "weights are offloaded to the host: probes would compete for the transfers",
        flag="--cpu-offload-gb",
        step="transfers as well",
        unpredicted="offloaded weights",
    ),
)

FEATURES: tuple[Feature, ...] = (*_OFF, *PARALLEL, *_MODELS, *_SERVER)
"""All of them; where several stand against probing, the first gives the reason."""


def features_of(config: Any) -> list[Feature]:
    """Those that a server has."""
    return [feature for feature in FEATURES if feature.holds(config)]
