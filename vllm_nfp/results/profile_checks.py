"""Rows of a profile that contradict each other or cannot be, and the order of its cells."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from vllm_nfp.config import MOST_BATCH_SIZES, MOST_CONTEXTS, MOST_POSITION_COUNTS
from vllm_nfp.types import Boundary, Cell, CurvePoint, reading_order


def check_point(point: CurvePoint) -> None:
    """Raise ValueError if a point lies outside its own intervals."""
    if not point.ratio_lower <= point.ratio <= _above(point.ratio_upper):
        raise ValueError("curves holds a ratio outside its interval")
    if not point.seconds_lower <= point.median_seconds <= _above(point.seconds_upper):
        raise ValueError("curves holds a time outside its interval")


def _above(upper: float | None) -> float:
    return math.inf if upper is None else upper


def check_boundary(line: Boundary) -> None:
    """Raise ValueError if an NFP lies outside its own interval."""
    if not line.lower <= line.positions <= line.upper:
        raise ValueError("boundaries holds an NFP outside its interval")


def check_grid(points: Sequence[CurvePoint]) -> None:
    """No more cells than a probe may have, so that reading and drawing a file stays quick."""
    for name, most in (
        ("batch_size", MOST_BATCH_SIZES),
        ("context", MOST_CONTEXTS),
        ("positions", MOST_POSITION_COUNTS),
    ):
        if len({getattr(point, name) for point in points}) > most:
            raise ValueError(f"curves holds more than {most} values of {name}")


def check_distinct(table: str, keys: Sequence[Hashable]) -> None:
    """Raise ValueError if two rows of a table have the same key."""
    if len(set(keys)) != len(keys):
        raise ValueError(f"{table} holds two rows for the same point")


def describe(key: Cell) -> str:
    """A cell in words."""
    return f"{key[0]} at B={key[1]} L={key[2]}"


def place_of(cell: Cell) -> tuple[tuple[int, str], int, int]:
    """Where a cell comes in reading order: by module, context and batch size."""
    return reading_order(cell.module), cell.context, cell.batch_size
