"""What the probe relies on in vLLM's own classes, looked up by name before anything runs.

A name that vLLM has renamed, dropped or added is an error that says so. A probe that left it out
would measure something else, or would miss that it must keep off.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any

from vllm_nfp.adapter import targets, versions

FORWARD_CONTEXT_ARGUMENTS = (
    "attn_metadata",
    "vllm_config",
    "num_tokens",
    "num_tokens_across_dp",
    "cudagraph_runtime_mode",
    "batch_descriptor",
    "slot_mapping",
    "skip_compiled",
    "is_padding",
)
"""What a probe gives ``set_forward_context``."""
BUILD_ARGUMENTS = ("common_prefix_len", "common_attn_metadata")
CAPTURE_ARGUMENTS = ("common_attn_metadata",)
"""What a probe gives an attention backend's metadata builder, by position."""
SCHEDULER_FIELDS = (
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "scheduled_new_reqs",
    "scheduled_cached_reqs",
    "scheduled_encoder_inputs",
    "preempted_req_ids",
)
"""What a step is read from."""

_PARALLEL = """
tensor_parallel_size pipeline_parallel_size data_parallel_size
data_parallel_size_local data_parallel_external_lb data_parallel_hybrid_lb
decode_context_parallel_size prefill_context_parallel_size data_parallel_index
distributed_executor_backend data_parallel_backend use_ubatching enable_eplb
enable_expert_parallel enable_elastic_ep all2all_backend nnodes rank
"""
CONFIG_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "": (
        "kv_transfer_config",
        "ec_transfer_config",
        "lora_config",
        "offload_config",
        "speculative_config",
    ),
    "parallel_config": tuple(_PARALLEL.split()),
    "model_config": (
        "is_hybrid",
        "is_attention_free",
        "is_encoder_decoder",
        "is_diffusion",
        "is_moe",
        "runner_type",
        "uses_mrope",
        "enable_prompt_embeds",
        "enable_sleep_mode",
        "max_model_len",
        "hf_config",
        "hf_text_config",
        "served_model_name",
        "dtype",
        "quantization",
        "enforce_eager",
    ),
    "cache_config": ("cache_dtype", "num_gpu_blocks", "block_size"),
    "scheduler_config": ("max_num_seqs", "max_num_batched_tokens"),
    "compilation_config": (
        "static_forward_context",
        "static_all_moe_layers",
        "cudagraph_mode",
        "cudagraph_capture_sizes",
        "cudagraph_specialize_lora",
    ),
    "device_config": ("device_type",),
    "offload_config": ("offload_backend", "uva"),
}
"""Part of vLLM's configuration -> attributes that the probe, or the reasons against it, look at.
Every release in :data:`vllm_nfp.releases.RELEASES` has them (sources of 0.29.0 to 0.33.0,
``config/``)."""


class UnknownVllmError(RuntimeError):
    """vLLM lacks what the probe relies on, or requires what the probe does not give."""


def check(vllm_config: Any) -> None:
    """Look up all that can be looked up without a model runner.

    Raises:
        UnknownVllmError: naming all that is missing or new.
    """
    problems = _all_problems(vllm_config)
    if problems:
        raise UnknownVllmError(unlike_known("; ".join(problems)))


def unlike_known(what: str) -> str:
    """The reason for passive mode in a vLLM that differs from what is known of its release."""
    release = versions.installed_version()
    return f"this vLLM ({release}) differs from what this vllm-nfp supports: {what}"


def is_known(vllm_config: Any) -> bool:
    """Whether :func:`check` finds nothing."""
    return not _all_problems(vllm_config)


def _all_problems(vllm_config: Any) -> list[str]:
    try:
        return list(_problems(vllm_config))
    except ImportError as error:
        return [str(error)]


