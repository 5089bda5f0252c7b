"""The modules of a decode step, and which of them a model has."""

from __future__ import annotations

from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.text import plain
from vllm_nfp.types import Module


def module_named(name: str) -> Module | None:
    """The module that is meant, whatever the case, dashes and underscores; None if it is none."""
    wanted = plain(name)
    return next((module for module in Module if plain(module) == wanted), None)


def modules_of(shape: ModelShape) -> tuple[Module, ...]:
    """The modules that the model has, in the order of :class:`Module`."""
    lacking = {
        Module.ATTENTION: shape.attention_layers == 0,
        Module.LINEAR_ATTENTION: shape.linear_attention is None,
        Module.DENSE_FFN: shape.num_dense_layers == 0,
        Module.MOE_FFN: shape.num_moe_layers == 0,
        Module.COMMUNICATION: shape.num_ranks == 1,
    }
    return tuple(module for module in Module if not lacking.get(module, False))


def check_cell(shape: ModelShape, batch_size: int, context: int, module: str) -> None:
    """Refuse a cell that no step can have.

    Raises:
        PredictionError: naming the value.
    """
    if module not in modules_of(shape):
        raise PredictionError(
            f"{shape.name} has no module {str(module)!r}: use one of {', '.join(modules_of(shape))}"
        )
    if batch_size < 1:
        raise PredictionError(f"batch_size must be 1 or more, not {batch_size}")
    if context < 0:
        raise PredictionError(f"context must be 0 or more tokens, not {context}")
