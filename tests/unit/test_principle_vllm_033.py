"""Families that vLLM 0.33 added: weights counted by hand from what its model code allocates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vllm_nfp import predict
from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.memory import cache_bytes
from vllm_nfp.principle.model_facts import model_facts
from vllm_nfp.types import Module

Config = dict[str, Any]

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
# The defaults of the class in transformers, which are those of Kolibri-1.
KOLIBRI_1: Config = {
    "model_type": "kolibri1",
    "hidden_size": 2560,
    "num_hidden_layers": 50,
    "num_attention_heads": 48,
    "num_local_experts": 384,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 512,
    "vocab_size": 128000,
}
# The defaults of the class in vLLM 0.33, with other kinds of layers.
BEAM: Config = {
    "model_type": "beam",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "layer_types": ([SLIDING] * 3 + [FULL]) * 6,
    "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 22,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 151936,
}
FLINT: Config = {
    "model_type": "flint",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 49,
    "num_attention_heads": 32,
    "layer_types": [FULL] + ([SLIDING] * 3 + [FULL]) * 12,
    "mlp_only_layers": [0],
    "num_experts": 256,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 512,
    "vocab_size": 150144,
}
# Sizes of Qwen3-Next's class with the heads and the vocabulary of Alice AI.
ALICE_AI: Config = {
    "model_type": "alice_ai",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "layer_types": ([LINEAR] * 3 + [FULL]) * 12,
    "linear_num_key_heads": 32,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "block_attn_res_block_size": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 129024,
}
DOMYN_EDGE: Config = {
    "model_type": "domynedge",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_sizes": [256, 256, *[64, 64, 64, 256] * 8, 256, 256],
    "window_sizes": [[-1, 0]] * 2 + [[1024, 0], [1024, 0], [1024, 0], [-1, 0]] * 8 + [[-1, 0]] * 2,
    "vocab_size": 115269,
}
STEP_5: Config = {
    "model_type": "step5",
    "hidden_size": 4096,
    "intermediate_size": 13824,
    "num_hidden_layers": 92,
    "num_nextn_predict_layers": 3,
    "num_attention_heads": 64,
    "num_attention_groups": 4,
    "head_dim": 192,
    "use_head_wise_attn_gate": True,
    "layer_types": ([SLIDING] * 3 + [FULL]) * 23 + [SLIDING] * 3,
    "sliding_window": 512,
    "attention_other_setting": {
        "attention_type": SLIDING,
        "num_attention_heads": 96,
        "num_attention_groups": 8,
        "head_dim": 128,
    },
    "sparse_config": {
        "enabled": True,
        "proxy_dim": 256,
        "sparse_indexer_num_heads": 16,
        "topk": 512,
        "region_block_size": 8,
    },
    "moe_layers_enum": ",".join(map(str, range(3, 92))),
    "moe_num_experts": 352,
    "moe_top_k": 8,
    "moe_intermediate_size": 1536,
    "share_expert_dim": 1536,
    "vocab_size": 128896,
}


def block(hidden: int, width: int) -> int:
    """Weights of a gated feed-forward block."""
    return 3 * hidden * width


def attention(hidden: int, heads: int, kv_heads: int, width: int, gate: int = 0) -> int:
    """Weights of query, key, value and output projections, and of a gate's columns by head."""
    return hidden * (heads * (2 * width + gate) + 2 * kv_heads * width)


def test_kolibri_1_has_the_published_weights() -> None:
    """The published count is 78 103 074 560, of which 546 560 are norms and router biases."""
    layer = attention(2560, 48, 4, 128) + 385 * block(2560, 512) + 2560 * 384
    shape = shape_from_config(KOLIBRI_1)
    assert shape.total_parameters == 50 * layer + 2 * 128000 * 2560
    norms = 50 * (4 * 2560 + 2 * 128 + 384) + 2560
    assert shape.total_parameters + norms == 78_103_074_560
    assert (shape.num_sliding_layers, shape.sliding_window) == (40, 513)
    assert not shape.shared_expert_gate


def test_beam_gates_the_output_of_every_head() -> None:
    attending = 24 * attention(2048, 32, 4, 64, gate=64)
    dense, sparse = 2 * block(2048, 6144), 22 * (128 * block(2048, 768) + 2048 * 128)
    shape = shape_from_config(BEAM)
    assert shape.total_parameters == attending + dense + sparse + 2 * 151936 * 2048
    assert shape.num_sliding_layers == 18
    slides = shape_from_config({**BEAM, "layer_types": None, "mlp_layer_types": None})
    assert (slides.num_sliding_layers, slides.num_moe_layers) == (24, 24)
    assert any("kernels of its own" in sentence for sentence in shape.assumptions)


