"""Models that are known to be prepared or cached in a way of their own, before they are loaded.

When a model is loaded, the class that prepares its inputs and the kinds of its KV caches are looked
at themselves (:mod:`vllm_nfp.adapter.runner_v2`, :mod:`vllm_nfp.adapter.bindings`). This list lets
the doctor say so of a command line.
"""

from __future__ import annotations

from typing import Any

INPUTS = frozenset(
    {
        "DeepseekV41ForCausalLM",
        "DiffusionGemmaForBlockDiffusion",
        "LongcatFlashNgramForCausalLM",
        "Qwen4ExpForCausalLM",
        "Qwen4ExpForConditionalGeneration",
    }
)
"""Architectures whose ``get_model_state_cls`` names a class that a probe does not follow."""
CACHES = frozenset(
    {
        "Glm5NextForCausalLM",
        "Glm5NextForConditionalGeneration",
        "Step5ForCausalLM",
        "Step5ForConditionalGeneration",
    }
)
"""Architectures that ask for a KV cache in which a probe cannot address a token: a ring."""


def architecture_of(config: Any) -> str:
    """The first architecture that the model's config names."""
    return next(iter(config.model_config.hf_config.architectures or ()), "of an unknown name")


def prepares_its_inputs(config: Any) -> bool:
    """Whether the model makes inputs of its own beside token ids."""
    return architecture_of(config) in INPUTS


def caches_otherwise(config: Any) -> bool:
    """Whether the model keeps its own kind of KV cache."""
    return architecture_of(config) in CACHES
