"""Dense products as tiles in waves: by hand, where they step, and which devices take them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.principle import target_of, tiled
from vllm_nfp.principle.calibration import ASSUMPTION, PUBLIC
from vllm_nfp.principle.gemm import GemmConstants, gemm_fixed_seconds, gemm_seconds, gemm_terms
from vllm_nfp.principle.hardware import CATALOGUE, Hardware, hardware_by_name
from vllm_nfp.principle.hardware_file import write_hardware_file
from vllm_nfp.principle.layer_parts import Gemm
from vllm_nfp.principle.terms import FloatArray, Terms, sum_terms
from vllm_nfp.principle.tiled import TiledConstants

A100 = hardware_by_name("A100-SXM4-80GB")
IDEAL = TiledConstants(1.0, 1.0, 8.0, 2e-6, fill=0.0, split_seconds=1e-3, split_traffic=0.0)
"""Peak rates, and splits that do not pay here."""


@pytest.fixture
def one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has tiles of 128 x 128 only, and splits nothing."""
    monkeypatch.setattr(tiled, "PLANS", np.array([[128.0, 128.0, 1.0]]))


def terms_of(gemm: Gemm, tokens: FloatArray, hardware: Hardware = A100) -> Terms:
    return tiled.tiled_terms(hardware, IDEAL, gemm, tokens, fp8=False)


def once(gemm: Gemm, tokens: FloatArray, hardware: Hardware = A100) -> FloatArray:
    """Seconds of activations."""
    return 2.0 * tokens * (gemm.inputs + gemm.outputs) / hardware.memory_bytes_per_second


