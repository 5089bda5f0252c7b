"""The modules of a decode step, and which of them a model has."""

from __future__ import annotations

from typing import Literal

from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.text import plain

Module = Literal["dense_ffn", "moe_ffn", "attention", "communication", "model"]
MODULES: tuple[Module, ...] = ("dense_ffn", "moe_ffn", "attention", "communication", "model")


def module_named(name: str) -> Module | None:
    """The module that is meant, whatever the case, dashes and underscores; None if it is none."""
    wanted = plain(name)
    return next((module for module in MODULES if plain(module) == wanted), None)


def modules_of(shape: ModelShape) -> tuple[Module, ...]:
    """The modules that the model has, in the order of :data:`MODULES`."""
    lacking = {
        "dense_ffn": shape.num_dense_layers == 0,
        "moe_ffn": shape.num_moe_layers == 0,
        "communication": shape.num_ranks == 1,
    }
    return tuple(module for module in MODULES if not lacking.get(module, False))


def check_cell(shape: ModelShape, batch_size: int, context: int, module: str) -> None:
    """Refuse a cell that no step can have.

    Raises:
        PredictionError: naming the value.
    """
    if module not in modules_of(shape):
        raise PredictionError(
            f"{shape.name} has no module {module!r}: use one of {', '.join(modules_of(shape))}"
        )
    if batch_size < 1:
        raise PredictionError(f"batch_size must be 1 or more, not {batch_size}")
    if context < 0:
        raise PredictionError(f"context must be 0 or more tokens, not {context}")
