"""The tables of docs/validation.md, between marks that say so, from own and from public data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.score_public import TOLERANCES, Scored
from benchmarks.prediction.validation_cells import Cell
from benchmarks.prediction.validation_outcomes import EPSILONS, can_miss, first_crossing, outcomes
from vllm_nfp.files import write_whole

Floats = NDArray[np.float64]
KINDS = {
    "dense_products": "dense products",
    "routed_experts": "routed experts",
    "attention_vs_batch": "attention",
    "mla_module_vs_batch": "latent attention with projections",
    "all_reduce": "all-reduces",
    "whole_model": "whole steps",
}
SEEN = {"reference": "seen", "set-aside": "unseen"}
HEAD = ("points", *(f"within {100 * tolerance:.0f} %" for tolerance in TOLERANCES), "boundaries")
NEAR = 0.25
"""A boundary of a public set agrees if it is off by no more, or by one point of the set."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what it is about, errors of t(N)/t(1), and whether each boundary agrees."""

    names: tuple[str, ...]
    errors: Floats
    agreeing: tuple[bool, ...]

    def text(self) -> str:
        """In Markdown."""
        shares = [f"{100 * np.mean(np.abs(self.errors) <= t):.0f} %" for t in TOLERANCES]
        right = f"{100 * np.mean(self.agreeing):.0f} %" if self.agreeing else "-"
        counts = (str(len(self.errors)), *shares, str(len(self.agreeing)), right)
        return f"| {' | '.join((*self.names, *counts))} |"


def write_page(path: Path, cells: Sequence[Cell], public: Sequence[Scored]) -> None:
    """Put both tables between their marks in the page.

    Raises:
        ValueError: if the page lacks a mark.
    """
    for mark, table in (("own", own_table(cells)), ("public", public_table(public))):
        put_between(path, mark, "benchmarks.prediction.validate", table)


def own_table(cells: Sequence[Cell]) -> str:
    """The table of own runs."""
    names = ("module", "source", "type", "sets", *HEAD, "within a step")
    return _table(names, own_rows(cells))


def public_table(public: Sequence[Scored]) -> str:
    """The table of public measurements."""
    return _table(("what", "device", "type", "sets", *HEAD, "agree"), public_rows(public))


def _table(names: Sequence[str], rows: Sequence[Row]) -> str:
    head = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    return "\n".join([*head, *(row.text() for row in rows)])


def put_between(path: Path, mark: str, writer: str, table: str) -> None:
    """Put a table between its marks in a page.

    Raises:
        ValueError: if the page lacks a mark.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: written by {writer} -->", f"<!-- end of {mark} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the marks of the table {mark!r}")
    write_whole(path, f"{before}{begin}\n{table}\n{end}{after}")


def own_rows(cells: Sequence[Cell]) -> list[Row]:
    """By module, source, type, and seen or unseen."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        kind = "FP8" if cell.model.endswith("-fp8") else "BF16"
        key = (cell.module.replace("_", " "), cell.source, kind, SEEN[cell.group])
        groups.setdefault(key, []).append(cell)
    return [
        Row(key, np.concatenate([errors_of(cell) for cell in found]), tuple(_agreeing(found)))
        for key, found in sorted(groups.items())
    ]


def errors_of(cell: Cell) -> Floats:
    """Of the predicted ratio, relative, one for each point but the first."""
    found: Floats = np.array(cell.predicted_ratio[1:]) / np.array(cell.measured_ratio[1:]) - 1.0
    return found


def _agreeing(cells: Sequence[Cell]) -> Iterable[bool]:
    """Of boundaries that can miss."""
    return (one.within_step for one in outcomes(cells) if can_miss(one))


def public_rows(scored: Sequence[Scored]) -> list[Row]:
    """By kind, device, type, and seen or unseen."""
    groups: dict[tuple[str, ...], list[Scored]] = {}
    for one in scored:
        kind, device, detail = one.group
        words = detail.split(" ")
        shown = " ".join(
            word for word in words if not word.startswith(("power", "balanced", "vllm"))
        )
        key = (KINDS[kind], device, shown, "seen" if one.seen else "unseen")
        groups.setdefault(key, []).append(one)
    return [
        Row(key, np.concatenate([one.errors for one in ones]), tuple(_on_grid(ones)))
        for key, ones in sorted(groups.items())
    ]


def _on_grid(ones: Sequence[Scored]) -> Iterable[bool]:
    """Whether boundaries over the tokens of a step agree, if neither first nor last point."""
    for one in ones:
        if one.group[0] not in ("dense_products", "routed_experts") or one.points[0] != 1:
            continue
        grid = [int(point) for point in one.points]
        for epsilon in EPSILONS:
            measured, at_limit = first_crossing(grid, one.measured.tolist(), epsilon)
            predicted, _ = first_crossing(grid, one.predicted.tolist(), epsilon)
            if not at_limit and measured > 1:
                apart = abs(grid.index(predicted) - grid.index(measured))
                yield apart <= 1 or abs(predicted - measured) <= NEAR * measured
