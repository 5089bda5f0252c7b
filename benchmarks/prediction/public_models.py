"""Predicted seconds of whole steps that others published: a model, and what its name says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.shapes import SHAPES
from vllm_nfp.principle import Serving, shape_from_config
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.step import Step

Floats = NDArray[np.float64]
CONTEXT = 1024
"""Of an engine whose requests' lengths are not given; they change the step by little there."""


def whole_seconds(target: Target, one: Mapping[str, Any], points: Floats) -> Floats | None:
    """Seconds at the points of a set; None for a model that is not among the benchmarks' shapes.

    Sets of a forward pass alone are predicted without their LM head.
    """
    name = one["model"].casefold()
    if name not in SHAPES:
        return None
    shape = shape_from_config(SHAPES[name])
    context = max(1, _given(one["id"], "L", CONTEXT))
    without_head = "without its LM head" in one["note"]

    def seconds(batch_size: int, positions: float) -> float:
        parts = Step(shape, target, Serving(), batch_size, context, np.array([positions])).parts()
        head = parts.pop("LM head")
        total = sum(float(cost.seconds()[0]) for cost in parts.values())
        return total if without_head else total + float(head.seconds()[0])

    if one["x"].startswith("positions"):
        batch_size = _given(one["id"], "B", 1)
        return np.array([seconds(batch_size, point) for point in points])
    return np.array([seconds(int(point), 1.0) for point in points])


def _given(text: str, letter: str, otherwise: int) -> int:
    found = re.search(rf"\b{letter}=(\d+)", text)
    return int(found[1]) if found else otherwise
