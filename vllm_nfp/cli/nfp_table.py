"""NFP in the terminal: an answer with its basis and interval, and tables of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from vllm_nfp.cli.terminal import Console
from vllm_nfp.results.scrape import Row
from vllm_nfp.text import printable
from vllm_nfp.types import Basis, Boundary, Module, reading_order

WIDEST = 1000
ANY = "any"
"""In place of a context, for a module whose time does not depend on it."""
_WITHOUT_CONTEXT = frozenset(
    (Module.LINEAR_ATTENTION, Module.DENSE_FFN, Module.MOE_FFN, Module.COMMUNICATION)
)
_LEGEND = {
    Basis.MEASURED: "12 measured",
    Basis.INFERRED: "~12 inferred from other measurements",
    Basis.PREDICTED: "12? predicted",
}


Answer: TypeAlias = Row | Boundary
"""NFP of one module in one cell at one tolerance, from a scrape or a profile."""
A = TypeVar("A", Row, Boundary)


@dataclass(frozen=True, slots=True)
class Line(Generic[A]):
    """What is known of one module in one cell, or at one batch size in all contexts."""

    module: str
    context: int | None
    """None: the same in all contexts."""
    batch_size: int
    answers: Mapping[float, A]
    """By tolerance."""


def number(row: Answer) -> str:
    """NFP with the mark of its basis, as :func:`legend` explains it."""
    inferred = "~" if row.basis is Basis.INFERRED else ""
    predicted = "?" if row.basis is Basis.PREDICTED else ""
    return f"{inferred}{row.positions}{'+' if row.at_limit else ''}{predicted}"


def within(epsilon: float) -> str:
    """The name of a tolerance's column."""
    return f"within {100 * epsilon:.3g}%"


def answer_text(row: Answer) -> str:
    """NFP with its basis and its 95 % interval."""
    return f"{number(row)} [{row.lower}, {row.upper}]"


def legend(rows: Iterable[Answer]) -> str:
    """The marks that the rows show."""
    rows = tuple(rows)
    marks = [text for basis, text in _LEGEND.items() if any(row.basis is basis for row in rows)]
    if any(row.at_limit for row in rows):
        marks.append("+ this or more")
    return "; ".join(marks)


def lines_of(rows: Iterable[A]) -> tuple[Line[A], ...]:
    """The rows by module, context and batch size, in reading order.

    Modules whose time does not depend on the context have one line for each batch size, where
    their answers are the same in all contexts.
    """
    cells: dict[tuple[str, int, int], dict[float, A]] = {}
    for row in rows:
        cells.setdefault((row.module, row.context, row.batch_size), {})[row.epsilon] = row
    alike: set[str] = set(_WITHOUT_CONTEXT)
    first: dict[tuple[str, int], dict[float, A]] = {}
    for (module, _, batch_size), found in sorted(cells.items()):
        shown = first.setdefault((module, batch_size), found)
        if _told(shown) != _told(found):
            alike.discard(module)
    lines = [
        Line(module, None, batch_size, found)
        for (module, batch_size), found in first.items()
        if module in alike
    ] + [
        Line(module, context, batch_size, found)
        for (module, context, batch_size), found in cells.items()
        if module not in alike
    ]
    return tuple(sorted(lines, key=_place))


def _told(answers: Mapping[float, Answer]) -> Mapping[float, str]:
    return {epsilon: answer_text(row) for epsilon, row in answers.items()}


def _place(line: Line[A]) -> tuple[tuple[int, str], int, int]:
    return reading_order(line.module), line.context or 0, line.batch_size


def nfp_table(
    lines: Sequence[Line[A]],
    further: Mapping[str, Callable[[Line[A]], str]] | None = None,
    marked: Callable[[Line[A]], bool] | None = None,
) -> Table:
    """A row for each line and a column for each tolerance.

    Args:
        further: more columns.
        marked: which rows get a ">" in front; None: no such column.
    """
    further = further or {}
    epsilons = sorted({epsilon for line in lines for epsilon in line.answers})
    columns = [aligned([line.answers.get(epsilon) for line in lines]) for epsilon in epsilons]
    table = _headed(epsilons, further, marked is not None)
    before = None
    for place, line in enumerate(lines):
        group = line.module, line.context
        if before not in (None, group):
            table.add_section()
        before = group
        table.add_row(
            *(() if marked is None else (">" if marked(line) else "",)),
            Text(printable(line.module)),
            ANY if line.context is None else str(line.context),
            str(line.batch_size),
            *(Text(column[place]) for column in columns),
            *(make(line) for make in further.values()),
        )
    return table


def _headed(epsilons: Sequence[float], further: Iterable[str], marked: bool) -> Table:
    """The table without rows."""
    table = Table(
        title="Free positions per sequence (NFP) [95 % interval]",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    if marked:
        table.add_column("")
    table.add_column("module", no_wrap=True)
    for name in ("L", "B"):
        table.add_column(name, justify="right", no_wrap=True)
    for epsilon in epsilons:
        table.add_column(within(epsilon), no_wrap=True)
    for name in further:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def aligned(rows: Sequence[Answer | None]) -> Sequence[str]:
    """Answers for one column, their digits one below the other; "-" for None."""
    numbers = ["-" if row is None else number(row) for row in rows]
    tails = [len(text) - len(text.rstrip("+?")) for text in numbers]
    padded = [text + " " * (max(tails) - tail) for text, tail in zip(numbers, tails, strict=True)]
    width = max(map(len, padded))
    return [
        f"{text:>{width}} [{row.lower}, {row.upper}]" if row else f"{text:>{width}}"
        for text, row in zip(padded, rows, strict=True)
    ]


def print_whole(console: Console, table: Table) -> None:
    """Print a table. In a narrower terminal its lines wrap: cut numbers would be other numbers."""
    title, table.title = table.title, None  # within the table it wraps at the table's width
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    if title is not None:
        console.print(title, style="table.title", highlight=False)
    console.print(table)
