"""FlashInfer's FA2 template: the default on Blackwell, and for an 8-bit cache before Hopper."""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.attention.tiling import (
    AttentionBackend,
    AttentionStep,
    Tiles,
    filling_splits,
    tiles_of,
)


def flashinfer_tiles(step: AttentionStep) -> Tiles:
    """FA2DetermineCtaTileQ in FlashInfer's utils.cuh: 16, 64 or 128 rows; 64 tokens assumed."""
    rows = step.packed_rows
    largest = 128 if step.heads.score_dim < 256 else 64
    return tiles_of(step, np.where(rows > 64, largest, np.where(rows > 16, 64, 16)), 64)


FLASHINFER = AttentionBackend(
    "FLASHINFER",
    flashinfer_tiles,
    filling_splits,
    source="tile rows as FlashInfer's FA2 template picks them; splits assumed",
)
