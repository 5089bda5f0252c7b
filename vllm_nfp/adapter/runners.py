"""What the probe needs to know of a model runner: one view for V1, V2 and the CPU runner.

The probe shares a runner's model, KV cache and attention groups. Of what a step writes it shares
nothing but the buffers that PIECEWISE graphs read, which it hands back as it found them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vllm_nfp.adapter import targets, versions
from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.targets import Target
from vllm_nfp.types import EngineStep


class RunnerView(Protocol):
    """A model runner as the probe sees it."""

    @property
    def name(self) -> str:
        """v1, v2 or cpu, for messages."""
        ...

    @property
    def runner(self) -> Any:
        """vLLM's model runner."""
        ...

    @property
    def vllm_config(self) -> Any:
        """The engine's configuration."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that steps run on."""
        ...

    @property
    def model(self) -> Any:
        """The model, without CUDA graph wrappers."""
        ...

    @property
    def decode_positions(self) -> int:
        """Positions per sequence of a decode step with all drafts."""
        ...

    def step_buffers(self) -> StepBuffers:
        """The runner's own buffers, which its PIECEWISE graphs read.

        Raises:
            AttributeError: if the runner keeps them elsewhere.
        """
        ...

    def run_piecewise(self, inputs: dict[str, Any]) -> Any:
        """Call the model as a real step in a PIECEWISE graph does.

        Args:
            inputs: the model's arguments; tensors among them must be views of the step buffers.
        """
        ...

    @property
    def begins_step(self) -> Target:
        """The method that a real step begins with."""
        ...

    @property
    def ends_step(self) -> Target:
        """The method after which a real step has been launched."""
        ...

    def is_dummy(self, kwargs: dict[str, Any]) -> bool:
        """Whether such a call is one of vLLM's own dummy runs."""
        ...


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What a PIECEWISE graph reads at the addresses that it was captured with.

    vLLM copies nothing into such graphs (``compilation/cuda_graph.py``, ``CUDAGraphWrapper``), so
    that a run in one has to find its inputs in the runner's own buffers. Each has room for the
    tokens of the largest step.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    is_padding: torch.Tensor | None
    """Where the runner marks padding, so that experts skip it."""
    slots: tuple[torch.Tensor, ...]
    """KV cache slots that a step writes to, for each group of layers. Custom splitting ops, and
    partitions by Inductor, leave the writing inside the graphs."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, padding last."""
        mask = () if self.is_padding is None else (self.is_padding,)
        return (self.input_ids, self.positions, *self.slots, *mask)


@dataclass(frozen=True, slots=True)
class V1Runner:
    """``v1/worker/gpu_model_runner.py``; the CPU runner derives from it."""

    runner: Any
    name: str = "v1"
    begins_step: Target = targets.V1_EXECUTE_MODEL
    ends_step: Target = targets.V1_SAMPLE_TOKENS

    @property
    def vllm_config(self) -> Any:
        """The engine's configuration."""
        return self.runner.vllm_config

    @property
    def device(self) -> torch.device:
        """The device that steps run on."""
        return torch.device(self.runner.device)

    @property
    def model(self) -> Any:
        """The model, without CUDA graph wrappers."""
        return self.runner.get_model()

    @property
    def decode_positions(self) -> int:
        """1 + draft tokens."""
        return int(self.runner.uniform_decode_query_len)

    def step_buffers(self) -> StepBuffers:
        """The runner's persistent buffers."""
        runner = self.runner
        marks_padding = versions.is_since(versions.V1_PADDING_MASK)
        return StepBuffers(
            runner.input_ids.gpu,
            runner.positions,
            runner.is_padding if marks_padding else None,
            tuple(t.slot_mapping.gpu for t in runner.input_batch.block_table.block_tables),
        )

    def run_piecewise(self, inputs: dict[str, Any]) -> Any:
        """Through the runner's wrapper, which holds the graphs where nothing is compiled."""
        return self.runner.model(**inputs)

    def is_dummy(self, kwargs: dict[str, Any]) -> bool:
        """V1 never runs a dummy through execute_model."""
        return False


