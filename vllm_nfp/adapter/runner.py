"""What the probe needs to know of a model runner: one view for each.

The probe shares a runner's model, KV cache and attention groups. Of what a step writes it shares
nothing but the buffers that PIECEWISE graphs read, which it hands back as it found them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vllm_nfp.adapter.targets import Target


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

    @property
    def marks_lora(self) -> bool:
        """Whether PIECEWISE graphs without an adapter bear the mark of a server with adapters."""
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
    embeds: torch.Tensor | None = None
    """[tokens, hidden]: what a model is given in place of token ids, where the server takes images
    or the like, or prompts as embeddings."""
    rotary: torch.Tensor | None = None
    """[rows, tokens + 1]: the positions that a model with multi-dimensional rotary positions is
    given in place of ``positions``."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, with tokens as their first dimension; padding before embeddings, last."""
        rotary = () if self.rotary is None else (self.rotary.T,)
        last = (each for each in (self.is_padding, self.embeds) if each is not None)
        return (self.input_ids, self.positions, *self.slots, *rotary, *last)


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """What every one of vLLM's model runners has under the same name."""

    runner: Any
    """vLLM's model runner."""

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
