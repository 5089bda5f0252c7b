"""vLLM's V1 model runner, from which the CPU's derives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_nfp.adapter import targets, versions
from vllm_nfp.adapter.inputs import takes_embeddings
from vllm_nfp.adapter.runner import RunnerParts, StepBuffers
from vllm_nfp.adapter.targets import Target

MODULE = "vllm.v1.worker.gpu_model_runner"
"""Where vLLM defines it."""


@dataclass(frozen=True, slots=True)
class V1Runner(RunnerParts):
    """``v1/worker/gpu_model_runner.py``; the CPU runner derives from it."""

    name: str = "v1"
    begins_step: Target = targets.V1_EXECUTE_MODEL
    ends_step: Target = targets.V1_SAMPLE_TOKENS

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
            runner.inputs_embeds.gpu if takes_embeddings(self.vllm_config.model_config) else None,
            self._rotary_positions(),
        )

    def _rotary_positions(self) -> torch.Tensor | None:
        runner = self.runner
        if runner.uses_mrope:
            return _on_device(runner.mrope_positions)
        if not versions.is_since(versions.ONE_ROTARY_BUFFER) and runner.uses_xdrope_dim:
            return _on_device(runner.xdrope_positions)
        return None

    @property
    def marks_lora(self) -> bool:
        """V1's have their own key (``v1/cudagraph_dispatcher.py``)."""
        return False

    def run_piecewise(self, inputs: dict[str, Any]) -> Any:
        """Through the runner's wrapper, which holds the graphs where nothing is compiled."""
        return self.runner.model(**inputs)

    def is_dummy(self, kwargs: dict[str, Any]) -> bool:
        """V1 never runs a dummy through execute_model."""
        return False


def _on_device(buffer: Any) -> torch.Tensor:
    """The device's half of one of vLLM's pairs of buffers."""
    found: torch.Tensor = buffer.gpu
    return found
