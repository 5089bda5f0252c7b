"""The worker extension of benchmarks.overhead.switched where a head of dummy weights drafts."""

from __future__ import annotations

from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

from benchmarks.overhead.worker_extension import SwitchedHooks

# A trained EAGLE-3 head has an LM head of its own; without it vLLM would share the target's.
Eagle3LlamaForCausalLM.has_own_lm_head = True


class SwitchedDrafts(SwitchedHooks):
    """The same methods."""
