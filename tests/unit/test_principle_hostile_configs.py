"""No config.json, whatever it holds, does anything but give a shape or a ShapeError."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_principle_models import (
    DEEPSEEK_V3,
    GEMMA_3_4B,
    GPT_OSS_20B,
    KNOWN_BILLIONS,
    LLAMA_3_8B,
    MIXTRAL_8X7B,
    QWEN_1_5_MOE_A2_7B,
    Config,
)
from test_principle_own_attention import (
    DEEPSEEK_V4_FLASH,
    GEMMA_4_26B,
    GEMMA_4_E2B,
    MIMO_V2_FLASH,
    MINIMAX_M3,
    STEP_3,
)

from vllm_nfp.principle import ModelShape, ShapeError, shape_from_config
from vllm_nfp.principle.families import FAMILIES, UNDESCRIBED

COMPRESSED: Config = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "int", "num_bits": 4, "group_size": 32},
            "input_activations": None,
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*"],
    "kv_cache_scheme": {"type": "float", "num_bits": 8},
}
GPTQ: Config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*mlp.*": {}}}
BASES: list[Config] = [
    *(config for config, _ in KNOWN_BILLIONS),
    DEEPSEEK_V4_FLASH,
    GEMMA_4_26B,
    GEMMA_4_E2B,
    MIMO_V2_FLASH,
    MINIMAX_M3,
    STEP_3,
    {**DEEPSEEK_V3, "quantization_config": COMPRESSED},
    {**LLAMA_3_8B, "quantization_config": GPTQ},
    {**MIXTRAL_8X7B, "moe_layers": [0, 1], "layer_types": ["full_attention"] * 32},
    {**QWEN_1_5_MOE_A2_7B, "mlp_only_layers": [1], "use_sliding_window": True},
    {"model_type": "new", **{k: v for k, v in LLAMA_3_8B.items() if k != "model_type"}},
]
EXTRA_FIELDS = (
    "layer_types",
    "mlp_layer_types",
    "mlp_only_layers",
    "moe_layers",
    "moe_layer_freq",
    "decoder_sparse_step",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "no_rope_layers",
    "head_dim",
    "text_config",
    "quantization_config",
    "compression_config",
    "tie_word_embeddings",
    "canvas_length",
    "block_size",
    "shared_expert_intermediate_size",
    "_name_or_path",
    "architectures",
    "attention_other_setting",
    "block_configs",
    "compress_ratios",
    "moe_layers_enum",
    "num_attention_heads_per_layer",
    "num_kv_shared_layers",
    "per_layer_config",
    "model_type",
)


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"text_config": value}
    return value


def copies(*values: Any) -> st.SearchStrategy[Any]:
    """One of the values, as a copy that later mutations may change."""
    return st.builds(lambda index: copy.deepcopy(values[index]), st.integers(0, len(values) - 1))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, -(10**5000), 1 << 24, (1 << 24) + 1]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, 4096.0, 1e308]),
    st.text(max_size=20),
    st.sampled_from(["", "4096", "\x1b[31m", "x" * 10_000, "re:(.*)*x", "fp8", "mxfp4"]),
    st.sampled_from([*FAMILIES, *UNDESCRIBED]),
    copies([], {}, [[]], [{}], {"a": {}}, (), b"x", object(), {1: 2}, COMPRESSED, GPTQ),
    st.builds(nested, st.sampled_from([3, 3000])),
    st.lists(st.one_of(st.integers(-2, 70), st.text(max_size=5), st.none()), max_size=5),
    st.builds(
        lambda kind, count: [kind] * count,
        st.sampled_from(["sliding_attention", "full_attention", "dense", "sparse", 0, 1, []]),
        st.integers(0, 70),
    ),
)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of every field of a config, nested ones too."""
    found = []
    for key, inner in value.items():
        found.append((*path, key))
        if isinstance(inner, dict) and len(path) < 5:
            found += places(inner, (*path, key))
    return found


def put(config: Config, path: tuple[str, ...], value: Any, remove: bool) -> None:
    for key in path[:-1]:
        config = config[key]
        if not isinstance(config, dict):
            return
    if remove:
        config.pop(path[-1], None)
    else:
        config[path[-1]] = value


@st.composite
def mutated(draw: st.DrawFn) -> Config:
    config = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 4))):
        here = places(config) if draw(st.booleans()) else []
        path = draw(st.sampled_from(here or [(name,) for name in EXTRA_FIELDS]))
        put(config, path, draw(JUNK), draw(st.integers(0, 4)) == 0)
    return config


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "weight_bits": st.one_of(
            st.sampled_from([16, 8, 4, 0, -1, math.nan, math.inf, 10**400]), st.floats()
        ),
        "kv_bits": st.one_of(st.sampled_from([None, 16, 8, 0, math.nan, 10**400]), st.floats()),
        "tensor_parallel_size": st.integers(-1, 20),
        "data_parallel_size": st.integers(-1, 20),
        "expert_parallel": st.booleans(),
        "assume_dense": st.booleans(),
    },
)


def check_shape(shape: ModelShape) -> None:
    """Sizes of a rank are possible ones, and the parts add up."""
    gemms = [*shape.projection_gemms, shape.lm_head_gemm]
    gemms += shape.dense_ffn_gemms if shape.num_dense_layers else ()
    gemms += (*shape.expert_gemms, *shape.shared_gemms) if shape.num_moe_layers else ()
    for gemm in gemms:
        assert gemm.inputs > 0
        assert gemm.outputs > 0
        assert 0 < gemm.weight_traffic < math.inf
    assert shape.attention.kv_heads > 0
    assert shape.attention.group > 0
    if shape.num_attention_layers is None:
        assert shape.num_dense_layers + shape.num_moe_layers == shape.num_layers
    assert shape.local_experts * shape.expert_parallel_size >= shape.num_experts
    assert shape.total_parameters > 0


@settings(max_examples=500, deadline=None)
@given(config=mutated(), options=OPTIONS)
def test_any_config_gives_a_shape_or_one_sentence(config: Config, options: Config) -> None:
    try:
        shape = shape_from_config(config, **options)
    except ShapeError as refusal:
        message = str(refusal)
        assert "\n" not in message
        assert "\x1b" not in message
        assert len(message) < 1500
    else:
        check_shape(shape)


@pytest.mark.parametrize("config", [None, [], "llama", 3, {}, {1: 2}, {"text_config": {}}])
def test_no_config_at_all(config: Any) -> None:
    with pytest.raises(ShapeError):
        shape_from_config(config)


@pytest.mark.parametrize("base", [LLAMA_3_8B, DEEPSEEK_V3, GPT_OSS_20B, GEMMA_3_4B])
def test_every_field_alone(base: Config) -> None:
    """Each field with each kind of wrong value, which a random search may miss."""
    wrong = (None, True, -1, 0, 10**400, math.nan, 1.5, "4096", "", [], {}, [[]], nested(3000))
    refused = 0
    for path in places(base):
        for value in wrong:
            config = copy.deepcopy(base)
            put(config, path, value, remove=False)
            try:
                check_shape(shape_from_config(config))
            except ShapeError:
                refused += 1
    assert refused > len(places(base))
