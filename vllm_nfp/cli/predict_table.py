"""Prints predictions."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from vllm_nfp.cli.nfp_table import within
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.explain import NEGLIGIBLE, Explanation, Line
from vllm_nfp.principle.notes import notes
from vllm_nfp.principle.predict import Row
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.text import duration, printable


def print_predictions(found: Predictions) -> None:
    """Print the model and device, the table, and notes on it."""
    console = Console()
    _say(console, found.model_facts.sentence())
    _say(console, _headline(found))
    console.print(_table(found))
    if any(row.at_limit for row in found.rows):
        _say(console, f"+ still free at N = {found.max_positions}, the largest evaluated")
    for note in notes(found):
        _say(console, note)


def print_explanation(found: Predictions, explanations: Sequence[Explanation]) -> None:
    """Print the terms of a cell, module by module."""
    console = Console()
    _say(console, found.model_facts.sentence())
    _say(console, _headline(found))
    for explanation in explanations:
        console.print()
        console.print(
            f"[bold]{explanation.module}[/bold], B={explanation.batch_size}, "
            f"L={explanation.context}",
            highlight=False,
        )
        for sentence in explanation.sentences:
            _say(console, sentence)
        console.print(_lines_table(explanation, explanation.terms, "terms"))
        if explanation.parts:
            console.print(_lines_table(explanation, explanation.parts, "parts of the step"))
    for note in notes(found):
        _say(console, note)


def _headline(found: Predictions) -> str:
    shape = found.shape
    ranks = [
        f"{size} {kind}-parallel ranks"
        for size, kind in (
            (shape.tensor_parallel_size, "tensor"),
            (shape.data_parallel_size, "data"),
        )
        if size > 1
    ]
    where = ", ".join([printable(found.hardware), *ranks, found.backend.name])
    kind = ", bidirectional blocks" if shape.bidirectional else ""
    return f"{printable(found.model)}{kind} on {where}: predicted, not measured"


def _table(found: Predictions) -> Table:
    table = Table(
        title="Free positions per sequence (NFP)",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("module", no_wrap=True)
    names = [within(epsilon).replace(" ", "\n") for epsilon in found.epsilons]
    for name in ("L", "B", *names, "idle-\ncompute", "over-\npredicts"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limited by", min_width=len("graph_padding,"))
    before = None
    for (module, batch_size, context), rows in _grouped(found).items():
        if before not in (None, (module, context)):
            table.add_section()
        table.add_row(
            module,
            context,
            str(batch_size),
            *(f"{row.nfp}{'+' if row.at_limit else ' '}" for row in rows),
            str(rows[0].idle_compute_nfp),
            _over_predicts(rows),
            ", ".join(dict.fromkeys(row.limited_by for row in rows)),
        )
        before = module, context
    return table


def _grouped(found: Predictions) -> dict[tuple[str, int, str], list[Row]]:
    """Rows of all tolerances by cell, in the order of ``measure``: module, context, batch size.

    Only attention and the whole step depend on the context.
    """
    grouped: dict[tuple[str, int, str], list[Row]] = {}
    for row in found.rows:
        of_any = row.module not in ("attention", "model")
        if not of_any or row.context == found.contexts[0]:
            context = "any" if of_any else str(row.context)
            grouped.setdefault((row.module, row.batch_size, context), []).append(row)
    modules = list(dict.fromkeys(module for module, _, _ in grouped))
    contexts = [*map(str, found.contexts), "any"]
    places = sorted(grouped, key=lambda at: (modules.index(at[0]), contexts.index(at[2]), at[1]))
    return {place: grouped[place] for place in places}


def _over_predicts(rows: Sequence[Row]) -> str:
    """How far the idle-compute rule over-predicts; "<" where NFP may be larger."""
    shown = [
        f"{'<' if row.at_limit else ''}{_factor(row.idle_compute_nfp / row.nfp)}"
        for row in (rows[0], rows[-1])
    ]
    return "-".join(dict.fromkeys(shown))


def _factor(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _lines_table(explanation: Explanation, lines: Sequence[Line], title: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), show_footer=True)
    first = explanation.total.seconds[0]
    table.add_column(title, footer="all\nover t(1)", no_wrap=True)
    for n, seconds in zip(explanation.positions, explanation.total.seconds, strict=True):
        table.add_column(
            f"N = {n}",
            footer=f"{duration(seconds)}\n{seconds / first:.3f}",
            justify="right",
            no_wrap=True,
        )
    meaning = any(line.meaning for line in lines)
    if meaning:
        table.add_column("")
    for line in lines:
        times = (
            duration(seconds) if abs(seconds) > NEGLIGIBLE * whole else "0"
            for seconds, whole in zip(line.seconds, explanation.total.seconds, strict=True)
        )
        table.add_row(line.name, *times, *((escape(line.meaning),) if meaning else ()))
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
