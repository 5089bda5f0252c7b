"""vLLM's V2 model runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.runner import RunnerParts, StepBuffers
from vllm_nfp.adapter.targets import Target

MODULE = "vllm.v1.worker.gpu.model_runner"
"""Where vLLM defines it."""


@dataclass(frozen=True, slots=True)
class V2Runner(RunnerParts):
    """``v1/worker/gpu/model_runner.py``."""

    name: str = "v2"
    begins_step: Target = targets.V2_EXECUTE_MODEL
    ends_step: Target = targets.V2_SAMPLE_TOKENS

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
