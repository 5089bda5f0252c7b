"""The curves of all cells, ready to be looked up, and the small file that carries them.

Where the worker and the scheduler are in one process, a :class:`CurveSet` goes from one to the
other as it is. Elsewhere it goes through a file of its own: the hand-over file of ``/metrics`` is
thirty times as large, and takes the engine core tens of milliseconds to read.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from vllm_nfp.config import MOST_BATCH_SIZES, MOST_CONTEXTS, MOST_POSITION_COUNTS
from vllm_nfp.draft.curve import StepCurve, interpolated
from vllm_nfp.files import FileError, read_bytes, write_whole
from vllm_nfp.give_way import in_pieces
from vllm_nfp.results.snapshot import SnapshotError, hand_over_file
from vllm_nfp.strict_json import parse_object
from vllm_nfp.types.shapes import Above0, Size

SCHEMA = 1
MAX_FILE_BYTES = 1 << 20
"""Twice what the largest allowed grid of cells and positions takes."""
MOST_CURVES = MOST_BATCH_SIZES * MOST_CONTEXTS
MOST_LINE_BYTES = 1 << 12
"""Twice a curve with the most positions allowed: bounds what is parsed without a pause."""
CURVES_AT_A_TIME = 8
"""Curves that are read or written before a pause: some 0.1 ms."""


@dataclass(frozen=True, slots=True)
class CurveSet:
    """The whole step's curves of all measured cells; immutable, so threads may share it."""

    curves: tuple[StepCurve, ...]
    """In order of batch size and context, one for each cell."""
    by_context: tuple[tuple[int, tuple[StepCurve, ...]], ...]
    """(context, its curves by batch size), both ascending."""

    @classmethod
    def of(cls, curves: Iterable[StepCurve]) -> CurveSet:
        """Sort the curves for look-ups. This is the costly part: do it in the background."""
        contexts: dict[int, list[StepCurve]] = {}
        ordered = sorted(curves, key=lambda curve: (curve.batch_size, curve.context))
        for curve in ordered:
            contexts.setdefault(curve.context, []).append(curve)
        return cls(tuple(ordered), tuple((c, tuple(contexts[c])) for c in sorted(contexts)))

    def reaching(self, positions: int) -> Iterator[tuple[int, list[StepCurve]]]:
        """(context, its curves that were measured up to this count), where there are any."""
        for context, curves in self.by_context:
            usable = [curve for curve in curves if curve.points[-1][0] >= positions]
            if usable:
                yield context, usable


def ratio_at(curves: list[StepCurve], batch_size: int, positions: int) -> float:
    """t(N) / t(1) at a batch size, on the straight line between the two nearest curves.

    Args:
        curves: of one context, by batch size, one at least.
    """
    above = bisect_left(curves, batch_size, key=lambda curve: curve.batch_size)
    # The end ones' ratio holds beyond them.
    near = curves[max(0, above - 1) : above + 1]
    return interpolated(
        [curve.batch_size for curve in near],
        [curve.ratio_between(positions) for curve in near],
        batch_size,
    )


def curve_file(run_dir: str, engine: str) -> Path:
    """The file of one engine's curves.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "curves", engine).with_suffix(".jsonl")


def write_curves(path: Path, curves: CurveSet) -> None:
    """Replace the file whole: a reader never sees half of it.

    Raises:
        OSError: if it cannot be written.
    """
    lines = [
        _line({"schema": SCHEMA, "curves": len(curves.curves)}),
        *(_line(_values(curve)) for curve in in_pieces(curves.curves, CURVES_AT_A_TIME)),
    ]
    write_whole(path, "\n".join(lines))


def read_curves(path: Path) -> CurveSet:
    """Read a file of curves, trusting nothing in it.

    Each line is bounded and parsed by itself, so that no damaged file holds the interpreter up.

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
    ]


@dataclass(frozen=True, slots=True)
class _Head:
    """The first line."""

    schema: int
    curves: int


_Counts: TypeAlias = Annotated[tuple[Size, ...], Meta(max_length=MOST_POSITION_COUNTS)]
_LINE = msgspec.json.Decoder(
    tuple[Size, Size, Above0, Size | None, _Counts, tuple[Above0, ...]]  # as _values() has them
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
        batch_size, context, seconds, without, counts, ratios = _LINE.decode(line)
        points = tuple(zip(counts, ratios, strict=True))
        return StepCurve(batch_size, context, seconds, points, without)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{where} holds no curve in a line: {error}") from None


def _check_length(line: bytes, where: str) -> None:
    if len(line) > MOST_LINE_BYTES:
        raise SnapshotError(f"{where} has a line of more than {MOST_LINE_BYTES} bytes")
