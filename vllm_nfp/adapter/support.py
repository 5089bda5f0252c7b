"""What the probe does in a configuration: it probes, only times real steps, or stays off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter import bindings, versions
from vllm_nfp.adapter.versions import Decision, Mode
from vllm_nfp.text import label


def decide(vllm_config: Any, passive: bool = False) -> Decision:
    """What the probe does with this vLLM and this configuration, alike on all ranks.

    Where a probe would corrupt something, or could not measure honestly, real steps are timed all
    the same: that injects nothing, touches no memory of the engine's and needs no other rank.

    Args:
        passive: the settings ask for the passive mode.
    """
    decision = versions.decide(versions.installed_version())
    if decision.mode is not Mode.ACTIVE:
        return decision
    if passive:
        return Decision(Mode.PASSIVE, "the setting passive is on: nothing is probed")
    try:
        return _decide_by_configuration(vllm_config)
    except AttributeError as error:  # an unknown setting may be a reason not to probe
        return Decision(Mode.PASSIVE, bindings.unlike_known(str(error)))


def _decide_by_configuration(vllm_config: Any) -> Decision:
    nothing = nothing_to_time(vllm_config)
    if nothing is not None:
        return Decision(Mode.OFF, nothing)
    reason = refusal(vllm_config)
    return Decision(Mode.ACTIVE) if reason is None else Decision(Mode.PASSIVE, reason)


def reports(parallel: Any) -> bool:
    """Whether this rank times the steps and reports them for its engine.

    It is the one whose output the scheduler reads: the first of the last pipeline stage, where
    tokens are sampled. Over several hosts it is the first of all, whose host serves /metrics.
    """
    stages = parallel.pipeline_parallel_size
    stage = parallel.tensor_parallel_size * parallel.prefill_context_parallel_size
    leader = (stages - 1) * stage if parallel.nnodes == 1 else 0
    # Under an external launcher ranks are counted over the engines.
    return bool(parallel.rank % (stages * stage) == leader)


def served_name(vllm_config: Any) -> str:
    """The model's first served name, as the value of a label."""
    served = vllm_config.model_config.served_model_name
    return label(served[0] if isinstance(served, list) else str(served))


def refusal(vllm_config: Any) -> str | None:
    """Why this configuration cannot be probed; None if it can.

    Each reason names the feature and what to do without it. None of these stands in the way of
    timing real steps.
    """
    for check in _CHECKS:
        reason = check(vllm_config)
        if reason is not None:
            return reason
    return None


_SIZES = (
    ("pipeline_parallel_size", "--pipeline-parallel-size", "a probe would need every stage"),
    (
        "data_parallel_size",
        "--data-parallel-size",
        "experts' ranks take their steps together, of which a probe knows nothing; "
        "ranks of a dense model are engines of their own, and each is probed",
    ),
    (
        "decode_context_parallel_size",
        "--decode-context-parallel-size",
        "a probe does not split its context over ranks",
    ),
    (
        "prefill_context_parallel_size",
        "--prefill-context-parallel-size",
        "a probe does not split its context over ranks",
    ),
)
"""Attribute, flag, and why a size above 1 keeps the probe off."""


def _parallel(config: Any) -> str | None:
    parallel = config.parallel_config
    for name, flag, why in _SIZES:
        size = _size(config, name)
        if size > 1:
            return f"{flag} {size} is not supported ({why}): probing needs 1"
    if parallel.tensor_parallel_size > 1:
        executor = parallel.distributed_executor_backend
        if executor not in (None, "mp", "uni"):
            name = executor.__name__ if isinstance(executor, type) else executor
            return (
                f"tensor parallelism with --distributed-executor-backend {name} is not supported: "
                f"use mp"
            )
    if parallel.use_ubatching:
        return "dual batch overlap is not supported: serve without --enable-dbo"
    if parallel.enable_eplb:
        return "probes would distort the expert load statistics: serve without --enable-eplb"
    return None


def _state(config: Any) -> str | None:
    model = config.model_config
    if model.is_hybrid or model.is_attention_free:
        return "the model keeps recurrent (mamba) state, which a probe would overwrite"
    if model.is_encoder_decoder:
        return "encoder-decoder models are not supported: only decoder-only models are"
    return None


def _connectors(config: Any) -> str | None:
    if config.kv_transfer_config is not None:
        return "a KV connector would store or send what a probe runs: serve without one"
    if config.ec_transfer_config is not None:
        return "an encoder-cache connector is not supported: serve without one"
    return None


def _inputs(config: Any) -> str | None:
    nothing = nothing_to_time(config)
    if nothing is not None:
        return nothing
    model = config.model_config
    if model.uses_mrope:
        return "models with multi-dimensional rotary positions are not supported yet"
    if _is_multimodal(model) or model.enable_prompt_embeds:
        return (
            "models that take embeddings as input are not supported yet: "
            "for a multimodal model serve with --language-model-only"
        )
    if config.lora_config is not None:
        return "LoRA keeps state per batch that a probe would change: serve without --enable-lora"
    return None


def _is_multimodal(model: Any) -> bool:
    """Whether images and the like may come, which ``--language-model-only`` rules out.

    Older releases do not say so, and there a multimodal model is enough.
    """
    if versions.is_since(versions.MULTIMODAL_PROPERTY):
        return bool(model.supports_multimodal_inputs)
    return bool(model.is_multimodal_model)


def _memory(config: Any) -> str | None:
    model = config.model_config
    if model.enable_sleep_mode:
        return "sleep mode moves the memory that the probe's CUDA graphs address"
    if _offloads(config):
        return "weights are offloaded to the host: probes would compete for the transfers"
    return None


def _offloads(config: Any) -> bool:
    offload = config.offload_config
    return bool(offload.uva.cpu_offload_gb) or offload.offload_backend == "prefetch"


_CHECKS: tuple[Callable[[Any], str | None], ...] = (
    _parallel,
    _state,
    _connectors,
    _inputs,
    _memory,
)


def nothing_to_time(config: Any) -> str | None:
    """Why this engine runs no decode step at all; None if it does."""
    runner_type = config.model_config.runner_type
    if runner_type != "generate":
        return f"runner type {runner_type!r} decodes nothing: there is no step to probe or time"
    transfer = config.ec_transfer_config
    if transfer is not None and transfer.ec_role == "ec_producer":
        return "an engine that only encodes (ec_producer) has no decode step to probe or time"
    return None


_UNPREDICTED: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("pipeline stages", lambda c: _size(c, "pipeline_parallel_size") > 1),
    ("a context split over ranks", lambda c: _size(c, "decode_context_parallel_size") > 1),
    ("a context split over ranks", lambda c: _size(c, "prefill_context_parallel_size") > 1),
    ("dual batch overlap", lambda c: bool(c.parallel_config.use_ubatching)),
    ("balanced experts", lambda c: bool(c.parallel_config.enable_eplb)),
    ("LoRA", lambda c: c.lora_config is not None),
    ("recurrent state or an encoder", lambda c: _state(c) is not None),
    ("offloaded weights", _offloads),
)
"""What takes time in a step and is unknown to the predictor."""


def unpredicted(config: Any) -> str | None:
    """What of this configuration the predictor does not know; None if nothing.

    Whether the model's family is known is decided elsewhere, by its ``config.json``.
    """
    return next((name for name, holds in _UNPREDICTED if holds(config)), None)


def _size(config: Any, name: str) -> int:
    return int(getattr(config.parallel_config, name))
