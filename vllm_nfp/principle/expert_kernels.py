"""Which kernel runs a layer's routed experts, and into which blocks it cuts their rows.

vLLM 0.32 chooses by type and device (``fused_moe/oracle/``): FlashInfer's TensorRT-LLM kernels on
data-center Blackwell, its CUTLASS kernel for FP8 with tensor scales on Hopper, OpenAI's Triton
kernels for FP4 on Hopper, Marlin for four bits elsewhere, and its own Triton kernel for the rest.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vllm_nfp.principle.expert_tiles import MoeConfig, default_config, tiles, tuned_config
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.routing import IntArray
from vllm_nfp.principle.shape import Quantization
from vllm_nfp.principle.terms import FloatArray
from vllm_nfp.principle.tuned_tiles import Tiles, shipped_tiles

Kernel = Literal["triton", "trtllm", "cutlass", "openai", "marlin"]
TRTLLM_ROWS = (8, 16, 32, 64, 128)
"""Tiles that FlashInfer's launcher supports in every type."""
MARLIN_ROWS = (8, 16, 32, 48, 64)
MARLIN_FULL = 0.9
"""Rows of an expert over those of a block from which Marlin takes the next larger one."""


def kernel_of(hardware: Hardware, quantization: Quantization) -> Kernel:
    """The kernel that vLLM takes by default.

    Elsewhere than on the devices that the module's text names this is an assumption.
    """
    if hardware.capability_10:
        return "trtllm"
    hopper = hardware.generation == "hopper"
    if quantization == "mxfp4":
        return "openai" if hopper else "marlin"
    if quantization == "wna16":
        return "marlin"
    return "cutlass" if hopper and quantization == "fp8" else "triton"


def served_config(
    hardware: Hardware,
    quantization: Quantization,
    tokens: FloatArray,
    num_experts: int,
    experts_per_token: float,
    width: int,
    tuned: Tiles | None = None,
) -> MoeConfig:
    """Tiles of a server's kernel.

    Args:
        tokens: rows of the step before they are copied to their experts.
        num_experts: experts of the rank.
        experts_per_token: of them, those that a token meets on average.
        width: inputs of an expert's down product on the rank.
        tuned: content of a tuned configuration file; None or empty: the one that vLLM ships.
    """
    kernel = kernel_of(hardware, quantization)
    if kernel == "triton":
        found = tuned or shipped_tiles(hardware, quantization, num_experts, width)
        if found:
            return tuned_config(tokens, found)
        return default_config(tokens, quantization, num_experts)
    return blocks_of(kernel, tokens * experts_per_token / num_experts)


def blocks_of(kernel: Kernel, rows: FloatArray, *, autotuned: bool = True) -> MoeConfig:
    """Tiles of a kernel that sorts rows always, by the rows that an expert has on average.

    - trtllm: ``computeSelectedTileN`` of FlashInfer's launcher offers the next power of two, the
      one before and two larger ones. A server times them (``enable_flashinfer_autotune``), of which
      the next power of two is assumed; without, the launcher takes the smallest.
    - cutlass: 128 rows, as its tiles on Hopper have without an exchange of the operands.
    - openai: the next power of two from 16 (``opt_flags.py``).
    - marlin: ``experts/marlin_moe.py``.

    Columns and depth of a tile are assumed to be 128.
    """
    if kernel == "trtllm":
        block = np.clip(_next_power(rows), TRTLLM_ROWS[0], TRTLLM_ROWS[-1])
        block = block if autotuned else np.maximum(block // 2, TRTLLM_ROWS[0])
    elif kernel == "cutlass":
        block = np.full(rows.shape, 128)
    elif kernel == "openai":
        block = np.clip(_next_power(np.floor(rows)), 16, 128)
    else:
        full = [rows / block < MARLIN_FULL for block in MARLIN_ROWS]
        block = np.select(full, MARLIN_ROWS, MARLIN_ROWS[-1])
    fixed = np.full(rows.shape, 128)
    return tiles(block, fixed, fixed, np.ones(rows.shape), unsorted_rows=False)


def _next_power(rows: FloatArray) -> IntArray:
    found: IntArray = (2 ** np.ceil(np.log2(np.maximum(1.0, np.ceil(rows))))).astype(np.int64)
    return found
