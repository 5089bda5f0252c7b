"""Every family that transformers builds, at its class's sizes and at others, counts the same.

Transformers' modules on the meta device are the independent count: no weight is made.
"""

from __future__ import annotations

import functools
import random
import zlib
from typing import Any

import pytest

from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.families import FAMILIES

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
auto = pytest.importorskip("transformers.models.auto.modeling_auto")

Config = dict[str, Any]
SIZES: Config = {
    "hidden_size": (512, 1024, 1536),
    "num_hidden_layers": (4, 6, 8),
    "num_attention_heads": (8, 16),
    "num_key_value_heads": (1, 2, 4, 8),
    "intermediate_size": (1024, 2816),
    "vocab_size": (1000, 32000),
    "head_dim": (64, 96, 128),
    "tie_word_embeddings": (True, False),
    "moe_intermediate_size": (256, 512),
    "num_experts": (16, 24),
    "num_local_experts": (16, 24),
    "n_routed_experts": (16, 24),
    "n_shared_experts": (1, 2),
    "first_k_dense_replace": (0, 1, 2),
    "sliding_window": (None, 64),
    "use_sliding_window": (True, False),
    "max_window_layers": (2, 4),
    "q_lora_rank": (None, 96),
    "v_head_dim": (64, 96),
    "global_head_dim": (128, 256),
    "num_kv_shared_layers": (0, 2),
    "hidden_size_per_layer_input": (0, 64),
    "attention_k_eq_v": (True, False),
    "use_double_wide_mlp": (True, False),
    "mlp_only_layers": ([], [1]),
    "linear_num_value_heads": (8, 16),
}
"""Values that a case may take of the fields that a class has."""
NO_MATRICES = (
    "conv1d",
    "conv.conv",
    "A_log",
    "position_bias",
    "rel_logits",
    "sconv",
    "embed_vision",
    "vision_tower",
    "multi_modal_projector",
)
"""Taps of convolutions, decays, learned offsets; towers of other modalities."""
ELSEWHERE = {
    # Weights for experts that do nothing, which the checkpoint lacks.
    "longcat_flash",
    # Shared experts even where num_shared_expert is missing; vLLM has them as it says.
    "hunyuan_v1_moe",
    # Wrappers, or encoders of other modalities within the decoder's class.
    "gemma3",
    "fuyu",
    "phi4_multimodal",
    # Sizes of sliding layers that the class keeps to itself.
    "mimo_v2_flash",
    # An LM head of its own even where the config ties it.
    "nemotron_h",
    # As many shared experts as one, whatever the config says.
    "deepseek_v4",
    # Small routers' two more columns.
    "inkling_text",
}
"""Families of which transformers builds something else than vLLM at some sizes."""
KNOWN = sorted(name for name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in FAMILIES)
CASES = 3


def counted(live: Any) -> int:
    """Weights of all matrices."""
    with torch.device("meta"):
        return matrices(transformers.AutoModelForCausalLM.from_config(live))


def matrices(model: Any) -> int:
    """Weights of a module's matrices."""
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() >= 2
        and not name.endswith("bias")
        and not any(part in name for part in NO_MATRICES)
    )


def drawn(name: str, case: int) -> Config:
    """Sizes of a case."""
    try:
        fields = transformers.AutoConfig.for_model(name).to_dict()
    except Exception:
        pytest.skip("transformers has no defaults for it")
    generator = random.Random(zlib.crc32(f"{name} {case}".encode()))
    return {
        field: generator.choice(values)
        for field, values in SIZES.items()
        if field in fields and generator.random() < 0.6
    }


@functools.cache
def at_the_class_sizes(name: str) -> tuple[int, int] | None:
    return read_and_counted(name, {})


def read_and_counted(name: str, sizes: Config) -> tuple[int, int] | None:
    """Parameters by us and by transformers; None if either has no model of these sizes."""
    try:
        live = transformers.AutoConfig.for_model(name, **sizes)
        expected = counted(live)
    except Exception:
        return None
    try:
        return shape_from_config(live.to_dict()).total_parameters, expected
    except ShapeError as refusal:
        unusable = ("does not divide", "lacks", "must be an object", "is above", "must be a whole")
        assert any(words in str(refusal) for words in unusable), str(refusal)
        return None


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_those_of_the_model(name: str) -> None:
    cases = range(1, 1 if name in ELSEWHERE else CASES)
    found = [read_and_counted(name, drawn(name, case)) for case in cases]
    if name not in ELSEWHERE:
        found.append(at_the_class_sizes(name))
    for read, expected in filter(None, found):
        assert read == pytest.approx(expected, rel=1e-3)


def test_most_families_have_been_compared() -> None:
    """At its class's sizes, every family but few is read and counted the same."""
    same = 0
    for name in KNOWN:
        pair = None if name in ELSEWHERE else at_the_class_sizes(name)
        same += pair is not None and pair[0] == pytest.approx(pair[1], rel=1e-3)
    assert same >= 80


@pytest.mark.parametrize("name", ["deepseek_v4", "inkling_text", "mimo_v2_flash", "nemotron_h"])
def test_unlike_ones_are_read_at_the_sizes_of_their_class(name: str) -> None:
    pair = at_the_class_sizes(name)
    assert pair is not None
    assert pair[0] == pytest.approx(pair[1], rel=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "cosmos3_edge_text",
        "glm4v_text",
        "glm5_next_text",
        "glm_ocr_text",
        "mistral4",
        "muse_glimmer_text",
        "qwen2_5_vl_text",
        "qwen2_vl_text",
        "qwen3_vl_moe_text",
        "qwen3_vl_text",
    ],
)
def test_language_models_of_several_modalities(name: str) -> None:
    live = transformers.AutoConfig.for_model(name)
    with torch.device("meta"):
        body = transformers.AutoModel.from_config(live)
    shape = shape_from_config(live.to_dict())
    head = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    assert shape.total_parameters == pytest.approx(matrices(body) + head, rel=1e-6)
