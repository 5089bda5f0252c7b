"""The model of dense products: by hand, its FP8 steps, and constants that cannot be."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nfp.files import FileError
from vllm_nfp.principle import CATALOGUE, hardware_by_name, target_of
from vllm_nfp.principle.calibration import (
    H100_CALIBRATION,
    Calibration,
    LinkConstants,
)
from vllm_nfp.principle.gemm import (
    Fp8GemmConstants,
    GemmConstants,
    fp8_slowdown,
    gemm_fixed_seconds,
    gemm_seconds,
    gemm_terms,
)
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.terms import FloatArray, sum_terms
from vllm_nfp.strict_json import parse_object

H100 = hardware_by_name("H100-SXM")
CONSTANTS = GemmConstants(
    bandwidth=0.86,
    flops=0.76,
    output_traffic=1.66,
    input_traffic=3.74,
    wave_loss=0.37,
    sharpness=12.65,
    selection_loss=0.02,
    selection_tokens=32.0,
    fp8=Fp8GemmConstants(0.82, 0.55, 6.2e-6, (16, 64, 128), (1.0, 1.08, 1.17), 0.8, 128),
)
"""Given here, so that a new fit of the defaults moves no expectation."""
FP8 = CONSTANTS.fp8


def numbers(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


def test_memory_by_hand() -> None:
    terms = gemm_terms(H100, CONSTANTS, Gemm(1000, 3000, 2.0), numbers(1, 10))
    moved = 6e6 + numbers(1, 10) * 2 * (1.66 * 3000 + 3.74 * 1000)
    assert terms["memory"] == pytest.approx(moved / (0.86 * 3.35e12))


def test_one_token_has_no_scatter() -> None:
    terms = gemm_terms(H100, CONSTANTS, Gemm(4096, 4096, 2.0), numbers(1, 17, 33, 64))
    smooth = sum_terms({k: v for k, v in terms.items() if k != "tile"})
    assert terms["tile"] / smooth == pytest.approx([0, 0.01, 0.02, 0.02], abs=2e-4)


def test_many_tokens_take_their_padded_arithmetic() -> None:
    gemm, tokens = Gemm(8192, 8192, 2.0), numbers(4097, 4160)
    seconds = sum_terms(gemm_terms(H100, CONSTANTS, gemm, tokens))
    rows = (tokens + 4160) / 2
    flops = 2 * 8192 * 8192 * rows
    assert seconds == pytest.approx(1.02 * flops / (0.76 * 989.4e12), rel=2e-3)


@pytest.mark.parametrize(
    ("columns", "idle"),
    [
        (64 * 132, 0.0),  # one whole wave of 64 columns
        (64 * 100, 0.0),  # below one wave the inner dimension is split
        (128 * 132 * 2, 0.0),
        (64 * 132 + 64, 0.0),  # 66.5 tiles of 128 columns: below one wave
        (128 * 133, 396 / 266 - 1),  # 266 of 64 columns fill 3 waves of 132 best
    ],
)
def test_part_filled_waves_lose_bandwidth(columns: int, idle: float) -> None:
    terms = gemm_terms(H100, CONSTANTS, Gemm(4096, columns, 2.0), numbers(128))
    weights = 4096 * columns * 2 / (0.86 * 3.35e12)
    assert terms["wave"] == pytest.approx([0.37 * weights * idle], abs=1e-12)


def test_fp8_products_step_at_their_tiles() -> None:
    edges = numbers(1, 16, 17, 64, 65, 128, 129, 256, 257)
    assert list(fp8_slowdown(FP8, edges)) == pytest.approx(
        [1, 1, 1.08, 1.08, 1.17, 1.17, 1.6, 1.6, 2.4]
    )


def test_a_larger_row_tile_is_never_faster_than_the_last_small_one() -> None:
    cheap = dataclasses.replace(FP8, row_tile_slowdown=0.1)
    assert list(fp8_slowdown(cheap, numbers(128, 129, 2000))) == pytest.approx([1.17, 1.17, 1.6])


def test_fp8_products_by_hand() -> None:
    gemm = Gemm(4096, 4096, 1.0, fp8=True)
    base = 4096 * 4096 / (0.82 * 3.35e12)
    seconds = gemm_seconds(H100, CONSTANTS, gemm, numbers(16, 17, 4096))
    flops = 2 * 4096**3 / (0.55 * 1978.9e12)
    assert seconds == pytest.approx(numbers(base, 1.08 * base, max(flops, 25.6 * base)) + 6.2e-6)
    assert gemm_fixed_seconds(H100, CONSTANTS, gemm) == 6.2e-6


def test_fp8_products_run_in_16_bits_without_units() -> None:
    a100, gemm = hardware_by_name("A100-SXM4-80GB"), Gemm(4096, 4096, 1.0, fp8=True)
    plain = dataclasses.replace(gemm, fp8=False)
    n = numbers(1, 100)
    assert gemm_seconds(a100, CONSTANTS, gemm, n) == pytest.approx(
        gemm_seconds(a100, CONSTANTS, plain, n)
    )


@settings(deadline=None)
@given(
    st.sampled_from(CATALOGUE),
    st.integers(64, 30_000),
    st.integers(64, 30_000),
    st.sampled_from([(2.0, False), (1.0, True), (0.5, False)]),
)
def test_products_are_monotone_and_their_terms_positive(
    hardware: Any, inputs: int, outputs: int, stored: tuple[float, bool]
) -> None:
    tokens = np.arange(1, 400, dtype=np.float64)
    gemm = Gemm(inputs, outputs, *stored)
    terms = gemm_terms(hardware, CONSTANTS, gemm, tokens)
    seconds = sum_terms(terms)
    assert np.all(np.diff(seconds) >= -1e-12 * seconds[0])
    assert all(term.min() >= -1e-12 * seconds.max() for term in terms.values())


# Constants that cannot be


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (GemmConstants, {"bandwidth": 0.0}, "bandwidth must lie from 0.05 to 1, not 0.0"),
        (GemmConstants, {"flops": 1.1}, "flops must lie from 0.02 to 1, not 1.1"),
        (GemmConstants, {"kernel_seconds": -1e-6}, "kernel_seconds must lie from 0 to 0.001"),
        (GemmConstants, {"sharpness": 0.5}, "sharpness must lie from 1 to 64"),
        (GemmConstants, {"selection_tokens": 0.0}, "selection_tokens must lie from 1"),
        (GemmConstants, {"output_traffic": float("nan")}, "output_traffic must lie .* not nan"),
        (Fp8GemmConstants, {"row_tile": 0}, "row_tile must lie from 1"),
        (Fp8GemmConstants, {"tile_tokens": (16, 64)}, "must be as many"),
        (Fp8GemmConstants, {"tile_tokens": (), "tile_slowdown": ()}, "must be as many"),
        (Fp8GemmConstants, {"tile_tokens": (64, 16, 128)}, "tile_tokens must ascend"),
        (Fp8GemmConstants, {"tile_tokens": (0, 16, 128)}, "tile_tokens must ascend from 1"),
        (Fp8GemmConstants, {"tile_slowdown": (1.0, 99.0, 1.2)}, "tile_slowdown must lie"),
        (LinkConstants, {"bandwidth": 0.0}, "bandwidth must lie from 0.01 to 1"),
        (LinkConstants, {"collective_seconds": 1.0}, "collective_seconds must lie from 0 to 0.01"),
    ],
)
def test_impossible_constants_are_refused(
    kind: type, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def decode(values: object) -> Calibration:
    return parse_object(json.dumps(values), "calibration").decode(Calibration)


def test_constants_survive_json() -> None:
    values = H100_CALIBRATION.to_mapping()
    values["gemm"]["fp8"]["tile_tokens"] = list(values["gemm"]["fp8"]["tile_tokens"])
    values["gemm"]["fp8"]["tile_slowdown"] = list(values["gemm"]["fp8"]["tile_slowdown"])
    assert decode(values) == H100_CALIBRATION


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "calibration must hold a JSON object"),
        ({}, "calibration: object missing required field 'source'"),
        ({"source": "x", "gem": {}}, "calibration has the unknown field 'gem'"),
        ({"source": "x", "gemm": {"flops": 2}}, "calibration.gemm: flops must lie"),
        ({"source": "x", "attention": {"overlap": 0.5}}, "calibration.attention: overlap must be"),
        ({"source": "x", "experts": {"flops": "1"}}, "calibration.experts.flops: expected 'float'"),
    ],
)
def test_strange_calibrations_are_refused(values: object, message: str) -> None:
    with pytest.raises(FileError, match=message):
        decode(values)


def test_dense_products_of_an_a100_step_at_65_and_129_tokens() -> None:
    """As public times do: 1.05, 1.22, 1.24, 1.82 and 1.94 in Llama-2-70B's FFN on one A100."""
    target = target_of("A100-SXM4-80GB")
    tokens = np.array([1.0, 64, 72, 128, 136, 256, 288])
    gemms = (Gemm(8192, 2 * 28672, 2.0), Gemm(28672, 8192, 2.0))
    seconds = sum(gemm_seconds(target.hardware, target.calibration.gemm, g, tokens) for g in gemms)
    ratios = (seconds / seconds[0]).tolist()
    assert ratios == pytest.approx([1.0, 1.05, 1.22, 1.24, 1.82, 1.94, 2.71], rel=0.1)
    assert ratios[2] > 1.1 > ratios[1], "NFP at 0.1 is 64 tokens"
