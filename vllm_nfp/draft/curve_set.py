"""The curves of all cells, sorted for lookup, and the small file that carries them.

If the worker and the scheduler are in one process, a :class:`CurveSet` is passed as it is.
Otherwise it goes through a file of its own: the file for ``/metrics`` is thirty times as large, and
the engine core needs tens of milliseconds to read it.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from vllm_nfp.config import MOST_BATCH_SIZES, MOST_CONTEXTS, MOST_POSITION_COUNTS
from vllm_nfp.draft.between import log_line, ratio_between, share
from vllm_nfp.draft.curve import StepCurve, weakest
from vllm_nfp.files import FileError, read_bytes, write_whole
from vllm_nfp.give_way import in_pieces
from vllm_nfp.results.snapshot import SnapshotError, hand_over_file
from vllm_nfp.strict_json import parse_object
from vllm_nfp.types import Basis
from vllm_nfp.types.shapes import Above0, Size

SCHEMA = 2
MAX_FILE_BYTES = 1 << 20
"""Twice what the largest allowed grid of cells and positions takes."""
MOST_CURVES = MOST_BATCH_SIZES * MOST_CONTEXTS
MOST_LINE_BYTES = 1 << 12
"""Twice a curve with the most positions allowed: bounds what is parsed without a pause."""
CURVES_AT_A_TIME = 8
"""Curves that are read, written or compared between two pauses: about 0.1 ms."""
CURVE_OCTAVES = 0.6
"""The table holds up to this far outside its batch sizes."""
Point: TypeAlias = tuple[float, Basis]
"""t(N) / t(1), and what it rests on."""
SAME = 0.005
"""Change of a ratio, as a fraction, that no draft length depends on."""


@dataclass(frozen=True, slots=True)
class CurveSet:
    """The whole step's curves of all reported cells; immutable, so threads may share it."""

    curves: tuple[StepCurve, ...]
    """In order of batch size and context, one for each cell."""
    by_context: tuple[tuple[int, tuple[StepCurve, ...]], ...]
    """(context, its curves by batch size), both ascending."""

    @classmethod
    def of(cls, curves: Iterable[StepCurve]) -> CurveSet:
        """Sort the curves for lookup. This is the expensive part: do it in the background."""
        contexts: dict[int, list[StepCurve]] = {}
        ordered = sorted(curves, key=lambda curve: (curve.batch_size, curve.context))
        for curve in ordered:
            contexts.setdefault(curve.context, []).append(curve)
        return cls(tuple(ordered), tuple((c, tuple(contexts[c])) for c in sorted(contexts)))

    def ratio(self, batch_size: int, context: int, positions: int) -> Point | None:
        """t(N) / t(1) at any batch size and context, and its basis.

        Between two contexts on the line of log t(N) / t(1) over log L; beyond the first or last as
        there. None without a curve near this batch size that reaches N.
        """
        above = bisect_left(self.by_context, context, key=lambda of: of[0])
        near = [
            (place, point)
            for place, curves in self.by_context[max(0, above - 1) : above + 1]
            if (point := _at_batch(curves, batch_size, positions)) is not None
        ]
        if len(near) < 2:
            return near[0][1] if near else None
        (low, (shorter, basis)), (high, (longer, other)) = near
        return log_line(shorter, longer, share(low, high, context)), weakest((basis, other))


def _at_batch(curves: Sequence[StepCurve], batch_size: int, positions: int) -> Point | None:
    """The same at one context.

    Args:
        curves: of the context, by batch size.
    """
    above = bisect_left(curves, batch_size, key=lambda curve: curve.batch_size)
    low, high = (curves[max(0, above - 1)], curves[min(above, len(curves) - 1)])
    if positions > min(low.largest, high.largest):
        return None
    if low.batch_size < batch_size < high.batch_size:
        return ratio_between(low, high, batch_size, positions)
    nearest = high if high.batch_size <= batch_size else low
    if abs(math.log2(nearest.batch_size / batch_size)) > CURVE_OCTAVES:
        return None
    return nearest.ratio_between(positions), nearest.basis(positions)


