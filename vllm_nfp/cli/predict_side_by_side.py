"""Predictions of several models or devices side by side: the table and the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich import box
from rich.table import Table

from vllm_nfp.cli.common import Refusal
from vllm_nfp.cli.nfp_table import within
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.notes import notes
from vllm_nfp.principle.predict import Row
from vllm_nfp.principle.predictions import SCHEMA, Predictions
from vllm_nfp.text import printable
from vllm_nfp.types import Module

MOST_DEVICES = 8
MOST_COLUMNS = 16
"""Models times devices."""
_WITHOUT_CONTEXT = ("dense_ffn", "moe_ffn", "linear_attention", "communication")
_Place: TypeAlias = "tuple[Module, int, int]"
"""(module, batch size, context)"""


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


def check_columns(founds: Sequence[Predictions]) -> None:
    """Refuse a model or device that is given twice: its rows could not be told apart.

    Raises:
        Refusal: also for too many.
    """
    if len(founds) > MOST_COLUMNS:
        raise Refusal(
            f"{len(founds)} pairs of models and devices are too many: give {MOST_COLUMNS} or fewer"
        )
    pairs = [(found.model, found.hardware) for found in founds]
    twice = next((pair for pair in pairs if pairs.count(pair) > 1), None)
    if twice is not None:
        model, device = map(printable, twice)
        raise Refusal(
            f"--hardware holds {device} twice: give each device once"
            if len({found.model for found in founds}) == 1
            else f"two models are called {model}: give each once"
        )


def side_by_side(founds: Sequence[Predictions], curves: bool = False) -> dict[str, Any]:
    """JSON of several: rows as those of one, each with its ``hardware``, and ``model`` too."""
    each = [found.to_dict(curves) for found in founds]
    several = len({found.model for found in founds}) > 1
    named = ("model", "hardware") if several else ("hardware",)
    told = (
        *named,
        "basis",
        "routing_skew",
        "does_not_fit",
        "model_facts",
        "assumptions",
        "host_time",
    )
    return {
        "schema": SCHEMA,
        **({} if several else {"model": founds[0].model}),
        "predictions" if several else "devices": [
            {key: one[key] for key in told if key in one} for one in each
        ],
        **({"curve_errors": each[0]["curve_errors"]} if curves else {}),
        "rows": [
            {**{key: one[key] for key in named}, **row} for one in each for row in one["rows"]
        ],
    }


def print_side_by_side(founds: Sequence[Predictions]) -> None:
    """Print a table for each tolerance, a column for each model and device, and all notes."""
    console = Console()
    _say_what_it_is(console, founds)
    labels = [_label(found, founds) for found in founds]
    for epsilon in founds[0].epsilons:
        console.print(_table(founds, labels, epsilon))
    if any(row.at_limit for found in founds for row in found.rows):
        _say(console, f"+ still free at N = {founds[0].max_positions}, the largest evaluated")
    _say_notes(console, founds, labels)


def _say_what_it_is(console: Console, founds: Sequence[Predictions]) -> None:
    by_model = {printable(found.model): found for found in founds}
    for model, found in by_model.items():
        facts = found.model_facts.sentence()
        _say(console, f"{model}: {facts}" if len(by_model) > 1 else facts)
    devices = list(dict.fromkeys(printable(found.hardware) for found in founds))
    where = ", by device" if len(devices) > 1 else f" on {devices[0]}"
    _say(console, f"{', '.join(by_model)}{where}: predicted, not measured")


def _say_notes(console: Console, founds: Sequence[Predictions], labels: Sequence[str]) -> None:
    """Each note once, with the columns that it is of where it is not of all."""
    by_note: dict[str, list[str]] = {}
    for found, label in zip(founds, labels, strict=True):
        for note in notes(found):
            by_note.setdefault(note, []).append(label.replace("\n", " on "))
    for note, names in by_note.items():
        _say(console, note if len(names) == len(founds) else f"{', '.join(names)}: {note}")


def _label(found: Predictions, founds: Sequence[Predictions]) -> str:
    """What tells the column from the others."""
    parts = (
        found.model if len({one.model for one in founds}) > 1 else "",
        found.hardware if len({one.hardware for one in founds}) > 1 else "",
    )
    return "\n".join(printable(part) for part in parts if part)


def _table(founds: Sequence[Predictions], labels: Sequence[str], epsilon: float) -> Table:
    table = Table(
        title=f"NFP {within(epsilon)}",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("module", no_wrap=True)
    for name in ("L", "B", *labels):
        table.add_column(name, justify="right")
    columns = [_by_place(found, epsilon) for found in founds]
    before = None
    for place in _places(columns):
        module, batch_size, context = place
        any_context = module in _WITHOUT_CONTEXT
        if any_context and context != founds[0].contexts[0]:
            continue
        shown = "any" if any_context else str(context)
        if before not in (None, (module, shown)):
            table.add_section()
        table.add_row(
            module,
            shown,
            str(batch_size),
            *(_nfp(column.get(place)) for column in columns),
        )
        before = module, shown
    return table


def _by_place(found: Predictions, epsilon: float) -> Mapping[_Place, Row]:
    rows = (row for row in found.rows if row.epsilon == epsilon)
    return {(row.module, row.batch_size, row.context): row for row in rows}


def _places(columns: Sequence[Mapping[_Place, Row]]) -> list[_Place]:
    """All rows: module by module in the order of the models, the whole step first."""
    found = dict.fromkeys(place for column in columns for place in column)
    modules = list(dict.fromkeys(module for module, _, _ in found if module != Module.MODEL))
    order = {module: at for at, module in enumerate([Module.MODEL, *modules])}
    return sorted(found, key=lambda place: (order[place[0]], place[2], place[1]))


def _nfp(row: Row | None) -> str:
    return "- " if row is None else f"{row.nfp}{'+' if row.at_limit else ' '}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
