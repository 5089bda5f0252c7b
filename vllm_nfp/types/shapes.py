"""Where something is measured: modules, shapes of a decode step, and cells of the results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple, TypeAlias

from msgspec import Meta

Size: TypeAlias = Annotated[int, Meta(ge=1, lt=1 << 32)]
"""A batch size, a context or a number of positions; the bounds hold for what is read."""
Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
Whole: TypeAlias = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
"""Bytes and sums: exact in every reader of JSON, and a float on /metrics."""
Above0: TypeAlias = Annotated[float, Meta(gt=0)]
NotBelow0: TypeAlias = Annotated[float, Meta(ge=0)]


class Module(StrEnum):
    """What is timed, in reading order; the values are the ``module`` label of the metrics."""

    MODEL = "model"
    """The whole step."""
    ATTENTION = "attention"
    LINEAR_ATTENTION = "linear_attention"
    """One layer that keeps a state in place of a cache, with its projections."""
    DENSE_FFN = "dense_ffn"
    MOE_FFN = "moe_ffn"
    COMMUNICATION = "communication"
    """The collectives of one layer; where there are several ranks."""


_ORDER = {str(module): place for place, module in enumerate(Module)}


def reading_order(module: str) -> tuple[int, str]:
    """Sorts modules as :class:`Module` lists them; unknown ones come last."""
    return _ORDER.get(module, len(_ORDER)), module


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A decode step: ``batch_size`` sequences, each ``positions`` new after ``context`` tokens."""

    batch_size: int
    context: int
    positions: int


CellKey: TypeAlias = tuple[int, int]
"""(batch size, context)"""


def cell_name(cell: CellKey) -> str:
    """As results name it: B=32 L=16384."""
    return f"B={cell[0]} L={cell[1]}"


class Cell(NamedTuple):
    """One module at one batch size (sequences) and context length (tokens)."""

    module: Module
    batch_size: int
    context: int
