"""Latent attention to the tokens that an indexer picks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vllm_nfp import predict
from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.hardware import hardware_by_name
from vllm_nfp.principle.model_facts import model_facts
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.sparse_attention import gathered_terms
from vllm_nfp.principle.step import Step
from vllm_nfp.types import Module

GLM_5: dict[str, Any] = {
    "model_type": "glm_moe_dsa",
    "first_k_dense_replace": 3,
    "head_dim": 64,
    "hidden_size": 6144,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 78,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "vocab_size": 154880,
}


def test_published_parameters() -> None:
    assert shape_from_config(GLM_5).total_parameters / 1e9 == pytest.approx(744, rel=0.005)


def test_some_layers_use_the_indexer_of_another() -> None:
    whole = shape_from_config(GLM_5)
    assert whole.indexer is not None and whole.indexer.layers == 78
    listed = {**GLM_5, "indexer_types": (["full"] + ["shared"] * 2) * 26}
    sometimes = shape_from_config(listed)
    assert sometimes.indexer is not None and sometimes.indexer.layers == 26
    # Layers 0 to 2 and then every fourth.
    by_rule = {**GLM_5, "index_topk_freq": 4, "index_skip_topk_offset": 3}
    ruled = shape_from_config(by_rule)
    assert ruled.indexer is not None and ruled.indexer.layers == 21
    own = 2048 * 32 * 128 + 6144 * (128 + 32)
    assert whole.total_parameters - sometimes.total_parameters == 52 * own
    with pytest.raises(ShapeError, match="indexer_types has 'odd'"):
        shape_from_config({**GLM_5, "indexer_types": ["odd"] * 78})


def test_facts_count_both_caches() -> None:
    facts = model_facts(shape_from_config(GLM_5))
    assert facts.kv_bytes_per_token == 78 * (576 * 2 + 128 + 4)
    assert facts.layers["sparse_attention"] == 78


def test_positions_share_some_of_the_tokens_that_they_pick() -> None:
    hardware, heads = hardware_by_name("H200"), shape_from_config(GLM_5).attention
    cached, counts = np.array([4096.0, 4096.0, 4096.0]), np.array([1.0, 2.0, 50.0])
    part = shape_from_config(GLM_5).attentions[0][1]
    one, two, many = gathered_terms(hardware, heads, part, 1, cached, counts)["memory"]
    assert two / one == pytest.approx(1.5)
    assert many / one == pytest.approx(2.0)
    short = gathered_terms(hardware, heads, part, 1, cached / 4, counts)["memory"]
    assert short[0] == short[2], "all are picked"


def test_a_long_context_costs_scores_alone() -> None:
    found = predict(GLM_5, "H200", (8,), (4096,), tensor_parallel_size=8, max_positions=4)
    counts = np.arange(1.0, 3.0)

    def seconds(context: int) -> float:
        step = Step(found.shape, found.target, Serving("FLASH_ATTN_MLA"), 8, context, counts)
        return float(step.attention().seconds()[0])

    scored = 78 * 8 * (128 + 4) * 65536 / found.target.hardware.memory_bytes_per_second
    gathered = 78 * 8 * 576 * 2 * 65536 / found.target.hardware.memory_bytes_per_second
    grown = seconds(131072) - seconds(65536)
    assert scored < grown < gathered / 2
    whole = found.cell(Module.MODEL, 8, 4096)
    assert sum(part[0] for part in whole.parts.values()) == pytest.approx(whole.seconds[0])
    assert any("an indexer picks" in sentence for sentence in found.shape.assumptions)
