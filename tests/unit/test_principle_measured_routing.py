"""The routing that measured times of experts show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_principle_models import LLAMA_3_8B, QWEN_3_30B_A3B

from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.measured_routing import RoutingError, measured_skew
from vllm_nfp.principle.step import Step
from vllm_nfp.types import Module

QWEN, TARGET = shape_from_config(QWEN_3_30B_A3B), target_of("H100-SXM")
POSITIONS = (1, 2, 4, 8, 16)


def ratios(skew: float, noise: float) -> dict[tuple[int, int], float]:
    """t(N)/t(1) of a server with this routing, every other one too high by ``noise``."""
    found = {}
    for batch_size in (1, 8):
        serving = dataclasses.replace(Serving(), routing_skew=skew)
        step = Step(QWEN, TARGET, serving, batch_size, 1, np.array(POSITIONS, dtype=float))
        seconds = step.module(Module.MOE_FFN).seconds()
        for at, n in enumerate(POSITIONS[1:]):
            found[batch_size, n] = float(seconds[at + 1] / seconds[0]) * (1 + noise * (at % 2))
    return found


@pytest.mark.parametrize("skew", [0.0, 0.4, 0.75, 1.2])
def test_the_routing_behind_the_times_is_found(skew: float) -> None:
    assert measured_skew(QWEN, TARGET, Serving(), ratios(skew, 0.0)) == pytest.approx(skew)
    assert measured_skew(QWEN, TARGET, Serving(), ratios(skew, 0.01)) == pytest.approx(
        skew, abs=0.15
    )


def test_times_that_show_no_routing_are_refused() -> None:
    with pytest.raises(RoutingError, match="has no experts"):
        measured_skew(shape_from_config(LLAMA_3_8B), TARGET, Serving(), ratios(0.0, 0.0))
    with pytest.raises(RoutingError, match="at 3 N or more, not 1"):
        measured_skew(QWEN, TARGET, Serving(), {(1, 2): 1.4})
