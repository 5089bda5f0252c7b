"""Draft lengths as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.recommend import Recommendation
from vllm_nfp.draft.schedule import ScheduleRow

WIDEST = 1000


def print_lengths(
    console: Console,
    result: Recommendation,
    assumptions: Sequence[str],
    warnings: Sequence[str],
) -> None:
    """The table for all contexts, the best lengths at each, and what they rest on."""
    source = result.source
    where = f" on {source.device}" if source.device else ""
    how = {"profile": "measured", "server": "measured, live", "prediction": "predicted"}
    console.print(
        f"{source.model or source.name}{where}: {how[source.kind]} step times",
        highlight=False,
        markup=False,
    )
    entries = ", ".join(
        f"B {size_range(entry.batch_size_first, entry.batch_size_last)}: K={entry.draft_length}"
        for entry in result.schedule.ranges
    )
    console.print(f"Draft lengths for all contexts: {entries}", highlight=False)
    table = _table(result)
    # A narrower terminal breaks the lines: a number with its end cut off would be another number.
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    console.print(table)
    _print_notes(console, result.rows)
    for text in assumptions:
        console.print(f"Assumed: {text}.", highlight=False, markup=False)
    for text in warnings:
        console.print(f"Warning: {text}.", style="yellow", highlight=False, markup=False)
    if not result.schedule.pays:
        console.print("Drafts pay nowhere: serve without --speculative-config.")


def size_range(first: int, last: int) -> str:
    """Batch sizes as 8 or 9-31."""
    return str(first) if first == last else f"{first}-{last}"


def _table(result: Recommendation) -> Table:
    table = Table(
        title="Best draft length K by context L and batch size B", box=box.SIMPLE, padding=(0, 1)
    )
    for name in ("L", "B", "K", "tok/step", "tok/s", "gain", "free K", "K for all L: gain"):
        table.add_column(name, justify="right", no_wrap=True)
    context = None
    for row in result.rows:
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


def _print_notes(console: Console, rows: Sequence[ScheduleRow]) -> None:
    if any(row.at_limit for row in rows):
        console.print("K+ is the longest that could be judged: longer drafts may be better still")
    if any(row.free_at_limit for row in rows):
        console.print("free K+: no measured count was over the line, more may be free")
    if any(row.basis == "between" for row in rows):
        console.print(
            "* between measured batch sizes: at least this gain, if the step lies between theirs"
        )
    if any(row.basis == "unknown" for row in rows):
        console.print(
            "0? was not measured: no drafts, to be safe, unless another context tells (K: ?); "
            "probe such batch_sizes"
        )
