"""Step times by draft length, of the rows that the draft length benchmark has written."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drafts.cost import METHODS
from benchmarks.drafts.plan import (
    MAIN_ACCEPTANCE,
    ROUND,
    graphed_medians,
    profile_of,
)
from benchmarks.serving.shapes import DRAFT_HEADS
from vllm_nfp.results.profile import load_profile

Cell = tuple[int, int]
"""(context, batch size)."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def method_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the engine drafted; rows without a method are of earlier runs, which used n-grams."""
    return str(rows[0].get("method", METHODS[0])) if rows else METHODS[0]


def length_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[Cell, dict[int, float]]:
    """Seconds of a step by draft length, the median over the rounds, at each context and size.

    A length's steps count for every acceptance.
    """
    found: dict[Cell, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        kind = row["policy"].partition(":")[0]
        if kind in (ROUND, "fixed") and row["acceptance"] == MAIN_ACCEPTANCE:
            cell = found[row["context"], row.get("batch_size", row.get("level"))]
            for length, seconds in row["medians"].items():
                cell[int(length)].append(seconds)
    return {
        cell: {k: statistics.median(times) for k, times in by_length.items()}
        for cell, by_length in found.items()
    }


def spread(rows: Sequence[Mapping[str, Any]], cell: Cell) -> float:
    """Largest over smallest median of a length in a cell, of all its rounds; the worst length's.

    Of lengths with a CUDA graph, since without one every step waits for the host.
    """
    here = [
        row
        for row in rows
        if (row["context"], row["batch_size"]) == cell and row["policy"] != "live"
    ]
    return max(max(values) / min(values) for values in graphed_medians(here))


def filed_under(context: int, probed: Iterable[int]) -> int | None:
    """The next larger probed context, which is where sequences get to, or the largest.

    None if none was probed.
    """
    contexts = sorted(set(probed))
    return next((c for c in contexts if c >= context), contexts[-1] if contexts else None)


def step_over_probe(folder: Path) -> list[float]:
    """The engine's step over the probe's, at each point and length that has a CUDA graph.

    The engine's is a whole step, from one to the next, with the host, sampling and drafts. Drafts
    made by a head are no part of the probe's: there is nothing to compare then.
    """
    rows, path = read_rows(folder / "points.jsonl"), profile_of(folder / "spec")
    if method_of(rows) in DRAFT_HEADS or not path.exists():
        return []
    curves = [row for row in load_profile(path).curves if row.module == "model"]
    found = []
    for (context, batch_size), seconds in length_seconds(rows).items():
        at = filed_under(context, (row.context for row in curves))
        probed = {
            row.positions - 1: row.median_seconds
            for row in curves
            if (row.batch_size, row.context) == (batch_size, at) and row.execution == "full"
        }
        found += [seconds[k] / probed[k] for k in sorted(seconds) if k in probed]
    return found


def stalls(rows: Sequence[Mapping[str, Any]]) -> float:
    """Fraction of the time beyond the steps' medians, in which the host was stopped.

    Of rounds it is not known: in theirs are the steps from length to length as well.
    """
    timed = [row for row in rows if row["policy"] != ROUND]
    typical = sum(
        count * row["medians"][length] for row in timed for length, count in row["lengths"].items()
    )
    return float(1.0 - typical / sum(row["elapsed"] for row in timed))
