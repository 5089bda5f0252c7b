"""What vLLM serves for text generation, by the names of its own registry, and what is read."""

from __future__ import annotations

import pytest
from registry_033 import NAMES

from vllm_nfp.principle.families import BY_CLASS, FAMILIES, UNDESCRIBED
from vllm_nfp.principle.families.nested import NESTED_SIZES

registry = pytest.importorskip("vllm.model_executor.models.registry")
transformers = pytest.importorskip("transformers")

WRAPPERS = {
    "Emu3ForConditionalGeneration",
    "HunYuanVLForConditionalGeneration",
    "InklingForConditionalGeneration",
    "VibeVoiceAsrForConditionalGeneration",
}
"""Models of several modalities, which are read by the config of their language model."""
NOT_READ = {
    # Layers that run several times.
    "DoryForCausalLM",
    "HrmTextForCausalLM",
    "IQuestLoopCoderForCausalLM",
    # Experts or heads that differ from layer to layer in ways of their own.
    "NemotronHPuzzleForCausalLM",
    "PanguProMoEV2ForCausalLM",
    "Zamba2ForCausalLM",
    # N-gram tables, indexers and several residual streams at once.
    "Qwen4ExpForCausalLM",
}


def served() -> set[str]:
    return {*registry._TEXT_GENERATION_MODELS, *registry._TRANSFORMERS_SUPPORTED_MODELS}


@pytest.mark.parametrize("names", [served(), NAMES], ids=["installed", "0.33"])
def test_95_percent_of_the_registry_is_read(names: set[str]) -> None:
    read = {name for name in names if name in BY_CLASS or name in WRAPPERS}
    assert names - read == NOT_READ & names
    assert len(read) / len(names) >= 0.95


def test_every_class_leads_to_a_family() -> None:
    assert set(BY_CLASS.values()) <= {*FAMILIES, *UNDESCRIBED}


@pytest.mark.parametrize("name", NESTED_SIZES)
def test_sizes_that_a_part_may_leave_out_are_those_of_its_class(name: str) -> None:
    live = transformers.AutoConfig.for_model(name).to_dict()
    sizes = NESTED_SIZES[name]
    assert {field: live[field] for field in sizes} == sizes
