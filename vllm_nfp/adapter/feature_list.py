"""What the probe does with each feature of a model or a server: one list.

Decisions are taken by it (:mod:`vllm_nfp.adapter.support`), ``vllm-nfp doctor`` prints what holds
of a command line, and the tables in ``docs/`` are made of it (``docs/reference.py``).
"""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter.connectors import unknown_encoder_connector, unknown_kv_connector
from vllm_nfp.adapter.feature import Feature, Kind
from vllm_nfp.adapter.inputs import is_multimodal
from vllm_nfp.adapter.known_settings import unknown_setting
from vllm_nfp.adapter.lora import can_be_set_aside
from vllm_nfp.adapter.own_ways import architecture_of, caches_otherwise, prepares_its_inputs
from vllm_nfp.adapter.parallel_features import PARALLEL
from vllm_nfp.adapter.state_features import STATES
from vllm_nfp.adapter.versions import Mode


def _encodes_alone(config: Any) -> bool:
    transfer = config.ec_transfer_config
    return transfer is not None and transfer.ec_role == "ec_producer"


def _reads_encodings(config: Any) -> bool:
    return config.ec_transfer_config is not None and not _encodes_alone(config)


def _kv_connector(config: Any) -> str | None:
    return unknown_kv_connector(config.kv_transfer_config)


def _encoder_connector(config: Any) -> str | None:
    return unknown_encoder_connector(config.ec_transfer_config)


def _offloads(config: Any) -> bool:
    offload = config.offload_config
    return bool(offload.uva.cpu_offload_gb) or offload.offload_backend == "prefetch"


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
    *STATES,
    Feature(
        "models that prepare inputs of their own",
        Kind.MODEL,
        prepares_its_inputs,
        Mode.PASSIVE,
        "the model {} prepares its inputs in a way of its own, which a probe does not know",
        value=architecture_of,
        placeholder="NAME",
    ),
    Feature(
        "models with a KV cache that is a ring",
        Kind.MODEL,
        caches_otherwise,
        Mode.PASSIVE,
        "the model {} keeps a KV cache in which a probe cannot address a token",
        value=architecture_of,
        placeholder="NAME",
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
        "LoRA of dense models, on a GPU or with --enforce-eager",
        Kind.SERVER,
        lambda c: c.lora_config is not None and can_be_set_aside(c),
        Mode.ACTIVE,
        "probes run the base model, without any adapter, and leave the live batch's mapping alone",
        flag="--enable-lora",
        step="adapters as well",
        unpredicted="LoRA",
    ),
    Feature(
        "other LoRA",
        Kind.SERVER,
        lambda c: c.lora_config is not None and not can_be_set_aside(c),
        Mode.PASSIVE,
        "a probe cannot set LoRA adapters aside in experts, in code compiled for a CPU, before "
        "vLLM 0.32, or with cudagraph_specialize_lora off: serve a dense model with "
        "--enforce-eager, or without --enable-lora",
        flag="--enable-lora",
        step="adapters as well",
        unpredicted="LoRA",
    ),
    Feature(
        "sleep mode",
        Kind.SERVER,
        lambda c: bool(c.model_config.enable_sleep_mode),
        Mode.PASSIVE,
        "sleep mode takes the weights and the KV cache away between steps, where a probe reads "
        "them: serve without --enable-sleep-mode",
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

_UNKNOWN = (
    Feature(
        "settings of vLLM that are not known",
        Kind.SERVER,
        lambda c: unknown_setting(c) is not None,
        Mode.PASSIVE,
        "the setting {} is not known to this vllm-nfp and may be a reason not to probe: leave it "
        "out, or upgrade vllm-nfp",
        value=unknown_setting,
        placeholder="NAME",
        unpredicted="a setting that is not known",
    ),
)

FEATURES: tuple[Feature, ...] = (*_OFF, *PARALLEL, *_MODELS, *_SERVER, *_UNKNOWN)
"""All of them; where several stand against probing, the first gives the reason."""


def features_of(config: Any) -> list[Feature]:
    """Those that a server has."""
    return [feature for feature in FEATURES if feature.holds(config)]