@dataclass(frozen=True, slots=True)
class V2Runner:
    """``v1/worker/gpu/model_runner.py``."""

    runner: Any
    name: str = "v2"
    begins_step: Target = targets.V2_EXECUTE_MODEL
    ends_step: Target = targets.V2_SAMPLE_TOKENS

    @property
    def vllm_config(self) -> Any:
        """The engine's configuration."""
        return self.runner.vllm_config

    @property
    def device(self) -> torch.device:
        """The device that steps run on."""
        return torch.device(self.runner.device)

    @property
    def model(self) -> Any:
        """The model."""
        return self.runner.get_model()

    @property
    def decode_positions(self) -> int:
        """New tokens of a decode step with all drafts."""
        return int(self.runner.decode_query_len)

    def step_buffers(self) -> StepBuffers:
        """The runner's persistent buffers."""
        buffers = self.runner.input_buffers
        slots = tuple(self.runner.block_tables.slot_mappings)
        return StepBuffers(buffers.input_ids, buffers.positions, buffers.is_padding, slots)

    def run_piecewise(self, inputs: dict[str, Any]) -> Any:
        """Through the graph manager, which holds the graphs where nothing is compiled."""
        return self.runner.cudagraph_manager.run_pw_graph(self.runner.model, inputs)

    def is_dummy(self, kwargs: dict[str, Any]) -> bool:
        """V2's dummy runs, of idle data-parallel ranks and of profiling, say so."""
        return bool(kwargs.get("dummy_run"))


class UnknownRunnerError(TypeError):
    """The model runner is none of the known ones; the message names it."""


def view_of(runner: Any) -> RunnerView:
    """The view that fits the runner, told from its class's module.

    Raises:
        UnknownRunnerError: for a runner that is none of the known ones.
    """
    modules = {cls.__module__ for cls in type(runner).__mro__}
    if "vllm.v1.worker.gpu.model_runner" in modules:
        return V2Runner(runner)
    if "vllm.v1.worker.gpu_model_runner" in modules:
        return V1Runner(runner, "cpu" if runner.device.type == "cpu" else "v1")
    raise UnknownRunnerError(
        f"model runner {type(runner).__name__} is unknown; the probe knows V1, V2 and CPU"
    )


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most that a step may hold."""

    sequences: int
    tokens: int


def limits_of(vllm_config: Any) -> StepLimits:
    """The scheduler's limits."""
    scheduler = vllm_config.scheduler_config
    return StepLimits(int(scheduler.max_num_seqs), int(scheduler.max_num_batched_tokens))


def step_of(
    scheduler_output: Any, decode_positions: int, limits: StepLimits, waiting: bool | None = None
) -> EngineStep | None:
    """The step as the scheduler planned it, alike on all ranks; None if it runs nothing.

    A worker does not see the queue of requests. What it sees of it: a step that is full of tokens
    or sequences, and sequences that were preempted.

    Args:
        waiting: what :func:`requests_wait` says of it, where that is known already.
    """
    counts = scheduler_output.num_scheduled_tokens
    if not counts:
        return None
    batch_size, tokens = len(counts), scheduler_output.total_num_scheduled_tokens
    # This runs before every step: nothing is looked up that the totals tell.
    positions = 1 if tokens == batch_size else max(counts.values())
    computed = scheduler_output.scheduled_cached_reqs.num_computed_tokens
    return EngineStep(
        batch_size,
        round(sum(computed) / len(computed)) if computed else 0,
        positions,
        decode=(
            positions <= decode_positions
            and not scheduler_output.scheduled_new_reqs
            and not scheduler_output.scheduled_encoder_inputs
        ),
        fullness=batch_size / limits.sequences,
        waiting=requests_wait(scheduler_output, limits) if waiting is None else waiting,
    )


def requests_wait(scheduler_output: Any, limits: StepLimits) -> bool:
    """Whether the step is full of tokens, or sequences were preempted for it."""
    return scheduler_output.total_num_scheduled_tokens >= limits.tokens or bool(
        scheduler_output.preempted_req_ids
    )


def graph_rules(vllm_config: Any, attn_groups: Any, device: torch.device) -> GraphRules:
    """The server's CUDA graph settings, after vLLM has resolved them."""
    compilation = vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    enabled = device.type == "cuda" and bool(mode)
    return GraphRules(
        full_decode=enabled and _is_full(mode.decode_mode()),
        full_mixed=enabled and _is_full(mode.mixed_mode()),
        piecewise=enabled and mode.has_piecewise_cudagraphs(),
        multi_position=enabled and _allows_multi_position(vllm_config, attn_groups),
        capture_sizes=tuple(sorted(compilation.cudagraph_capture_sizes or ())) if enabled else (),
        max_num_seqs=vllm_config.scheduler_config.max_num_seqs,
    )


def _is_full(mode: Any) -> bool:
    return bool(mode is not None and mode.name == "FULL")


def _allows_multi_position(vllm_config: Any, attn_groups: Any) -> bool:
    """Whether every attention backend allows FULL graphs for batches of equal query lengths."""
    from vllm.v1.attention.backend import AttentionCGSupport

    return all(
        type(group.metadata_builders[0])
        .get_cudagraph_support(vllm_config, group.kv_cache_spec)
        .value
        >= AttentionCGSupport.UNIFORM_BATCH.value
        for groups in attn_groups
        for group in groups
    )
