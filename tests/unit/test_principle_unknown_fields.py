"""Fields that change the cost are read, refused or named, whatever an unknown family calls them."""

from __future__ import annotations

import pytest
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, Config

from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.families import named_families

NEW: Config = {**LLAMA_3_8B, "model_type": "new"}


def assumed(config: Config) -> tuple[str, ...]:
    return shape_from_config(config, assume_dense=True).assumptions


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("activation", "relu", "without a gate"),
        ("act_fn", "gelu_new", "without a gate"),
        ("use_glu", False, "without a gate"),
        ("gated_mlp", False, "without a gate"),
        ("local_window", 512, "windowed"),
        ("sliding_window_size", 512, "windowed"),
        ("attn_types", ["local", "global"], "windowed"),
        ("attention_type", "sliding", "windowed"),
        ("layers_block_type", ["mamba"], "recurrent"),
        ("layer_pattern", "MMA", "recurrent"),
        ("full_attention_interval", 4, "recurrent"),
        ("linear_key_head_dim", 128, "recurrent"),
        ("nsa_block_size", 64, "some tokens"),
        ("moba_topk", 4, "some tokens"),
        ("share_kv_layers", 4, "share caches"),
        ("yoco", True, "share caches"),
        ("multi_query_attention", True, "share caches"),
        ("num_recurrence", 4, "several times"),
        ("universal_steps", 3, "several times"),
        ("hyper_connection_num", 4, "beside"),
        ("memory_layers", [3], "beside"),
        ("attn_gate", True, "a gate of"),
        ("attention_output_gate", True, "a gate of"),
    ],
)
def test_a_dense_reading_is_refused(field: str, value: object, kind: str) -> None:
    with pytest.raises(ShapeError, match=f"{field} .* speaks of .*{kind}"):
        shape_from_config({**NEW, field: value}, assume_dense=True)


@pytest.mark.parametrize("field", ["num_kv_heads", "n_head_kv", "multi_query_group_num"])
def test_kv_heads_under_another_name_are_not_taken_for_attention_heads(field: str) -> None:
    without = {name: value for name, value in NEW.items() if name != "num_key_value_heads"}
    with pytest.raises(ShapeError, match=f"{field} 8 speaks of KV heads under a name of its own"):
        shape_from_config({**without, field: 8}, assume_dense=True)
    assert shape_from_config({**NEW, field: 8}, assume_dense=True).num_kv_heads == 8


def test_other_fields_are_named_and_those_of_llama_are_not() -> None:
    plain = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 1, "attention_bias": False}
    assert len(assumed({**NEW, **plain})) == 1
    named = assumed({**NEW, **plain, "mlp_ratio": 4, "word_embed_proj_dim": 512, "odd\x1b": 1})[1]
    assert named == (
        "Not understood in its config, and perhaps of cost: mlp_ratio, word_embed_proj_dim, odd?."
    )
    many = {f"field_{index}": 1 for index in range(15)}
    assert assumed({**NEW, **many})[1].endswith("field_11 and 3 more.")


def test_a_refusal_without_sizes_does_not_recommend_a_flag_that_is_refused_too() -> None:
    config = {name: value for name, value in NEW.items() if name != "intermediate_size"}
    for assume in (False, True):
        with pytest.raises(ShapeError, match="lacks intermediate_size, so that it") as refused:
            shape_from_config(config, assume_dense=assume)
        assert "assume" not in str(refused.value)


@pytest.mark.parametrize("name", ["language_model", "lm_config", "model_config"])
def test_the_only_part_with_the_sizes_of_a_language_model_is_read(name: str) -> None:
    tower = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    wrapped = {"model_type": "new_vl", name: LLAMA_3_8B, "vision_config": tower}
    shape = shape_from_config(wrapped)
    assert shape.total_parameters == shape_from_config(LLAMA_3_8B).total_parameters
    assert shape.assumptions == ("Sizes are those of the language model, without vision_config.",)


def test_an_empty_part_is_no_model_of_its_class_defaults() -> None:
    shape = shape_from_config({**LLAMA_3_8B, "text_config": {}})
    assert shape.intermediate_size == 14336


def test_encoders_beside_a_nested_language_model_are_named() -> None:
    thinker = {"text_config": LLAMA_3_8B, "audio_config": {"d_model": 1}}
    shape = shape_from_config({"model_type": "new_omni", "thinker_config": thinker})
    assert shape.assumptions == ("Sizes are those of the language model, without audio_config.",)


@pytest.mark.parametrize("family", ["llama", "olmo2", "granite"])
def test_vllm_slides_all_layers_of_any_family_with_a_window(family: str) -> None:
    config = {**LLAMA_3_8B, "model_type": family, "sliding_window": 1024}
    shape = shape_from_config(config)
    assert (shape.sliding_window, shape.num_sliding_layers) == (1024, 32)
    assert shape_from_config({**config, "use_sliding_window": False}).num_sliding_layers == 0
    listed = {**config, "layer_types": ["full_attention"] * 32}
    assert shape_from_config(listed).num_sliding_layers == 0


def test_a_window_says_nothing_of_latent_attention() -> None:
    shape = shape_from_config({**DEEPSEEK_V3, "sliding_window": 1024})
    assert shape.num_sliding_layers == 0


def test_an_indexer_is_read_under_the_name_of_deepseek_v3() -> None:
    """As vLLM does, which asks for the field and not for the family."""
    indexed = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}
    shape = shape_from_config({**DEEPSEEK_V3, **indexed})
    assert shape.indexer is not None
    assert (shape.indexer.layers, shape.indexer.top_k) == (61, 2048)
    assert shape_from_config(DEEPSEEK_V3).indexer is None
    assert "deepseek_v32" in named_families()


def test_flags_say_which_layers_have_experts() -> None:
    """K-EXAONE 236B lists them as true and false."""
    config = {
        "model_type": "exaone_moe",
        "hidden_size": 6144,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": 48,
        "is_moe_layer": [False] + [True] * 47,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 12,
        "sliding_window": 128,
        "vocab_size": 153600,
        "tie_word_embeddings": False,
    }
    shape = shape_from_config(config)
    assert (shape.num_dense_layers, shape.num_moe_layers) == (1, 47)
    assert shape.total_parameters == pytest.approx(236e9, rel=0.03)
