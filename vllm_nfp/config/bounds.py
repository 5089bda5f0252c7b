"""Bounds of the settings, and the check of a value against them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta

from vllm_nfp.crossing import MOST_EPSILON

MAX_POSITIONS_LIMIT = 512
LARGEST_BATCH_SIZE = 4096
MOST_BATCH_SIZES = MOST_CONTEXTS = 16
MOST_EPSILONS = 8
MOST_POSITION_COUNTS = 64
MOST_POINTS = 5120
"""Batch sizes x contexts x positions: some 15 MiB of results with all modules, which the hand-over
file holds (:data:`vllm_nfp.results.snapshot.MAX_FILE_BYTES`). tests/unit/test_series.py counts."""
MOST_DRAFT_LENGTHS = 16


class ConfigError(ValueError):
    """An invalid setting; the message names the value and what is allowed."""


def bounded(low: float, high: float, unit: str) -> Meta:
    """From ``low`` to ``high``, both allowed."""
    return Meta(ge=low, le=high, title=unit)


Epsilon = Annotated[float, bounded(0.001, MOST_EPSILON, "a fraction")]
Fraction = Annotated[float, bounded(0.0, 1.0, "a fraction")]
Half = Annotated[float, bounded(0.0, 0.5, "a fraction")]
Seconds = Annotated[float, bounded(0.0, 600.0, "seconds")]
Mebibytes = Annotated[int, bounded(0, 1 << 20, "MiB")]
Samples = Annotated[int, bounded(2, 10000, "a number of samples")]
WantedSamples = Annotated[int, bounded(0, 10000, "a number of samples")]
Positions = Annotated[int, bounded(1, MAX_POSITIONS_LIMIT, "a number of positions")]
BatchSize = Annotated[int, bounded(1, LARGEST_BATCH_SIZE, "a number of sequences")]
Context = Annotated[int, bounded(1, 1 << 22, "a number of tokens")]
DraftLength = Annotated[int, bounded(0, MAX_POSITIONS_LIMIT, "a draft length")]
Directory = Annotated[str, Meta(min_length=1, pattern="^[^\\0]*$", title="a directory path")]
File = Annotated[str, Meta(min_length=1, pattern="^[^\\0]*$", title="a file path")]
Epsilons = Annotated[tuple[Epsilon, ...], Meta(min_length=1, max_length=MOST_EPSILONS)]
PositionCounts = Annotated[tuple[Positions, ...], Meta(max_length=MOST_POSITION_COUNTS)]
BatchSizes = Annotated[tuple[BatchSize, ...], Meta(max_length=MOST_BATCH_SIZES)]
Contexts = Annotated[tuple[Context, ...], Meta(max_length=MOST_CONTEXTS)]
DraftLengths = Annotated[tuple[DraftLength, ...], Meta(max_length=MOST_DRAFT_LENGTHS)]
_TITLES = {bool: "true or false", str: "text"}


def shown(value: Any) -> str:
    """The value for a message, cut to 80 characters."""
    return f"{value!r:.80}"


def check(name: str, kind: Any, value: Any) -> None:
    """Check a value against an annotation.

    Raises:
        ConfigError: naming the value and what is allowed.
    """
    if type(None) in get_args(kind):
        if value is None:
            return
        kind = next(one for one in get_args(kind) if one is not type(None))
    plain, *metas = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(plain) is tuple:
        _check_list(name, get_args(plain)[0], metas[0], value)
        return
    try:
        taken = msgspec.convert(value, kind)
    except (ValueError, OverflowError):  # of text that is no Unicode as well
        taken = None
    if taken is None or (plain is int and not isinstance(value, int)):
        raise ConfigError(f"{name} must be {_allowed(plain, metas)}, not {shown(value)}")


def _check_list(name: str, item: Any, meta: Meta, value: Any) -> None:
    if not isinstance(value, tuple):
        raise ConfigError(f"{name} must be a list, not {shown(value)}")
    if len(value) < (meta.min_length or 0):
        raise ConfigError(f"{name} must not be empty: pass at least one value")
    if meta.max_length is not None and len(value) > meta.max_length:
        raise ConfigError(f"{name} must hold at most {meta.max_length} values, not {len(value)}")
    for entry in value:
        check(f"each value of {name}", item, entry)
    if any(a >= b for a, b in itertools.pairwise(value)):
        raise ConfigError(f"{name} must be ascending without repeats, not {list(value)}")


def _allowed(plain: Any, metas: Sequence[Meta]) -> str:
    if not metas:
        return _TITLES[plain]
    meta = metas[0]
    shape = "d" if plain is int else "g"
    bounds = "" if meta.ge is None else f" from {meta.ge:{shape}} to {meta.le:{shape}}"
    return f"{meta.title}{bounds}"
