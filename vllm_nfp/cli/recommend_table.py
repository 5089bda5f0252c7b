"""Draft lengths as a table in the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich import box
from rich.table import Table

from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.advice import basis_text, size_range
from vllm_nfp.draft.between import CLOSE
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.rows import ScheduleRange, ScheduleRow
from vllm_nfp.types import Basis

WIDEST = 1000


def print_lengths(console: Console, found: Recommendation) -> None:
    """Print the table for all contexts, the best lengths at each, assumptions and warnings."""
    source = found.source
    where = f" on {source.device}" if source.device else ""
    console.print(
        f"{source.model or source.name}{where}: {_times(found)} step times",
        highlight=False,
        markup=False,
    )
    entries = ", ".join(map(_entry, found.schedule.ranges))
    console.print(f"Draft lengths for all contexts: {entries}", highlight=False)
    for row in found.live:
        console.print(
            f"Live traffic (B={row.batch_size_first}, L={row.context}): K={row.length_text}, gain "
            f"{row.gain_text}, {row.basis}: {basis_text(row.basis)}",
            highlight=False,
            markup=False,
        )
    table = _table(found.rows)
    # In a narrower terminal the lines wrap: cut numbers would be other numbers.
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    console.print(table)
    for note in (*_notes(found.rows, found.source.kind == "prediction"), *_left_out(found)):
        console.print(note, highlight=False, markup=False)
    for text in found.assumptions:
        console.print(f"Assumed: {text}.", highlight=False, markup=False)
    for text in found.warnings:
        console.print(f"Warning: {text}.", style="yellow", highlight=False, markup=False)
    if not found.schedule.pays:
        console.print("Drafts pay nowhere: serve without --speculative-config.")


def _times(found: Recommendation) -> str:
    """What the step times are."""
    bases = [basis for basis in Basis if any(row.basis == basis for row in found.rows)]
    return ", ".join([*bases, *(["live"] if found.source.kind == "server" else [])])


def _entry(entry: ScheduleRange) -> str:
    sizes = size_range(entry.batch_size_first, entry.batch_size_last)
    basis = "not known" if entry.basis == "unknown" else entry.basis
    mark = "" if entry.basis in (Basis.MEASURED, "between") else f" ({basis})"
    return f"B {sizes}: K={entry.draft_length}{mark}"


def _table(rows: Sequence[ScheduleRow]) -> Table:
    table = Table(
        title="Best draft length K by context L and batch size B", box=box.SIMPLE, padding=(0, 1)
    )
    names = ("L", "B", "K", "basis", "tok/s", "gain", "free K", "K for all L")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    context = None
    for row in _shown(rows):
        if context is not None and row.context != context:
            table.add_section()
        context = row.context
        table.add_row(*_cells(row))
    return table


def _shown(rows: Sequence[ScheduleRow]) -> list[ScheduleRow]:
    """Without the ranges between reported batch sizes that are close: they are like these."""
    known = [row for row in rows if row.basis != "unknown"]
    reported = sorted({row.batch_size_first for row in known if not row.between})
    close = {low for low, high in itertools.pairwise(reported) if high <= CLOSE * low}
    return [
        row
        for row in rows
        if not row.between
        or max((b for b in reported if b < row.batch_size_first), default=0) not in close
    ]


def _cells(row: ScheduleRow) -> Sequence[str]:
    batch = size_range(row.batch_size_first, row.batch_size_last)
    if row.basis == "unknown":
        elsewhere = f"{row.scheduled_draft_length}: ?" if row.scheduled_draft_length else "-"
        return (str(row.context), batch, row.length_text, *("-",) * 4, elsewhere)
    free = f"{row.free_draft_length}{'+' if row.free_at_limit else ''}"
    return (
        str(row.context),
        f"{batch}{'*' if row.between else ''}",
        row.length_text,
        row.basis,
        "-" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}",
        row.gain_text,
        free,
        f"{row.scheduled_draft_length}: {row.scheduled_gain or 0.0:.2f}x",
    )


def _left_out(found: Recommendation) -> list[str]:
    """What a server cannot have, in one line."""
    last = {row.context: row.batch_size_last for row in found.rows if row.basis != "unknown"}
    largest = max(last.values(), default=0)
    beyond = [f"B > {size} at L={at}" for at, size in last.items() if size < largest]
    if not found.source.whole or not beyond:
        return []
    return [
        f"No rows for {', '.join(beyond)}: the next reported batch size does not fit there (KV "
        f"cache)"
    ]


def _notes(rows: Sequence[ScheduleRow], predicted: bool) -> list[str]:
    """The footnotes whose marks the table shows.

    Args:
        predicted: nothing at all was measured.
    """
    unknown = {r.batch_size_last for r in rows if r.basis == "unknown"}
    between = {r.batch_size_last for r in rows if r.between}
    reported = {r.batch_size_last for r in rows if not r.between} - unknown
    wanted = ", ".join(map(str, sorted(reported | unknown - between)))
    shown = _shown(rows)
    known = "evaluated" if predicted else "measured"
    notes = (
        (
            any("±" in row.gain_text for row in shown),
            "± = 95 % interval, as far as step times decide",
        ),
        (any(row.at_limit for row in rows), "K+ = the longest that is known; more may be better"),
        (
            any(row.free_at_limit for row in rows),
            f"free K+ = still free at the largest N {known}; more may be free",
        ),
        (
            any(row.between for row in shown),
            "* = the slower of the two batch sizes around it; the gain is a lower bound",
        ),
        (len(shown) < len(rows), "Batch sizes in between are in the line above and in --json"),
        (
            any(row.basis == Basis.INFERRED for row in shown),
            f"inferred = {basis_text(Basis.INFERRED)}",
        ),
        (
            not predicted and any(row.basis == Basis.PREDICTED for row in shown),
            f"predicted = {basis_text(Basis.PREDICTED)}",
        ),
        (
            not predicted and any(row.basis == "unknown" for row in rows),
            "0? = not measured, so no drafts (K: ? = K from the other contexts). To measure: "
            f"--nfp-config '{{\"batch_sizes\": [{wanted}]}}'",
        ),
    )
    return [text for holds, text in notes if holds]
