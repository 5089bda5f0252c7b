"""Predictions of one model on several devices, side by side: the table and the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from vllm_nfp.cli.common import Refusal
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.notes import notes
from vllm_nfp.principle.predict import Row
from vllm_nfp.principle.prediction import SCHEMA, Predictions
from vllm_nfp.text import printable

MOST_DEVICES = 8


def devices_of(text: str) -> tuple[str, ...]:
    """The devices of ``--hardware A,B``; one if it is a file whose name has a comma.

    Raises:
        Refusal: for an empty name, or too many.
    """
    if "," not in text or Path(text).is_file():
        return (text,)
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(names) > MOST_DEVICES:
        raise Refusal(f"--hardware must be 1 to {MOST_DEVICES} names with commas, not {text!r:.80}")
    return names


def check_devices(founds: Sequence[Predictions]) -> None:
    """Refuse a device that is given twice: its rows could not be told apart."""
    names = [found.hardware for found in founds]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Refusal(f"--hardware holds {printable(twice)} twice: give each device once")


def devices_to_dict(founds: Sequence[Predictions]) -> dict[str, Any]:
    """JSON of several devices: rows as those of one, each with its ``hardware``."""
    each = [found.to_dict() for found in founds]
    told = ("basis", "routing_skew", "does_not_fit")
    return {
        "schema": SCHEMA,
        "model": founds[0].model,
        "devices": [
            {"hardware": one["hardware"], **{key: one[key] for key in told if key in one}}
            for one in each
        ],
        "rows": [{"hardware": one["hardware"], **row} for one in each for row in one["rows"]],
    }


def print_devices(founds: Sequence[Predictions]) -> None:
    """Print a table for each tolerance, a column for each device, and the notes of each."""
    console = Console()
    first = founds[0]
    _say(console, f"{printable(first.model)}, by device: predicted, not measured")
    for epsilon in first.epsilons:
        console.print(_table(founds, epsilon))
    if any(row.at_limit for found in founds for row in found.rows):
        _say(console, f"+ still free at N = {first.max_positions}, the largest evaluated")
    by_note: dict[str, list[str]] = {}
    for found in founds:
        for note in notes(found):
            by_note.setdefault(note, []).append(printable(found.hardware))
    for note, names in by_note.items():
        _say(console, note if len(names) == len(founds) else f"{', '.join(names)}: {note}")


def _table(founds: Sequence[Predictions], epsilon: float) -> Table:
    table = Table(
        title=f"Free positions per sequence (NFP) at tolerance {epsilon:.3g}",
        box=box.SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("module", no_wrap=True)
    for name in ("B", "L", *(printable(found.hardware) for found in founds)):
        table.add_column(name, justify="right")
    columns = [[row for row in found.rows if row.epsilon == epsilon] for found in founds]
    before = None
    for rows in zip(*columns, strict=True):
        context = _context(rows[0], founds[0])
        if context is None:
            continue
        module = rows[0].module
        if before not in (None, module):
            table.add_section()
        table.add_row(
            "" if module == before else module,
            str(rows[0].batch_size),
            context,
            *(f"{row.nfp}{'+' if row.at_limit else ' '}" for row in rows),
        )
        before = module
    return table


def _context(row: Row, found: Predictions) -> str | None:
    """``any`` for modules that do not depend on it, which have one line; None: no line."""
    if row.module in ("attention", "model"):
        return str(row.context)
    return "any" if row.context == found.contexts[0] else None


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
