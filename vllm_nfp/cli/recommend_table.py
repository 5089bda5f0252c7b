"""Draft lengths as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.advice import size_range
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.schedule import ScheduleRow

WIDEST = 1000


def print_lengths(console: Console, found: Recommendation) -> None:
    """Print the table for all contexts, the best lengths at each, assumptions and warnings."""
    source = found.source
    where = f" on {source.device}" if source.device else ""
    how = {"profile": "measured", "server": "measured, live", "prediction": "predicted"}
    console.print(
        f"{source.model or source.name}{where}: {how[source.kind]} step times",
        highlight=False,
        markup=False,
    )
    entries = ", ".join(
        f"B {size_range(entry.batch_size_first, entry.batch_size_last)}: K={entry.draft_length}"
        for entry in found.schedule.ranges
    )
    console.print(f"Draft lengths for all contexts: {entries}", highlight=False)
    table = _table(found.rows)
    # In a narrower terminal the lines wrap: cut numbers would be other numbers.
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    console.print(table)
    for note in _notes(found.rows):
        console.print(note, highlight=False, markup=False)
    for text in found.assumptions:
        console.print(f"Assumed: {text}.", highlight=False, markup=False)
    for text in found.warnings:
        console.print(f"Warning: {text}.", style="yellow", highlight=False, markup=False)
    if not found.schedule.pays:
        console.print("Drafts pay nowhere: serve without --speculative-config.")


def _table(rows: Sequence[ScheduleRow]) -> Table:
    table = Table(
        title="Best draft length K by context L and batch size B", box=box.SIMPLE, padding=(0, 1)
    )
    for name in ("L", "B", "K", "tok/step", "tok/s", "gain", "free K", "K for all L: gain"):
        table.add_column(name, justify="right", no_wrap=True)
    context = None
    for row in rows:
        if context is not None and row.context != context:
            table.add_section()
        context = row.context
        table.add_row(*_cells(row))
    return table


def _cells(row: ScheduleRow) -> Sequence[str]:
    batch = size_range(row.batch_size_first, row.batch_size_last)
    if row.basis == "unknown":
        elsewhere = f"{row.scheduled_draft_length}: ?" if row.scheduled_draft_length else "-"
        return (str(row.context), batch, row.length_text, *("-",) * 4, elsewhere)
    free = f"{row.free_draft_length}{'+' if row.free_at_limit else ''}"
    between = "*" if row.basis == "between" else ""
    return (
        str(row.context),
        f"{batch}{between}",
        row.length_text,
        f"{row.expected_tokens:.2f}",
        "-" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}",
        f"{row.gain:.2f}x",
        free,
        f"{row.scheduled_draft_length}: {row.scheduled_gain or 0.0:.2f}x",
    )


def _notes(rows: Sequence[ScheduleRow]) -> list[str]:
    """The footnotes whose marks the table shows."""
    wanted = ", ".join(map(str, sorted({r.batch_size_last for r in rows if r.basis != "between"})))
    notes = (
        (any(row.at_limit for row in rows), "K+ = the longest that is known; more may be better"),
        (
            any(row.free_at_limit for row in rows),
            "free K+ = still free at the largest N measured; more may be free",
        ),
        (
            any(row.basis == "between" for row in rows),
            "* = interpolated between measured batch sizes; the gain is a lower bound",
        ),
        (
            any(row.basis == "unknown" for row in rows),
            "0? = not measured, so no drafts (K: ? = K from the other contexts). To measure: "
            f"--nfp-config '{{\"batch_sizes\": [{wanted}]}}'",
        ),
    )
    return [text for shown, text in notes if shown]
