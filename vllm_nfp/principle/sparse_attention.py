"""Attention that reads only entries that an indexer picks (DeepSeek V3.2 and V4, GLM-5).

In every layer that has one, the indexer scores all cached tokens for each position with small heads
over a cache of its own (one FP8 key and a 32-bit scale for each token), and keeps the best
``top_k``. Attention then gathers these alone. As in vLLM 0.32 (models/deepseek_v2.py,
layers/sparse_attn_indexer.py), every position picks for itself. None of these kernels was timed.
"""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.ffn import KERNEL_SECONDS
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.layer_parts import AttentionHeads, AttentionPart, Indexer
from vllm_nfp.principle.terms import FloatArray, Terms

BANDWIDTH = 0.8
"""Share of peak memory bandwidth."""
TENSOR_CORES = 0.6
"""Share of the peak FLOP/s; that of attention's products in 16 bits."""
LOGIT_BYTES = 4
INDEXER_KERNELS = 4
"""Query quantization, keys into the cache, scores, selection."""
INDEXER_FIXED_SECONDS = INDEXER_KERNELS * KERNEL_SECONDS
ASSUMED = (
    "Attention reads the tokens that an indexer picks, for each position by chance; the kernels of "
    "both were never timed: their time is taken to be their traffic at 0.8 of the memory bandwidth "
    "or their arithmetic at 0.6 of the peak."
)


def _bound(hardware: Hardware, fp8: bool, read_bytes: FloatArray, flops: FloatArray) -> Terms:
    memory = read_bytes / (hardware.memory_bytes_per_second * BANDWIDTH)
    arithmetic = flops / (hardware.peak_flops(fp8) * TENSOR_CORES)
    return {"memory": memory, "compute": np.maximum(0.0, arithmetic - memory)}


def gathered_terms(
    hardware: Hardware,
    heads: AttentionHeads,
    part: AttentionPart,
    batch_size: int,
    cached: FloatArray,
    positions: FloatArray,
) -> Terms:
    """Seconds of one layer's attention to its window and the picked entries.

    From memory come the entries that any position of a sequence picks: of L cached entries
    L (1 - (1 - k/L)^N), if each picks k of them by chance. Neighbours agree more than that.

    Args:
        part: the layer's window, its compression, and how many entries a position picks.
        cached: tokens in the cache of each sequence, shape [n].
        positions: N, shape [n].
    """
    pool = cached / max(1, part.compress)
    picked = np.minimum(pool, part.top_k or pool)
    any_picks = pool * (1.0 - (1.0 - picked / pool) ** positions)
    window = part.window or 0
    # The windows of N neighbours together span N - 1 tokens more than one of them.
    local = np.minimum(cached, window + positions - 1) if window else np.zeros_like(cached)
    sequences = batch_size * heads.kv_heads
    read = sequences * (any_picks + local) * heads.token_bytes
    pairs = sequences * positions * (picked + np.minimum(cached, window)) * heads.group
    return _bound(hardware, heads.fp8, read, pairs * heads.flops_per_pair)


def indexer_terms(
    hardware: Hardware,
    indexer: Indexer,
    batch_size: int,
    cached: FloatArray,
    positions: FloatArray,
) -> Terms:
    """Seconds of one layer's scores and selection; every rank computes all of them."""
    logits = batch_size * positions * cached / indexer.compress
    read = batch_size * cached * indexer.token_bytes + 2 * LOGIT_BYTES * logits
    return _bound(hardware, True, read, 2.0 * logits * indexer.heads * indexer.head_dim)
