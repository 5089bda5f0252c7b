"""Draft lengths as a table in the terminal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from rich import box
from rich.table import Table

from vllm_nfp.cli.nfp_table import print_whole
from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.advice import basis_text
from vllm_nfp.draft.between import CLOSE
from vllm_nfp.draft.cautions import size_range
from vllm_nfp.draft.methods import NEEDS_MODEL
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.rows import ScheduleRow
from vllm_nfp.draft.verdict import percent
from vllm_nfp.types import Basis

AT_LIMIT = "K+ = the longest that is known; more may be better"
"""What the mark of :attr:`ScheduleRow.length_text` means."""


def print_lengths(console: Console, found: Recommendation) -> None:
    """Print the verdict, the setting for vLLM, the table, warnings and assumptions."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    for text in found.verdict:
        say(f"{text}.", "bold")
    console.print(_setting(found), highlight=False, markup=False, soft_wrap=True)
    say(_subject(found))
    print_whole(console, _table(found.rows, found.demand.running))
    for note in (*_notes(found.rows, found.source.kind == "prediction"), *_left_out(found)):
        say(note)
    origins = {note.removesuffix(".") for note in found.source.origins}
    for text in found.warnings:
        if text in origins:
            say(f"Note: {text}.")
        else:
            say(f"Warning: {text}.", "yellow")
    for text in found.assumptions:
        say(f"Assumed: {text}.")


def _subject(found: Recommendation) -> str:
    """What was measured, in a line."""
    source = found.source
    where = f" on {source.device}" if source.device else ""
    return f"{source.model or source.name}{where}: {_times(found)} step times"


def _setting(found: Recommendation) -> str:
    """The setting for vLLM, or why there is none."""
    if found.refusal is not None:
        return f"No --speculative-config: {found.refusal}."
    if found.method in NEEDS_MODEL and found.draft_model is None:
        return f"Give --draft-model PATH for the setting of vLLM ({found.method})."
    if not found.schedule.pays:
        return "Serve without --speculative-config."
    return f"--speculative-config '{json.dumps(found.speculative_config())}'"


def _times(found: Recommendation) -> str:
    """What the step times are."""
    bases = [basis for basis in Basis if any(row.basis == basis for row in found.rows)]
    return ", ".join([*bases, *(["live"] if found.source.kind == "server" else [])])


def _table(rows: Sequence[ScheduleRow], running: int | None) -> Table:
    table = Table(
        title="Draft length K [95 % interval]",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    shown = _shown(rows)
    rates = any(row.tokens_per_second is not None for row in shown)
    compared = any(row.gain_over_running is not None for row in shown)
    names = ["L", "B", "K", "gain"]
    names += [f"over K={running}"] if compared else []
    names += ["basis", "free K", *(["tok/s"] if rates else [])]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    context = None
    for row in shown:
        if context is not None and row.context != context:
            table.add_section()
        context = row.context
        table.add_row(*_cells(row, compared, rates))
    return table


def _shown(rows: Sequence[ScheduleRow]) -> list[ScheduleRow]:
    """Without the ranges between reported batch sizes that are close: they are like these."""
    reported = sorted({row.batch_size_first for row in rows if not row.between})
    close = {low for low, high in itertools.pairwise(reported) if high <= CLOSE * low}
    return [
        row
        for row in rows
        if not row.between
        or max((b for b in reported if b < row.batch_size_first), default=0) not in close
    ]


def _cells(row: ScheduleRow, compared: bool, rates: bool) -> Sequence[str]:
    batch = size_range(row.batch_size_first, row.batch_size_last)
    free = f"{row.free_draft_length}{'+' if row.free_at_limit else ''}"
    rate = row.tokens_per_second
    over = row.gain_over_running
    ends = row.gain_over_running_lower, row.gain_over_running_upper
    return (
        str(row.context),
        f"{batch}{'*' if row.basis == 'between' else ''}",
        row.length_text,
        row.gain_text,
        *((_over(row, over, ends),) if compared else ()),
        row.basis,
        free,
        *(("-" if rate is None else f"{rate:.0f}",) if rates else ()),
    )


def _over(row: ScheduleRow, over: float | None, ends: tuple[float | None, float | None]) -> str:
    if over is None:
        return "-"
    return "same K" if row.draft_length == row.running_draft_length else percent(over, *ends)


def _left_out(found: Recommendation) -> list[str]:
    """What a server cannot have, in one line."""
    last = {row.context: row.batch_size_last for row in found.rows}
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
    shown = _shown(rows)
    known = "evaluated" if predicted else "measured"
    notes = (
        (any(row.at_limit for row in rows), AT_LIMIT),
        (
            any(row.free_at_limit for row in rows),
            f"free K+ = still free at the largest N {known}; more may be free",
        ),
        (
            any(row.basis == "between" for row in shown),
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
    )
    return [text for holds, text in notes if holds]
