"""Tiles of vLLM 0.32's Triton kernel for routed experts, by the tokens of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.routing import ExpertError, IntArray
from vllm_nfp.principle.shape import Quantization
from vllm_nfp.principle.terms import FloatArray


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """The kernel's tiles, an entry for each number of tokens."""

    block_m: IntArray
    block_n: IntArray
    block_k: IntArray
    group_m: IntArray
    """Blocks of rows that run through the columns side by side and share weights."""
    unsorted_rows: bool = True
    """Whether few rows go unsorted, each as a block of its own."""


def default_config(
    tokens: FloatArray,
    quantization: Quantization,
    num_experts: int,
    block_shape: tuple[int, int] = (128, 128),
) -> MoeConfig:
    """Tiles that vLLM 0.32 takes on CUDA where no tuned file fits the device.

    ``get_default_config``; for wna16 the Triton kernel's, with get_moe_wna16_block_config.

    Args:
        tokens: rows of the step before they are copied to their experts.
        quantization: how weights are stored.
        num_experts: experts of the rank.
        block_shape: rows and columns that share a scale; for fp8_block alone.
    """
    if quantization == "fp8_block":
        narrow = (tokens <= 8) & (block_shape[0] % 64 == 0)
        return tiles(
            np.where(tokens <= 64, 16, 64),
            np.where(narrow, 64, block_shape[0]),
            np.full(tokens.shape, block_shape[1]),
            np.where(tokens <= 16, 1, 32),
        )
    if quantization == "wna16":
        return tiles(
            np.select([tokens <= 20, tokens <= 40], [16, 32], 64),
            np.where(tokens == 1, 32, 64),
            np.where(tokens == 1, 64, 32),
            np.ones(tokens.shape),
        )
    small = (tokens <= 64) | (quantization == "fp8")
    return tiles(
        np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16, 32, 64], 128),
        np.where(tokens <= 64, 64, 128),
        np.where(small, 128, 64),
        np.where(tokens // num_experts > 128, 16, 1),
    )


def tuned_config(tokens: FloatArray, table: Mapping[int, Mapping[str, int]]) -> MoeConfig:
    """Tiles from a tuned file's content: for each number of tokens those of the nearest entry.

    The rule of try_get_optimal_moe_config; of two entries as near, the first in the file. Keys
    are numbers of tokens, values name BLOCK_SIZE_M, _N, _K and GROUP_SIZE_M as vLLM's files do.

    Raises:
        ExpertError: if the table is empty or an entry lacks one of the four.
    """
    if not table:
        raise ExpertError("the table of tuned configurations is empty")
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
    for key, row in table.items():
        for name in names:
            if row.get(name, 0) < 1:
                raise ExpertError(f"the tuned configuration for {key} tokens has no {name} above 0")
    distance = np.abs(np.array(list(table))[:, None] - tokens[None, :])
    rows = [list(table.values())[index] for index in np.argmin(distance, axis=0)]
    return tiles(*(np.array([row[name] for row in rows]) for name in names))


def tiles(
    block_m: npt.NDArray[np.generic],
    block_n: npt.NDArray[np.generic],
    block_k: npt.NDArray[np.generic],
    group_m: npt.NDArray[np.generic],
    *,
    unsorted_rows: bool = True,
) -> MoeConfig:
    """A config, its sizes as whole numbers."""
    rows, columns, depth, group = (
        column.astype(np.int64) for column in (block_m, block_n, block_k, group_m)
    )
    return MoeConfig(rows, columns, depth, group, unsorted_rows)
