"""What the probe does with each feature of a model or a server: one list.

Decisions are taken by it (:mod:`vllm_nfp.adapter.support`), ``vllm-nfp doctor`` prints what holds
of a command line, and the tables in ``docs/`` are made of it (``docs/reference.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_nfp.adapter.connectors import unknown_encoder_connector, unknown_kv_connector
from vllm_nfp.adapter.inputs import is_multimodal
from vllm_nfp.adapter.versions import Mode


class Kind(StrEnum):
    """Which of the tables a feature is in."""

    MODEL = "models"
    PARALLEL = "parallelism"
    SERVER = "serving"


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a model has, or that flags switch on."""

    name: str
    kind: Kind
    holds: Callable[[Any], bool]
    """Whether a server has it, by vLLM's configuration."""
    mode: Mode
    why: str
    """Active: how it is probed. Otherwise the reason, and what to do without the feature; braces
    take the place of :attr:`value`."""
    value: Callable[[Any], object] | None = None
    """What the reason names."""
    placeholder: str = "N"
    """What stands for it in the docs."""
    flag: str = ""
    """What switches it on; empty if the model's configuration does."""
    step: str = ""
    """What a timed step contains, where that is more or less than a decode step."""
    unpredicted: str = ""
    """What of it the predictor does not know; empty if predictions are made as without it."""

    def reason(self, config: Any) -> str:
        """Why, of this server."""
        return self.why if self.value is None else self.why.format(self.value(config))

    @property
    def explained(self) -> str:
        """Why, of any server."""
        return self.why if self.value is None else self.why.format(self.placeholder)


def _size(name: str) -> Callable[[Any], int]:
    return lambda config: int(getattr(config.parallel_config, name))


def _above_one(name: str) -> Callable[[Any], bool]:
    return lambda config: _size(name)(config) > 1


def _executor(config: Any) -> object:
    executor = config.parallel_config.distributed_executor_backend
    return executor.__name__ if isinstance(executor, type) else executor


def _foreign_executor(config: Any) -> bool:
    several = config.parallel_config.tensor_parallel_size > 1
    return several and _executor(config) not in (None, "mp", "uni")


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


def _recurrent(config: Any) -> bool:
    model = config.model_config
    return bool(model.is_hybrid or model.is_attention_free)


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

_PARALLEL = (
    Feature(
        "tensor parallelism",
        Kind.PARALLEL,
        lambda c: _above_one("tensor_parallel_size")(c) and not _foreign_executor(c),
        Mode.ACTIVE,
        "all ranks launch a pair before the same step, or none does",
        flag="--tensor-parallel-size",
    ),
    Feature(
        "expert parallelism over tensor-parallel ranks",
        Kind.PARALLEL,
        lambda c: bool(c.parallel_config.enable_expert_parallel),
        Mode.ACTIVE,
        "as tensor parallelism",
        flag="--enable-expert-parallel",
    ),
    Feature(
        "data parallelism of a dense model",
        Kind.PARALLEL,
        lambda c: _above_one("data_parallel_size")(c) and not c.model_config.is_moe,
        Mode.ACTIVE,
        "each rank is an engine of its own, with its own label engine",
        flag="--data-parallel-size",
    ),
    Feature(
        "pipeline parallelism",
        Kind.PARALLEL,
        _above_one("pipeline_parallel_size"),
        Mode.PASSIVE,
        "--pipeline-parallel-size {} is not supported (a probe would need every stage): "
        "probing needs 1",
        value=_size("pipeline_parallel_size"),
        flag="--pipeline-parallel-size",
        step="the last stage's part, and the wait for earlier stages; the first stage's where "
        "stages are on several hosts",
        unpredicted="pipeline stages",
    ),
    Feature(
        "data parallelism with experts",
        Kind.PARALLEL,
        lambda c: _above_one("data_parallel_size")(c) and bool(c.model_config.is_moe),
        Mode.PASSIVE,
        "--data-parallel-size {} is not supported (experts' ranks take their steps together, of "
        "which a probe knows nothing; ranks of a dense model are engines of their own, and each is "
        "probed): probing needs 1",
        value=_size("data_parallel_size"),
        flag="--data-parallel-size",
        step="the wait for other ranks as well; dummy batches are left out; each engine has a row",
    ),
    Feature(
        "decode context parallelism",
        Kind.PARALLEL,
        _above_one("decode_context_parallel_size"),
        Mode.PASSIVE,
        "--decode-context-parallel-size {} is not supported (a probe does not split its context "
        "over ranks): probing needs 1",
        value=_size("decode_context_parallel_size"),
        flag="--decode-context-parallel-size",
        step="that of the first rank",
        unpredicted="a context split over ranks",
    ),
    Feature(
        "prefill context parallelism",
        Kind.PARALLEL,
        _above_one("prefill_context_parallel_size"),
        Mode.PASSIVE,
        "--prefill-context-parallel-size {} is not supported (a probe does not split its context "
        "over ranks): probing needs 1",
        value=_size("prefill_context_parallel_size"),
        flag="--prefill-context-parallel-size",
        step="that of the first rank",
        unpredicted="a context split over ranks",
    ),
    Feature(
        "tensor parallelism with another executor",
        Kind.PARALLEL,
        _foreign_executor,
        Mode.PASSIVE,
        "tensor parallelism with --distributed-executor-backend {} is not supported: use mp",
        value=_executor,
        placeholder="external_launcher",
        flag="--distributed-executor-backend external_launcher",
    ),
    Feature(
        "dual batch overlap",
        Kind.PARALLEL,
        lambda c: bool(c.parallel_config.use_ubatching),
        Mode.PASSIVE,
        "dual batch overlap is not supported: serve without --enable-dbo",
        flag="--enable-dbo",
        unpredicted="dual batch overlap",
    ),
    Feature(
        "expert load balancing",
        Kind.PARALLEL,
        lambda c: bool(c.parallel_config.enable_eplb),
        Mode.PASSIVE,
        "probes would distort the expert load statistics: serve without --enable-eplb",
        flag="--enable-eplb",
        step="rebalancing as well, which the median leaves out",
        unpredicted="balanced experts",
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
        "recurrent state (Mamba, Gated DeltaNet, KDA, short convolutions)",
        Kind.MODEL,
        _recurrent,
        Mode.PASSIVE,
        "the model keeps recurrent (mamba) state, which a probe would overwrite",
        unpredicted="recurrent state",
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

FEATURES: tuple[Feature, ...] = (*_OFF, *_PARALLEL, *_MODELS, *_SERVER)
"""All of them; where several stand against probing, the first gives the reason."""


def features_of(config: Any) -> list[Feature]:
    """Those that a server has."""
    return [feature for feature in FEATURES if feature.holds(config)]
