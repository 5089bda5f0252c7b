"""An FFN in FP8 that had no part in the fit steps as predicted."""

from __future__ import annotations

import pytest
from conftest import ROOT

from benchmarks.answers.fp8_products import medians, ratios
from benchmarks.answers.steps_again import unpacked
from benchmarks.serving.shapes import SHAPES
from vllm_nfp.principle import shape_from_config, target_of

RESULTS = ROOT / "benchmarks" / "results"
PROFILES = {
    "H200": RESULTS / "2026-11-27-h200-rebuilt-house" / "fp8-profile-1.json.gz",
    "H100-SXM": RESULTS / "2026-11-28-h100-at-defaults" / "fp8" / "truth.json.gz",
}


@pytest.mark.parametrize("hardware", PROFILES)
def test_an_ffn_steps_within_each_tile_as_it_did(hardware: str) -> None:
    shape = shape_from_config(SHAPES["qwen3-8b"], weight_bits=8)
    found = ratios(medians(unpacked(PROFILES[hardware])), shape, target_of(hardware))
    assert {24, 32, 64, 96, 128, 160, 256, 384, 512} < set(found)
    for measured, predicted in found.values():
        assert predicted == pytest.approx(measured, rel=0.08)
    assert found[24][1] > found[64][1] < found[96][1], "tokens fill a tile of 64 rows"
