"""How one module's weights are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_nfp.principle.shape import Quantization
from vllm_nfp.principle.sizes import ShapeError, shown

PLAIN_BITS = 16.0
GIVE = "give weight_bits (--quantization fp8 or int4)"
FP4 = "FP4 weights multiply in 16 bits, as on GPUs before Blackwell."
FP6 = "FP6 weights multiply in 16 bits, as on GPUs without FP6 products."
INT8 = "8-bit integer weights and activations take the time of FP8."
INT8_STORED = "8-bit integer weights multiply in 16 bits."
MIXED = "Of weights with several formats, FP8 ones multiply in 16 bits too."
NARROW = "Weights of 4 bits with 8-bit activations multiply in 16 bits."


class UnreadError(ShapeError):
    """The quantization_config says something that has no reading here."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A format of weights.

    Attributes:
        kind: how products run.
        bits: of a weight, with its share of the scales.
        assumed: sentences on what kernels are taken to do.
    """

    kind: Quantization
    bits: float
    assumed: tuple[str, ...] = ()


FP8 = Scheme("fp8", 8)
FP8_BLOCK = Scheme("fp8_block", 8)
NVFP4 = Scheme("wna16", 4 + 8 / 16, (FP4,))
"""4 bits and an 8-bit scale for every 16 weights."""
MXFP4 = Scheme("wna16", 4 + 8 / 32, (FP4,))
"""4 bits and an 8-bit scale for every 32 weights (OCP Microscaling format)."""
MXFP6 = Scheme("wna16", 6 + 8 / 32, (FP6,))
MXFP8 = Scheme("fp8", 8 + 8 / 32)
INT8_BOTH = Scheme("fp8", 8, (INT8,))


def grouped(bits: object, group: object, assumed: tuple[str, ...] = ()) -> Scheme:
    """Whole bits and a 16-bit scale for every group; zero points left out.

    Raises:
        ShapeError: for bits that no such format has.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 0 < bits <= 8:
        raise ShapeError(
            f"bits of quantization_config must be a whole number from 1 to 8, not {shown(bits)}"
        )
    scale = 16 / group if isinstance(group, int) and 0 < group < 1 << 32 else 0
    return Scheme("wna16", bits + scale, assumed)


def strings(given: Mapping[str, object], key: str) -> list[str]:
    """A list of names, or of lists of names; a missing field is an empty list.

    Raises:
        ShapeError: for anything else.
    """
    found = given.get(key) or []
    if isinstance(found, (list, tuple)):
        flat = [
            name
            for item in found
            for name in (item if isinstance(item, (list, tuple)) else (item,))
        ]
        if all(isinstance(name, str) for name in flat):
            return [str(name) for name in flat]
    raise ShapeError(f"{key} of quantization_config must be a list of names, not {shown(found)}")


def check_bits(name: str, bits: float) -> None:
    """Refuse bits per element that no weight or cache can have.

    Raises:
        ShapeError: naming the value.
    """
    try:
        possible = math.isfinite(bits) and 0 < bits <= 64
    except (OverflowError, TypeError):
        possible = False
    if not possible:
        raise ShapeError(f"{name} must be a number above 0 and at most 64, not {shown(bits)}")