def are_alike(some: CurveSet, others: CurveSet) -> bool:
    """Whether no answer differs: the same points and bases, and ratios within :data:`SAME`."""
    if len(some.curves) != len(others.curves):
        return False
    both = zip(some.curves, others.curves, strict=True)
    return all(_is_alike(one, other) for one, other in in_pieces(both, CURVES_AT_A_TIME))


def _is_alike(one: StepCurve, other: StepCurve) -> bool:
    def about(of: StepCurve) -> tuple[object, ...]:
        return of.batch_size, of.context, of.without_graph_from, of.bases, len(of.points)

    return about(one) == about(other) and all(
        n == m and abs(was / now - 1.0) <= SAME
        for (n, was), (m, now) in zip(one.points, other.points, strict=True)
    )


def curve_file(run_dir: str, engine: str) -> Path:
    """The file of one engine's curves.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "curves", engine).with_suffix(".jsonl")


def write_curves(path: Path, curves: CurveSet) -> None:
    """Replace the file in one step: a reader never sees half of it.

    Raises:
        OSError: if it cannot be written.
    """
    lines = [
        _line({"schema": SCHEMA, "curves": len(curves.curves)}),
        *(_line(_values(curve)) for curve in in_pieces(curves.curves, CURVES_AT_A_TIME)),
    ]
    write_whole(path, "\n".join(lines))


def read_curves(path: Path) -> CurveSet:
    """Read a file of curves and check everything in it.

    Each line is bounded and parsed by itself, so that a damaged file cannot block the interpreter.

    Raises:
        SnapshotError: if it is too large, no JSON, of another schema, or no file of curves.
        OSError: if it cannot be read, or is a link.
    """
    try:
        head, *lines = read_bytes(path, MAX_FILE_BYTES, follow_links=False).split(b"\n")
    except FileError as error:
        raise SnapshotError(str(error)) from None
    about = _head(head, path.name)
    if about.schema != SCHEMA:
        raise SnapshotError(f"{path.name} holds no curves of schema {SCHEMA}")
    if len(lines) > MOST_CURVES:
        raise SnapshotError(f"{path.name} holds more than {MOST_CURVES} curves")
    if about.curves != len(lines):
        raise SnapshotError(f"{path.name} does not hold as many curves as it says")
    curves = [_curve(line, path.name) for line in in_pieces(lines, CURVES_AT_A_TIME)]
    if len({(curve.batch_size, curve.context) for curve in curves}) != len(curves):
        raise SnapshotError(f"{path.name} holds two curves of one cell")
    return CurveSet.of(curves)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _values(curve: StepCurve) -> list[Any]:
    counts, ratios = zip(*curve.points, strict=True)
    return [
        curve.batch_size,
        curve.context,
        curve.seconds_at_one,
        curve.without_graph_from,
        counts,
        ratios,
        curve.bases,
    ]


@dataclass(frozen=True, slots=True)
class _Head:
    """The first line."""

    schema: int
    curves: int


_Counts: TypeAlias = Annotated[tuple[Size, ...], Meta(max_length=MOST_POSITION_COUNTS)]
_LINE = msgspec.json.Decoder(  # as _values() has them
    tuple[Size, Size, Above0, Size | None, _Counts, tuple[Above0, ...], tuple[Basis, ...]]
)


def _head(line: bytes, where: str) -> _Head:
    _check_length(line, where)
    try:
        return parse_object(line, where).decode(_Head)
    except FileError as error:
        raise SnapshotError(str(error)) from None


def _curve(line: bytes, where: str) -> StepCurve:
    _check_length(line, where)
    try:
        batch_size, context, seconds, without, counts, ratios, bases = _LINE.decode(line)
        points = tuple(zip(counts, ratios, strict=True))
        return StepCurve(batch_size, context, seconds, points, without, bases=bases)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{where} holds no curve in a line: {error}") from None


def _check_length(line: bytes, where: str) -> None:
    if len(line) > MOST_LINE_BYTES:
        raise SnapshotError(f"{where} has a line of more than {MOST_LINE_BYTES} bytes")