def test_flint_has_a_shared_expert_without_a_gate() -> None:
    attending = 49 * attention(2048, 32, 4, 128)
    sparse = 48 * (256 * block(2048, 512) + block(2048, 1024) + 2048 * 256)
    shape = shape_from_config(FLINT)
    expected = attending + block(2048, 6144) + sparse + 2 * 150144 * 2048
    assert shape.total_parameters == expected
    assert (shape.num_sliding_layers, shape.sliding_window) == (36, 513)
    # Without a list, no layer of the class slides.
    assert shape_from_config({**FLINT, "layer_types": None}).num_sliding_layers == 0
    assert shape_from_config({**FLINT, "use_sliding_window": False}).num_sliding_layers == 0


def test_alice_ai_has_delta_attention_and_experts_in_every_layer() -> None:
    inner = 32 * 128
    delta = 2048 * (3 * inner + 32 + 2 * 128) + 2 * 128 * inner + inner * 2048
    full = attention(2048, 16, 2, 256, gate=256)
    # Each layer reads the residuals twice by one column; the first does once, and the end once.
    layer = 513 * block(2048, 512) + 2048 * 512 + 2048 + 2 * 2048
    shape = shape_from_config(ALICE_AI)
    expected = 36 * delta + 12 * full + 48 * layer + 2 * 129024 * 2048
    assert shape.total_parameters == expected
    # The published files take 162.6 GB, with one layer that drafts and what narrows its input.
    drafting = layer + attention(2048, 16, 2, 256, gate=256) + 2 * 2048 * 2048
    assert 2 * (expected + drafting) / 1e9 == pytest.approx(162.6, rel=0.001)
    facts = model_facts(shape)
    assert facts.layers == {"full_attention": 12, "linear_attention": 36, "moe_ffn": 48}
    # A state of 32-bit numbers, and three taps of the convolutions of queries, keys and values.
    assert facts.state_bytes_per_sequence == 36 * (32 * 128 * 128 * 4 + 3 * 3 * inner * 2)
    sparser = {**ALICE_AI, "decoder_sparse_step": 2, "mlp_only_layers": [0]}
    assert shape_from_config(sparser).total_parameters == expected
    assert not any("not understood" in sentence for sentence in shape.assumptions)
    with pytest.raises(ShapeError, match="linear_num_value_heads of a alice_ai config must be 32"):
        shape_from_config({**ALICE_AI, "linear_num_value_heads": 16})


def test_alice_ai_may_keep_its_delta_attention_in_16_bits() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    whole = shape_from_config({**ALICE_AI, "quantization_config": fp8})
    assert (whole.recurrent_weight_bytes, whole.weight_bytes) == (None, 1)
    kept = {**fp8, "modules_to_not_convert": ["linear_attn"]}
    shape = shape_from_config({**ALICE_AI, "quantization_config": kept})
    assert (shape.recurrent_weight_bytes, shape.weight_bytes) == (2, 1)


def test_domyn_edge_has_heads_and_windows_of_each_layer() -> None:
    wide, narrow = attention(2560, 32, 8, 256), attention(2560, 32, 8, 64)
    shape = shape_from_config(DOMYN_EDGE)
    expected = 12 * wide + 24 * narrow + 36 * block(2560, 9728) + 115269 * 2560
    assert shape.total_parameters == expected
    assert [(part.layers, part.head_dim, part.window) for part in shape.attention_kinds] == [
        (12, 256, None),
        (24, 64, 1025),
    ]
    # The token itself counts beside the 1024 before it.
    assert cache_bytes(shape, 1, 99_999) == 4 * 8 * (12 * 256 * 100_000 + 24 * 64 * 1025)


def test_domyn_edge_by_the_overrides_of_single_layers() -> None:
    """As transformers writes them: only layers that differ from the config's own size."""
    sizes = enumerate(DOMYN_EDGE["head_sizes"])
    own = {str(index): {"head_dim": size} for index, size in sizes if size != 256}
    rest = {name: value for name, value in DOMYN_EDGE.items() if name != "head_sizes"}
    read = shape_from_config({**rest, "head_dim": 256, "per_layer_config": own})
    assert model_facts(read) == model_facts(shape_from_config(DOMYN_EDGE))
    with pytest.raises(ShapeError, match="lacks the head size of some layer"):
        shape_from_config({**rest, "per_layer_config": own})
    with pytest.raises(ShapeError, match="lacks window_sizes"):
        shape_from_config({**DOMYN_EDGE, "window_sizes": None})


