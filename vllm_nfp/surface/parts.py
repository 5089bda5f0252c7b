"""The parts of a step whose errors are told apart."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.types import Module

FloatArray: TypeAlias = NDArray[np.float64]
SingleArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]


class Part(IntEnum):
    """Parts of a step. Their errors are independent; the values index arrays."""

    DENSE_FFN = 0
    MOE_FFN = 1
    ATTENTION = 2
    COMMUNICATION = 3
    OTHER = 4
    """Projections, norms and the LM head."""
    LAUNCH = 5
    """The host's launches, where the step has no CUDA graph."""
    STEP = 6
    """What the sum of the parts misses."""
    ROUTING = 7
    """How many experts a whole step of a probe activates that reads KV blocks without content."""
    LINEAR_ATTENTION = 8
    """Layers that keep a state in place of a cache."""
    CONTEXT = 9
    """How alike the positions of a sequence are, which share its context, in their experts."""


PART_OF = {
    Module.DENSE_FFN: Part.DENSE_FFN,
    Module.MOE_FFN: Part.MOE_FFN,
    Module.ATTENTION: Part.ATTENTION,
    Module.COMMUNICATION: Part.COMMUNICATION,
    Module.LINEAR_ATTENTION: Part.LINEAR_ATTENTION,
}
WORK = (
    Part.DENSE_FFN,
    Part.MOE_FFN,
    Part.ATTENTION,
    Part.LINEAR_ATTENTION,
    Part.COMMUNICATION,
    Part.OTHER,
)
