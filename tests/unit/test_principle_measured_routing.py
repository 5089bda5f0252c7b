"""The routing that measured times of experts show."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_principle_models import LLAMA_3_8B, QWEN_3_30B_A3B

from vllm_nfp.principle import PredictionError, Serving, shape_from_config, target_of
from vllm_nfp.principle.measured_routing import RoutingError, measured_skew
from vllm_nfp.principle.prediction import predict
from vllm_nfp.principle.step import Step
from vllm_nfp.types import Basis, CurvePoint, Module

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
    with pytest.raises(
        RoutingError, match="3 or more timed points of moe_ffn beyond N = 1, not 1: give a"
    ):
        measured_skew(QWEN, TARGET, Serving(), {(1, 2): 1.4})


def profile(path: Path, found: dict[tuple[int, int], float]) -> Path:
    points = [
        CurvePoint(module, batch_size, 1024, n, 12, 1e-4 * ratio, ratio, ratio, ratio, "full")
        for module in (Module.ATTENTION, Module.MOE_FFN)
        for (batch_size, n), ratio in found.items()
    ]
    guessed = dataclasses.replace(points[-1], positions=64, ratio=1.0, basis=Basis.PREDICTED)
    curves = [dataclasses.asdict(point) for point in (*points, guessed)]
    path.write_text(json.dumps({"schema": 1, "curves": curves}))
    return path


def test_predict_takes_the_routing_of_a_profile(tmp_path: Path) -> None:
    measured = str(profile(tmp_path / "profile-0.json", ratios(0.6, 0.0)))
    by_profile, by_number = (
        predict(QWEN_3_30B_A3B, "H100-SXM", (1,), (1024,), routing=routing)
        for routing in (measured, 0.6)
    )
    assert by_profile.serving.routing_skew == pytest.approx(0.6)
    assert by_profile.rows == by_number.rows


def test_files_that_hold_no_times_of_experts_are_refused(tmp_path: Path) -> None:
    for content, sentence in (
        ("{", "cannot be used"),
        ('{"curves": [{"module": 1}]}', "cannot be used"),
        ('{"curves": []}', "N = 1, not 0: give a profile of a model with experts"),
    ):
        path = tmp_path / "x.json"
        path.write_text(content)
        with pytest.raises(PredictionError, match=sentence):
            predict(QWEN_3_30B_A3B, "H100-SXM", routing=str(path))
    with pytest.raises(PredictionError, match="cannot be read"):
        predict(QWEN_3_30B_A3B, "H100-SXM", routing=str(tmp_path / "none.json"))