def _problems(vllm_config: Any) -> Iterator[str]:
    from vllm.distributed.parallel_state import GroupCoordinator
    from vllm.forward_context import BatchDescriptor, ForwardContext, set_forward_context
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.core.sched.output import SchedulerOutput

    yield from _config_problems(vllm_config)
    yield from field_problems(CommonAttentionMetadata, versions.metadata_fields())
    yield from field_problems(BatchDescriptor, ("num_tokens", "has_lora"))
    yield from field_problems(ForwardContext, ("all_moe_layers",), required=False)
    yield from field_problems(SchedulerOutput, SCHEDULER_FIELDS, required=False)
    yield from argument_problems(set_forward_context, FORWARD_CONTEXT_ARGUMENTS)
    release = versions.installed_release()
    yield from (
        f"GroupCoordinator has no {target.attribute}"
        for target in targets.COLLECTIVES
        if target.is_in(release) and target.attribute not in dir(GroupCoordinator)
    )


def _config_problems(vllm_config: Any) -> Iterator[str]:
    since = versions.is_since(versions.MULTIMODAL_PROPERTY)
    multimodal = "supports_multimodal_inputs" if since else "is_multimodal_model"
    wanted = {**CONFIG_ATTRIBUTES}
    wanted["model_config"] = (*wanted["model_config"], multimodal)
    for part, names in wanted.items():
        # dir() evaluates no property of vLLM's, of which some look at files.
        if part and part not in dir(vllm_config):
            yield f"its configuration has no {part}"
            continue
        known = dir(getattr(vllm_config, part) if part else vllm_config)
        place = f"{part}." if part else ""
        yield from (f"its configuration has no {place}{n}" for n in names if n not in known)


def field_problems(kind: type, given: Collection[str], required: bool = True) -> Iterator[str]:
    """What stands between a dataclass of vLLM's and the fields that the probe knows.

    Args:
        required: the probe makes such objects, so that it must give every field without a default.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    yield from (f"{kind.__name__} has no {name}" for name in given if name not in fields)
    if not required:
        return
    for name, field in fields.items():
        has_default = not (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if field.init and not has_default and name not in given:
            yield f"{kind.__name__} requires {name}"


def argument_problems(call: Callable[..., Any], given: Collection[str]) -> Iterator[str]:
    """The same for a function and the arguments that the probe gives it by name."""
    name = getattr(call, "__name__", str(call))
    arguments = inspect.signature(call).parameters
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    yield from (
        f"{name} takes no {wanted}"
        for wanted in given
        if wanted not in arguments or arguments[wanted].kind not in by_name
    )
    yield from (
        f"{name} requires {argument.name}"
        for argument in arguments.values()
        if argument.kind in by_name
        and argument.default is inspect.Parameter.empty
        and argument.name not in given
    )


def check_builder(builder: Any) -> None:
    """Whether a backend's metadata builder is called as the probe calls it.

    Raises:
        UnknownVllmError: naming what it lacks or requires.
    """
    calls = (
        (builder.build, len(BUILD_ARGUMENTS)),
        (builder.build_for_cudagraph_capture, len(CAPTURE_ARGUMENTS)),
    )
    for call, count in calls:
        try:
            inspect.signature(call).bind(*[None] * count)
        except TypeError as error:
            raise UnknownVllmError(
                f"{type(builder).__name__}.{call.__name__} of this vLLM is not called as this "
                f"vllm-nfp calls it: {error}"
            ) from None


def check_backend(backend: Any) -> None:
    """Whether an attention backend is one of vLLM's own, and not one that was registered with it.

    Raises:
        UnknownVllmError: naming it.
    """
    if backend.__module__.partition(".")[0] != "vllm":
        raise UnknownVllmError(
            f"the attention backend {backend.get_name()} ({backend.__module__}) is not vLLM's own: "
            f"real steps are timed, nothing is probed"
        )


def check_kv_cache_kind(spec: Any) -> None:
    """Whether the probe's block tables fit this kind of KV cache.

    Raises:
        UnknownVllmError: naming the kind.
    """
    kind = type(spec).__name__
    if kind not in versions.KV_CACHE_KINDS:
        raise UnknownVllmError(
            f"KV cache of kind {kind} is unknown to this vllm-nfp: real steps are timed, nothing "
            f"is probed"
        )
