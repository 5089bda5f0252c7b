"""What the probe does in a configuration: it probes, only times real steps, or stays off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter import versions
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
    nothing = nothing_to_time(vllm_config)
    if nothing is not None:
        return Decision(Mode.OFF, nothing)
    reason = refusal(vllm_config)
    return decision if reason is None else Decision(Mode.PASSIVE, reason)


def reports(parallel: Any) -> bool:
    """Whether this rank times the steps and tells of them for its engine.

    It is the one whose output the scheduler reads: the first of the last pipeline stage, where
    tokens are sampled. Over several hosts it is the first of all, whose host serves /metrics.
    """
    stages = getattr(parallel, "pipeline_parallel_size", 1) or 1
    stage = parallel.tensor_parallel_size * (
        getattr(parallel, "prefill_context_parallel_size", 1) or 1
    )
    leader = (stages - 1) * stage if (getattr(parallel, "nnodes", 1) or 1) == 1 else 0
    # Under an external launcher ranks are counted over the engines.
    return bool((getattr(parallel, "rank", 0) or 0) % (stages * stage) == leader)


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
    executor = getattr(parallel, "distributed_executor_backend", None)
    if parallel.tensor_parallel_size > 1 and executor not in (None, "mp", "uni"):
        name = executor if isinstance(executor, str) else getattr(executor, "__name__", executor)
        return (
            f"tensor parallelism with --distributed-executor-backend {name} is not supported: "
            f"use mp"
        )
    if getattr(parallel, "use_ubatching", False):
        return "dual batch overlap is not supported: serve without --enable-dbo"
    if getattr(parallel, "enable_eplb", False):
        return "probes would distort the expert load statistics: serve without --enable-eplb"
    return None


def _state(config: Any) -> str | None:
    model = config.model_config
    if getattr(model, "is_hybrid", False) or getattr(model, "is_attention_free", False):
        return "the model keeps recurrent (mamba) state, which a probe would overwrite"
    if getattr(model, "is_encoder_decoder", False):
        return "encoder-decoder models are not supported: only decoder-only models are"
    return None


def _connectors(config: Any) -> str | None:
    if getattr(config, "kv_transfer_config", None) is not None:
        return "a KV connector would store or send what a probe runs: serve without one"
    if getattr(config, "ec_transfer_config", None) is not None:
        return "an encoder-cache connector is not supported: serve without one"
    return None


def _inputs(config: Any) -> str | None:
    nothing = nothing_to_time(config)
    if nothing is not None:
        return nothing
    model = config.model_config
    if getattr(model, "uses_mrope", False):
        return "models with multi-dimensional rotary positions are not supported yet"
    if _is_multimodal(model) or getattr(model, "enable_prompt_embeds", False):
        return (
            "models that take embeddings as input are not supported yet: "
            "for a multimodal model serve with --language-model-only"
        )
    if getattr(config, "lora_config", None) is not None:
        return "LoRA keeps state per batch that a probe would change: serve without --enable-lora"
    return None


def _is_multimodal(model: Any) -> bool:
    """Whether images and the like may come, which ``--language-model-only`` rules out.

    Older releases do not tell that, so that there a multimodal model is enough.
    """
    if versions.is_since(versions.MULTIMODAL_PROPERTY):
        return bool(getattr(model, "supports_multimodal_inputs", False))
    return bool(model.is_multimodal_model)


def _memory(config: Any) -> str | None:
    model = config.model_config
    if getattr(model, "enable_sleep_mode", False):
        return "sleep mode moves the memory that the probe's CUDA graphs address"
    if _offloads(config):
        return "weights are offloaded to the host: probes would compete for the transfers"
    return None


def _offloads(config: Any) -> bool:
    offload = getattr(config, "offload_config", None)
    on_demand = getattr(getattr(offload, "uva", None), "cpu_offload_gb", 0)
    return bool(on_demand) or getattr(offload, "offload_backend", None) == "prefetch"


_CHECKS: tuple[Callable[[Any], str | None], ...] = (
    _parallel,
    _state,
    _connectors,
    _inputs,
    _memory,
)


def nothing_to_time(config: Any) -> str | None:
    """Why this engine runs no decode step at all; None if it does."""
    runner_type = getattr(config.model_config, "runner_type", "generate")
    if runner_type != "generate":
        return f"runner type {runner_type!r} decodes nothing: there is no step to probe or time"
    transfer = getattr(config, "ec_transfer_config", None)
    if transfer is not None and getattr(transfer, "ec_role", None) == "ec_producer":
        return "an engine that only encodes (ec_producer) has no decode step to probe or time"
    return None


_UNPREDICTED: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("pipeline stages", lambda c: _size(c, "pipeline_parallel_size") > 1),
    ("a context split over ranks", lambda c: _size(c, "decode_context_parallel_size") > 1),
    ("a context split over ranks", lambda c: _size(c, "prefill_context_parallel_size") > 1),
    ("dual batch overlap", lambda c: bool(getattr(c.parallel_config, "use_ubatching", False))),
    ("balanced experts", lambda c: bool(getattr(c.parallel_config, "enable_eplb", False))),
    ("LoRA", lambda c: getattr(c, "lora_config", None) is not None),
    ("recurrent state or an encoder", lambda c: _state(c) is not None),
    ("offloaded weights", _offloads),
)
"""What takes time in a step and is unknown to the predictor."""


def unpredicted(config: Any) -> str | None:
    """What of this configuration the predictor does not know; None if nothing.

    A model's family is told apart elsewhere, by its ``config.json``.
    """
    return next((name for name, holds in _UNPREDICTED if holds(config)), None)


def _size(config: Any, name: str) -> int:
    return int(getattr(config.parallel_config, name, 1) or 1)
