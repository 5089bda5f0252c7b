"""How far predicted curves were from measurements that others published, by module."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.predict import CellPrediction
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.terms import FloatArray
from vllm_nfp.types import Module

IntArray = NDArray[np.signedinteger[Any]]
MEANING = (
    "relative error of t(N) / t(1) that 80 % of public points did not exceed, by module, "
    "generation of the device, type of the weights and tokens (docs/validation.md)"
)
_SCORED_AS: Mapping[str, Module] = {
    "attention": Module.ATTENTION,
    "projections": Module.DENSE_FFN,
    "dense FFN": Module.DENSE_FFN,
    "MoE FFN": Module.MOE_FFN,
    "communication": Module.COMMUNICATION,
    "LM head": Module.DENSE_FFN,
}
"""Parts of a step, and the module whose kernels they run."""
LEAST_PLAIN = 1.5
"""Bytes of a weight from which on most are stored in 16 bits."""
SMALL = 0.05
"""A part that was never scored and takes less of the step does not make its error unknown."""


def curve_errors(
    cell: CellPrediction, shape: ModelShape, target: Target
) -> tuple[float, ...] | None:
    """The error of t(N) / t(1) at each N of a cell.

    Of a whole step the mean over its parts, weighted by their time.

    Returns:
        None if the module, or a part of the step, was never scored on devices of this generation.
    """
    tokens = cell.batch_size * np.array(cell.positions)
    if cell.module != Module.MODEL:
        found = _module_errors(cell.module, shape, target, tokens)
    else:
        found = _step_errors(cell, shape, target, tokens)
    if found is None:
        return None
    found[np.array(cell.positions) == 1] = 0.0
    return tuple(found.tolist())


def _step_errors(
    cell: CellPrediction, shape: ModelShape, target: Target, tokens: IntArray
) -> FloatArray | None:
    errors, whole = np.zeros(len(tokens)), np.array(cell.seconds)
    for name, seconds in cell.parts.items():
        share = np.array(seconds) / whole
        module = _SCORED_AS.get(name)
        found = None if module is None else _module_errors(module, shape, target, tokens)
        if found is None and share.max() > SMALL:
            return None
        errors += share * (1.0 if found is None else found)
    return errors


def _module_errors(
    module: Module, shape: ModelShape, target: Target, tokens: IntArray
) -> FloatArray | None:
    stored = "any"
    if module in (Module.DENSE_FFN, Module.MOE_FFN):
        bytes_each = shape.weight_bytes if module == Module.DENSE_FFN else shape.expert_weight_bytes
        if bytes_each < LEAST_PLAIN and not shape.fp8:
            return None  # fewer bits: never scored
        stored = "fp8" if shape.fp8 else "bf16"
    known = _errors().get((module, target.hardware.generation, stored))
    if known is None:
        return None
    bounds, errors = known
    at = np.minimum(np.searchsorted(bounds, tokens), len(errors) - 1)
    found: FloatArray = np.array(errors)[at]
    return found


@functools.cache
def _errors() -> Mapping[tuple[str, str, str], tuple[list[int], list[float]]]:
    """Bounds of tokens and the error up to each, by module, generation and stored type."""
    text = files(__package__).joinpath("curve_errors.toml").read_text(encoding="utf-8")
    found: dict[tuple[str, str, str], tuple[list[int], list[float]]] = {}
    for entry in tomllib.loads(text)["error"]:
        key = (entry["module"], entry["generation"], entry["stored"])
        bounds, errors = found.setdefault(key, ([], []))
        bounds.append(entry["up_to"])
        errors.append(entry["error"])
    return found
