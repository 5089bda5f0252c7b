"""Counts of tokens at which the library's kernels are slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vllm_nfp.principle import target_of
from vllm_nfp.principle.gemm import gemm_fixed_seconds, gemm_seconds, gemm_terms
from vllm_nfp.principle.hardware_file import read_hardware_file, write_hardware_file
from vllm_nfp.principle.layer_parts import Gemm
from vllm_nfp.principle.slow_steps import SlowStep

H100 = target_of("H100-SXM")
TOKENS = np.array([432.0, 447.0, 448.0, 449.0, 464.0])


@pytest.mark.parametrize(
    ("inputs", "outputs", "slow"),
    [
        (4096, 28672, True),  # gate_up of Llama 3.1 8B: recorded
        (8192, 57344, True),  # of Llama 3.1 70B
        (4096, 24576, False),  # narrower than any that was seen to be slow
        (2048, 12288, False),  # of Qwen3 1.7B: recorded without
        (4096, 128256, False),  # an LM head
        (2048, 28672, False),
    ],
)
def test_a_wide_product_is_slow_at_448_tokens_on_an_h100(
    inputs: int, outputs: int, slow: bool
) -> None:
    gemm, constants = Gemm(inputs, outputs, 2.0), H100.calibration.gemm
    smooth = replace(constants, slow_steps=())
    fixed = gemm_fixed_seconds(H100.hardware, constants, gemm)
    with_step = gemm_seconds(H100.hardware, constants, gemm, TOKENS) - fixed
    without = gemm_seconds(H100.hardware, smooth, gemm, TOKENS) - fixed
    assert (with_step / without).tolist() == pytest.approx([1, 1, 2.14 if slow else 1, 1, 1])
    assert gemm_terms(H100.hardware, constants, gemm, TOKENS)["memory"] == pytest.approx(
        gemm_terms(H100.hardware, smooth, gemm, TOKENS)["memory"]
    )


def test_fp8_and_other_devices_have_none_of_it() -> None:
    gemm = Gemm(4096, 28672, 1.0, fp8=True)
    smooth = replace(H100.calibration.gemm, slow_steps=())
    assert gemm_seconds(H100.hardware, H100.calibration.gemm, gemm, TOKENS) == pytest.approx(
        gemm_seconds(H100.hardware, smooth, gemm, TOKENS)
    )
    for name in ("H200", "MI300X", "A100-SXM4-80GB", "B200"):
        assert not target_of(name).calibration.gemm.slow_steps


def test_a_hardware_file_keeps_slow_steps_and_may_lack_them(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    write_hardware_file(path, H100)
    assert read_hardware_file(path).calibration == H100.calibration
    bare = replace(H100.calibration, gemm=replace(H100.calibration.gemm, slow_steps=()))
    write_hardware_file(path, replace(H100, calibration=bare))
    path.write_text(path.read_text().replace('"slow_steps": [],', ""))
    assert not read_hardware_file(path).calibration.gemm.slow_steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 1, 2, 2.0), "tokens of a slow step must lie from 1 to 16777216, not 0"),
        ((448, 0, 1, 2, 2.0), "inputs of a slow step must lie from 1 to 16777216, not 0"),
        ((448, 1, 3, 2, 2.0), "outputs of a slow step must ascend, from 1 to 16777216, not 3 to 2"),
        ((448, 1, 1, 2, 0.9), "slowdown must lie from 1 to 8, not 0.9"),
        ((448, 1, 1, 2, float("nan")), "slowdown must lie from 1 to 8, not nan"),
    ],
)
def test_a_step_that_is_none_is_refused(
    values: tuple[int, int, int, int, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SlowStep(*values)
