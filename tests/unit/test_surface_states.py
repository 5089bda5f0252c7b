"""Layers with a recurrent state on the cost surface."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_surface import CONFIG, POSITIONS, ask, condition

from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.step import Step
from vllm_nfp.surface import RECORDED, Observations, Pool, predicted_prior
from vllm_nfp.surface.parts import Part
from vllm_nfp.types import Module, Shape


def test_layers_with_a_state_are_a_part_of_their_own_that_knows_no_context() -> None:
    """What is measured at one context answers at the others, and moves the whole step."""
    config = {
        **CONFIG, "model_type": "qwen3_5_text", "full_attention_interval": 4,
        "linear_num_value_heads": 32, "linear_num_key_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    }  # fmt: skip
    shape = shape_from_config(config)
    prior = predicted_prior(shape, target_of("H100-SXM"), Serving(), 32)
    cell = prior(8, 1024)
    assert Module.LINEAR_ATTENTION in cell.modules
    step = Step(shape, target_of("H100-SXM"), Serving(), 8, 1024, np.arange(1.0, 33.0))
    whole = sum(cost.seconds() for cost in step.parts().values())
    assert cell.seconds.sum(axis=0) - cell.seconds[Part.LAUNCH] == pytest.approx(whole)
    assert shape.linear_attention is not None
    assert cell.layers is not None
    assert cell.layers[Module.LINEAR_ATTENTION] == shape.linear_attention.layers
    pool = Pool()
    expected_ratio = float(np.diff(cell.log_seconds(Module.LINEAR_ATTENTION)[[0, 7]])[0])
    for _ in range(6):
        many = {Module.LINEAR_ATTENTION: math.exp(expected_ratio + 0.1)}
        pool.add_pair(Shape(8, 1024, 8), many, {Module.LINEAR_ATTENTION: 1.0}, 0.0)
    found = condition(prior, RECORDED, pool.compressed(0.0))
    for context in (1024, 16384):
        at = ask(prior, found, Module.LINEAR_ATTENTION, 8, context)
        assert at.log_ratio[POSITIONS.index(8)] == pytest.approx(expected_ratio + 0.1, abs=0.02)
    before = ask(prior, condition(prior, RECORDED, Observations()), Module.MODEL, 8, 1024)
    after = ask(prior, found, Module.MODEL, 8, 1024)
    at = POSITIONS.index(8)
    assert after.log_ratio[at] > before.log_ratio[at]
