"""Kernels of routed experts, their blocks, and the tiles that vLLM ships."""

import json
from pathlib import Path

import numpy as np
import pytest

from vllm_nfp.principle import target_of
from vllm_nfp.principle.expert_kernels import blocks_of, kernel_of, served_config
from vllm_nfp.principle.expert_tiles import default_config
from vllm_nfp.principle.tuned_tiles import SIZES, file_device, read, shipped_tiles, written

CONFIGS = "model_executor/layers/fused_moe/configs"
TOKENS = np.array([1.0, 7.0, 64.0, 200.0, 512.0])


@pytest.mark.parametrize(
    ("device", "quantization", "kernel"),
    [
        ("B200", "none", "trtllm"),
        ("GB300", "mxfp4", "trtllm"),
        ("H100-SXM", "none", "triton"),
        ("H100-SXM", "fp8_block", "triton"),
        ("H200", "fp8", "cutlass"),
        ("H200", "mxfp4", "openai"),
        ("L40S", "fp8", "triton"),
        ("L40S", "mxfp4", "marlin"),
        ("RTX-5090", "none", "triton"),
        ("A100-SXM4-80GB", "wna16", "marlin"),
    ],
)
def test_the_kernel_is_that_of_device_and_type(device: str, quantization: str, kernel: str) -> None:
    assert kernel_of(target_of(device).hardware, quantization) == kernel  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kernel", "rows", "blocks"),
    [
        # marlin_moe.py: the first of 8, 16, 32, 48, 64 that the rows fill to less than 0.9.
        ("marlin", (0.1, 7.1, 7.3, 14.3, 28.7, 28.9, 43.3, 500.0), (8, 8, 16, 16, 32, 48, 64, 64)),
        # computeSelectedTileN: the next power of two from 8 to 128.
        ("trtllm", (0.5, 8.0, 8.5, 33.0, 100.0, 900.0), (8, 8, 16, 64, 128, 128)),
        ("openai", (0.5, 16.9, 17.0, 70.0, 900.0), (16, 16, 32, 128, 128)),
        ("cutlass", (0.5, 900.0), (128, 128)),
    ],
)
def test_blocks_follow_the_rows_of_an_expert(
    kernel: str, rows: tuple[float, ...], blocks: tuple[int, ...]
) -> None:
    found = blocks_of(kernel, np.array(rows))  # type: ignore[arg-type]
    assert found.block_m.tolist() == list(blocks)
    assert not found.unsorted_rows


def test_without_its_autotuner_flashinfer_takes_the_smallest_tile() -> None:
    rows = np.array([8.0, 8.5, 33.0, 900.0])
    assert blocks_of("trtllm", rows, autotuned=False).block_m.tolist() == [8, 8, 32, 64]


def test_shipped_tiles_are_those_of_vllms_files() -> None:
    vllm = pytest.importorskip("vllm")
    folder = Path(vllm.__file__).parent / CONFIGS
    for device, quantization, experts, width, name in (
        ("H100-SXM", "none", 8, 7168, "E=8,N=7168,device_name=NVIDIA_H100_80GB_HBM3.json"),
        ("L40S", "none", 8, 3584, "E=8,N=3584,device_name=NVIDIA_L40S.json"),
        ("H200", "fp8_block", 256, 256,
         "E=256,N=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"),
    ):  # fmt: skip
        theirs = json.loads((folder / name).read_text())
        theirs.pop("triton_version", None)
        ours = shipped_tiles(target_of(device).hardware, quantization, experts, width)
        assert list(ours) == [int(tokens) for tokens in theirs]
        assert all(ours[int(t)] == {s: row[s] for s in SIZES} for t, row in theirs.items())


def test_sizes_without_a_file_have_no_tiles() -> None:
    h100 = target_of("H100-SXM").hardware
    assert shipped_tiles(h100, "none", 128, 767) == {}
    assert shipped_tiles(h100, "mxfp4", 8, 7168) == {}


def test_the_family_of_the_h200_has_one_name() -> None:
    assert file_device("NVIDIA H200 NVL") == "NVIDIA_H200"
    assert file_device("NVIDIA H100 80GB HBM3") == "NVIDIA_H100_80GB_HBM3"


def test_what_is_written_is_read() -> None:
    tiles = {64: dict(zip(SIZES, (16, 64, 128, 1), strict=True)), 1: dict.fromkeys(SIZES, 8)}
    assert read(written(tiles)) == tiles
    assert list(read(written(tiles))) == [64, 1]


def test_tiles_of_the_caller_come_before_shipped_ones_and_these_before_the_rule() -> None:
    h100 = target_of("H100-SXM").hardware
    given = {1: dict(zip(SIZES, (128, 32, 32, 4), strict=True))}
    assert served_config(h100, "none", TOKENS, 8, 2.0, 7168, given).block_m.tolist() == [128] * 5
    shipped = served_config(h100, "none", TOKENS, 8, 2.0, 7168)
    assert shipped.block_n.tolist() == [64, 128, 128, 128, 256]
    rule = served_config(h100, "none", TOKENS, 8, 2.0, 7169)
    assert rule.block_n.tolist() == default_config(TOKENS, "none", 8).block_n.tolist()
