"""Seconds of the kernels of a layer that keeps a state instead of a cache.

The state of each sequence is read once and written once for each position, since the server has to
go back to the state after the last accepted position (vLLM 0.32: ``num_speculative_blocks`` of
``MambaSpec``, and the state that ``fused_recurrent_gated_delta_rule`` and
``selective_state_update`` store after every token of a draft). The arithmetic of the recurrence
runs beside that traffic, on the CUDA cores. None of these kernels was timed: both shares are
assumed.
"""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.ffn import KERNEL_SECONDS
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.layer_parts import LinearAttention
from vllm_nfp.principle.terms import FloatArray, Terms

STATE_KERNELS = 4
"""Convolution, gates, recurrence, gated norm."""
STATE_BANDWIDTH = 0.8
"""Share of peak memory bandwidth; that of attention's kernels is 0.88."""
CUDA_CORES = 1 / 16
"""FLOP/s of the CUDA cores in 32 bits over those of the tensor cores in 16 (H100 SXM data sheet: 67
of 989 TFLOP/s)."""
FIXED_SECONDS = STATE_KERNELS * KERNEL_SECONDS
ASSUMED = (
    "N positions of a layer with linear attention write N states; its kernels were never timed: "
    "their time is taken to be this traffic at 0.8 of the memory bandwidth."
)


def recurrence_terms(
    hardware: Hardware,
    linear: LinearAttention,
    ranks: int,
    batch_size: int,
    positions: FloatArray,
) -> Terms:
    """Seconds beside the fixed ones, in one layer of one rank.

    Args:
        ranks: tensor-parallel ranks, which share the heads.
        batch_size: sequences in the step.
        positions: N, shape [n].
    """
    states = batch_size / ranks * (1.0 + positions)
    rate = hardware.memory_bytes_per_second * STATE_BANDWIDTH
    memory = states * linear.sequence_bytes / rate
    flops = linear.flops_per_element * linear.state_elements * batch_size / ranks * positions
    arithmetic = flops / (hardware.peak_flops(False) * CUDA_CORES)
    return {"memory": memory, "compute": np.maximum(0.0, arithmetic - memory)}
