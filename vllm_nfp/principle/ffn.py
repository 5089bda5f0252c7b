"""Seconds of what a dense feed-forward block does beside its matrix products."""

from __future__ import annotations

import numpy as np

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.terms import ACTIVATION_BYTES, FloatArray

KERNEL_SECONDS = 1.5e-6
"""A small kernel inside a CUDA graph, seen on an H100; assumed elsewhere."""
L2_SPEEDUP = 3.0
"""Activations of a decode step stay in L2, which is some three times as fast as memory."""


def activation_seconds(hardware: Hardware, shape: ModelShape, tokens: FloatArray) -> FloatArray:
    """The activation kernel: reads the gate and up columns, writes their product."""
    width = shape.intermediate_size / shape.tensor_parallel_size
    columns = 3 if shape.gated_ffn else 2
    return elementwise_seconds(hardware, tokens * width * columns)


def elementwise_seconds(hardware: Hardware, elements: FloatArray) -> FloatArray:
    """A kernel that touches each element of its inputs and outputs once, in L2."""
    rate = hardware.memory_bytes_per_second * L2_SPEEDUP
    seconds: FloatArray = KERNEL_SECONDS + np.asarray(elements) * ACTIVATION_BYTES / rate
    return seconds
