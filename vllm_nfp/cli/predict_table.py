"""Prints predictions for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vllm_nfp.explain import Explanation, Line
from vllm_nfp.prediction import Predictions
from vllm_nfp.principle.predict import Row
from vllm_nfp.text import duration, printable


def print_predictions(found: Predictions) -> None:
    """Print what was predicted for what, the table, and what to know of it."""
    console = Console()
    _say(console, _headline(found))
    console.print(_table(found))
    if any(row.at_limit for row in found.rows):
        _say(console, f"+ nothing up to N = {found.max_positions} is over the line")
    for note in notes(found):
        _say(console, note)


def print_explanation(found: Predictions, explanations: Sequence[Explanation]) -> None:
    """Print the terms of a cell, module by module."""
    console = Console()
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


def notes(found: Predictions) -> tuple[str, ...]:
    """What the constants and rules come from, and what is not predicted."""
    constants = printable(found.target.calibration.source)
    origin = (
        f"Constants: fitted to {constants}."
        if found.target.calibration.fitted
        else f"Constants: not fitted to {printable(found.hardware)}, {constants}."
    )
    backend = found.backend
    rules = (
        f"The rules of {backend.name} were never timed ({backend.source}): they run with the "
        f"constants of FlashAttention 3."
    )
    return (origin, *((rules,) if backend.assumed else ()), *_graph_notes(found))


def _graph_notes(found: Predictions) -> tuple[str, ...]:
    if not found.serving.capture_sizes:
        return ("Without CUDA graphs the host's launches cost time that is not predicted.",)
    largest: dict[int, int] = {}
    for row in found.rows:
        if row.module == "model":
            largest[row.batch_size] = max(row.nfp, largest.get(row.batch_size, 0))
    edges = {batch_size: found.in_graphs(batch_size) for batch_size in largest}
    beyond = [b for b, nfp in largest.items() if edges[b] < nfp]
    if not beyond:
        return ()
    cells = ", ".join(f"N = {edges[b]} at B = {b}" for b in beyond)
    return (f"Beyond {cells} the step leaves its CUDA graphs, a cliff that is not predicted.",)


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
    table = Table(title="Free positions per sequence (NFP)", box=box.SIMPLE, padding=(0, 1))
    table.add_column("module", no_wrap=True)
    names = [f"within {epsilon:.3g}" for epsilon in found.epsilons]
    for name in ("B", "L", *names, "idle-compute", "too many by"):
        table.add_column(name, justify="right")
    table.add_column("limited by")
    grouped: dict[tuple[str, int, int], list[Row]] = {}
    for row in found.rows:
        grouped.setdefault((row.module, row.batch_size, row.context), []).append(row)
    before = None
    for (module, batch_size, context), rows in grouped.items():
        if before not in (None, module):
            table.add_section()
        table.add_row(
            "" if module == before else module,
            str(batch_size),
            str(context),
            *(f"{row.nfp}{'+' if row.at_limit else ' '}" for row in rows),
            str(rows[0].idle_compute_nfp),
            _joined([_too_many(row) for row in rows]),
            _joined([row.limited_by for row in rows]),
        )
        before = module
    return table


def _too_many(row: Row) -> str:
    """How far the idle-compute rule over-predicts; an upper bound where NFP is a lower one."""
    factor = f"{row.idle_compute_nfp / row.nfp:.2g}x"
    return f"<{factor}" if row.at_limit else factor


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


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
        times = (duration(seconds) for seconds in line.seconds)
        table.add_row(line.name, *times, *((escape(line.meaning),) if meaning else ()))
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
