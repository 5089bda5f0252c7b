"""vLLM's V2 model runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.inputs import takes_embeddings
from vllm_nfp.adapter.runner import RunnerParts, StepBuffers
from vllm_nfp.adapter.targets import Target

MODULE = "vllm.v1.worker.gpu.model_runner"
"""Where vLLM defines it."""
KNOWN_STATES = ("DefaultModelState", "MambaHybridModelState")
"""vLLM's classes of what prepares a model's inputs that a probe follows (sources of 0.29.0 to
0.33.0, ``v1/worker/gpu/model_states/``)."""


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
        """The runner's persistent buffers.

        Raises:
            UnknownVllmError: if the model prepares its inputs in a way of its own.
        """
        buffers, state = self.runner.input_buffers, self.runner.model_state
        _check_state(state)
        slots = tuple(self.runner.block_tables.slot_mappings)
        tokens, embeds = len(buffers.input_ids), None
        if takes_embeddings(self.vllm_config.model_config):
            embeds = state.dummy_inputs_embeds(tokens)  # they are the buffer of real steps
        rotary = None if state.rope_state is None else state.rope_state.positions
        return StepBuffers(
            buffers.input_ids, buffers.positions, buffers.is_padding, slots, embeds, rotary
        )

    @property
    def marks_lora(self) -> bool:
        """V2 tells them from the others by the number of adapters alone."""
        return self.vllm_config.lora_config is not None

    def run_piecewise(self, inputs: dict[str, Any]) -> Any:
        """Through the graph manager, which holds the graphs where nothing is compiled."""
        return self.runner.cudagraph_manager.run_pw_graph(self.runner.model, inputs)

    def is_dummy(self, kwargs: dict[str, Any]) -> bool:
        """V2's dummy runs, of idle data-parallel ranks and of profiling, say so."""
        return bool(kwargs.get("dummy_run"))


def _check_state(state: Any) -> None:
    """Whether the model is given what :class:`StepBuffers` hold, and nothing else.

    A model may bring a state of its own that makes its inputs: n-grams of the tokens before, or
    embeddings of the last denoising step.
    """
    kind = type(state).__name__
    if kind not in KNOWN_STATES:
        raise UnknownVllmError(
            f"the model prepares its inputs in a way of its own ({kind}), which a probe does not "
            f"know: real steps are timed, nothing is probed"
        )