def test_windows_of_several_lengths_are_kinds_of_layers() -> None:
    windows = [[511, 0], [1023, 0]] * 18
    shape = shape_from_config({**DOMYN_EDGE, "head_sizes": [80] * 36, "window_sizes": windows})
    assert {part.window: part.layers for part in shape.attention_kinds} == {512: 18, 1024: 18}
    with pytest.raises(ShapeError, match="window_sizes must have a pair of whole numbers, not 5"):
        shape_from_config({**DOMYN_EDGE, "window_sizes": [5] * 36})


def test_step_5_picks_regions_in_layers_without_a_window() -> None:
    indexer = 4096 * (16 * 256 + 2 * 256 + 16)
    full = attention(4096, 64, 4, 192, gate=1) + indexer
    slides = attention(4096, 96, 8, 128, gate=1)
    sparse = 352 * block(4096, 1536) + block(4096, 1536) + 4096 * 352
    shape = shape_from_config(STEP_5)
    expected = 23 * full + 69 * slides + 3 * block(4096, 13824) + 89 * sparse
    assert shape.total_parameters == expected + 2 * 128896 * 4096
    (_, picking), (_, window) = shape.attentions
    assert (picking.layers, picking.read(100_000)) == (23, 4096)
    assert (window.layers, window.read(100_000)) == (69, 512)
    # Keys and values of 4 heads, and one summary of 256 bytes for eight tokens.
    cached = 23 * (4 * 2 * 192 * 2 * 80_000 + 256 * 10_000)
    assert cache_bytes(shape, 1, 79_999) == cached + 69 * 8 * 2 * 128 * 2 * 512
    assert not any("not understood" in sentence for sentence in shape.assumptions)


def test_step_5_without_its_indexer_and_what_is_refused() -> None:
    off = {**STEP_5["sparse_config"], "enabled": False}
    dense = shape_from_config({**STEP_5, "sparse_config": off})
    assert dense.indexer is None
    assert not any(part.sparse for _, part in dense.attentions)
    # Without a list, all layers but the first have experts.
    rest = {name: value for name, value in STEP_5.items() if name != "moe_layers_enum"}
    assert shape_from_config(rest).num_moe_layers == 91
    for name in ("layer_types", "sliding_window", "sparse_config", "share_expert_dim"):
        with pytest.raises(ShapeError, match=f"lacks {name}"):
            shape_from_config({**STEP_5, name: None})
    with pytest.raises(ShapeError, match="use_head_wise_attn_gate of a step5 config must be True"):
        shape_from_config({**STEP_5, "use_head_wise_attn_gate": False})
    other = {**STEP_5["attention_other_setting"], "attention_type": FULL}
    message = "attention_other_setting.attention_type of a step5 config must be 'sliding_attention'"
    with pytest.raises(ShapeError, match=message):
        shape_from_config({**STEP_5, "attention_other_setting": other})
    with pytest.raises(ShapeError, match="layer_types has 94 entries for 92 layers"):
        shape_from_config({**STEP_5, "layer_types": STEP_5["layer_types"][:94]})


def test_layers_that_run_several_times_are_refused() -> None:
    """Dory of vLLM 0.33; what such layers cost is not described."""
    dory = {
        "model_type": "dory",
        "hidden_size": 2560,
        "intermediate_size": 7168,
        "num_hidden_layers": 72,
        "num_attention_heads": 16,
        "vocab_size": 131072,
        "n_recurrent_loops": 4,
    }
    with pytest.raises(ShapeError, match="n_recurrent_loops 4 speaks of layers that run several"):
        shape_from_config(dory, assume_dense=True)


def test_a_value_that_is_not_described_says_what_to_do() -> None:
    with pytest.raises(ShapeError, match=r"describes no other\. Measure it on a running server"):
        shape_from_config({**ALICE_AI, "linear_value_head_dim": 64})


@pytest.mark.parametrize(
    "config",
    [KOLIBRI_1, BEAM, FLINT, ALICE_AI, DOMYN_EDGE, STEP_5],
    ids=lambda config: str(config["model_type"]),
)
def test_parts_of_a_step_add_up(config: Config) -> None:
    found = predict(config, "H200", (1,), (8192,), tensor_parallel_size=4, max_positions=4)
    whole = found.cell(Module.MODEL, 1, 8192)
    assert np.isfinite(whole.seconds).all()
    assert sum(part[0] for part in whole.parts.values()) == pytest.approx(whole.seconds[0])