def numbers(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


@pytest.mark.usefixtures("one_plan")
def test_few_tokens_take_the_time_of_the_weights() -> None:
    gemm, tokens = Gemm(8192, 108 * 128 * 40, 2.0), numbers(1, 8)
    expected = gemm.weight_traffic / A100.memory_bytes_per_second + once(gemm, tokens)
    assert sum_terms(terms_of(gemm, tokens)) == pytest.approx(expected, rel=0.03)


@pytest.mark.usefixtures("one_plan")
def test_arithmetic_is_that_of_whole_tiles_and_whole_waves() -> None:
    gemm, tokens = Gemm(8192, 108 * 128, 2.0), numbers(512, 513, 640)
    one_wave = 2.0 * 128 * gemm.parameters / A100.bf16_flops
    expected = numbers(4, 5, 5) * one_wave + once(gemm, tokens)
    assert sum_terms(terms_of(gemm, tokens)) == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("one_plan")
def test_a_step_is_a_matter_of_the_sms() -> None:
    gemm, tokens = Gemm(8192, 108 * 128, 2.0), numbers(640, 641)
    twice = dataclasses.replace(A100, num_sms=2 * 108, bf16_flops=2 * A100.bf16_flops)
    here, there = (sum_terms(terms_of(gemm, tokens, device)) for device in (A100, twice))
    assert here[1] > 1.15 * here[0], "one more row of tiles starts another wave"
    assert there[1] < 1.01 * there[0], "with twice the SMs half of the last one was idle"


@pytest.mark.usefixtures("one_plan")
def test_idle_sms_of_the_last_wave_are_told() -> None:
    full, almost = (
        terms_of(Gemm(8192, columns * 128, 2.0), numbers(1024)) for columns in (108, 109)
    )
    assert full["wave"] == pytest.approx([0.0])
    assert almost["wave"][0] == pytest.approx(sum_terms(almost)[0] / 9, rel=0.2)


def test_splitting_the_inner_dimension_uses_idle_sms() -> None:
    gemm, tokens = Gemm(16384, 2048, 2.0), numbers(64)
    cheap = dataclasses.replace(IDEAL, l2_bandwidth=1.0, split_seconds=0.0)
    whole, split = (
        sum_terms(tiled.tiled_terms(A100, constants, gemm, tokens, fp8=False))[0]
        for constants in (dataclasses.replace(cheap, split_seconds=1e-3), cheap)
    )
    assert split < 0.5 * whole


@pytest.mark.parametrize("device", ["A100-SXM4-80GB", "B200", "L40S", "RTX-4090"])
def test_products_of_models_never_get_faster_with_tokens(device: str) -> None:
    target, tokens = target_of(device), np.arange(1, 600, dtype=np.float64)
    for hidden, width in ((8192, 28672), (4096, 14336), (5120, 13824), (2048, 8192)):
        for ranks in (1, 2, 4, 8):
            for inputs, outputs in ((hidden, 2 * width // ranks), (width // ranks, hidden)):
                gemm = Gemm(inputs, outputs, 2.0)
                found = gemm_seconds(target.hardware, target.calibration.gemm, gemm, tokens)
                assert np.all(np.diff(found) >= -0.002 * found[1:]), (inputs, outputs)


@given(
    st.sampled_from(CATALOGUE),
    st.integers(64, 30_000),
    st.integers(64, 30_000),
    st.sampled_from([(2.0, False), (1.0, True), (0.5, False)]),
)
def test_terms_are_positive_and_add_up(
    hardware: Any, inputs: int, outputs: int, stored: tuple[float, bool]
) -> None:
    tiles = TiledConstants()
    constants = GemmConstants(tiles=tiles)
    constants = dataclasses.replace(constants, fp8=dataclasses.replace(constants.fp8, tiles=tiles))
    tokens = np.arange(1, 600, dtype=np.float64)
    gemm = Gemm(inputs, outputs, *stored)
    terms = gemm_terms(hardware, constants, gemm, tokens)
    total = sum_terms(terms)
    assert all(term.min() >= -1e-12 * total.max() for term in terms.values())
    fixed = gemm_fixed_seconds(hardware, constants, gemm)
    assert fixed == tiles.kernel_seconds
    assert gemm_seconds(hardware, constants, gemm, tokens) == pytest.approx(fixed + total)


def test_tiles_scatter_as_the_smooth_form_does() -> None:
    gemm, tokens = Gemm(4096, 4096, 2.0), numbers(1, 33, 64)
    smooth, scattered = (
        sum_terms(gemm_terms(A100, GemmConstants(selection_loss=loss, tiles=IDEAL), gemm, tokens))
        for loss in (0.0, 0.03)
    )
    assert scattered / smooth == pytest.approx([1.0, 1.03, 1.03])


def test_devices_take_the_form_that_describes_them() -> None:
    gemms = {one.name: target_of(one.name).calibration.gemm for one in CATALOGUE}
    assert gemms["H100-SXM"].tiles is None
    assert gemms["H200"].tiles is None
    assert gemms["B200"].tiles == gemms["RTX-4090"].tiles == TiledConstants()
    ampere = {one.name: gemms[one.name].tiles for one in CATALOGUE if one.generation == "ampere"}
    assert len(set(ampere.values())) == 1
    assert None not in ampere.values()
    assert gemms["L40S"].fp8.tiles is not None
    origins = {name: target_of(name).calibration.origins["gemm"] for name in ("B200", A100.name)}
    assert origins == {"B200": ASSUMPTION, A100.name: PUBLIC}


def test_a_hardware_file_keeps_tiles(tmp_path: Path) -> None:
    target = target_of(A100.name)
    write_hardware_file(tmp_path / "a100.json", target)
    assert target_of(tmp_path / "a100.json").calibration.gemm == target.calibration.gemm
    written = json.loads((tmp_path / "a100.json").read_text())
    del written["calibration"]["gemm"]["tiles"], written["calibration"]["gemm"]["fp8"]["tiles"]
    (tmp_path / "older.json").write_text(json.dumps(written))
    assert target_of(tmp_path / "older.json").calibration.gemm.tiles is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must lie from 0.05 to 1, not 0.0"),
        ({"l2_bandwidth": 0.5}, "l2_bandwidth must lie from 1 to 32"),
        ({"fill": -1.0}, "fill must lie from 0 to 8"),
        ({"split_seconds": float("nan")}, "split_seconds must lie .* not nan"),
    ],
)
def test_constants_that_cannot_be_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledConstants(**changes)
