"""Draft lengths at usual acceptances, for whoever has not counted any yet."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from vllm_nfp.cli.nfp_table import print_whole
from vllm_nfp.cli.recommend_table import AT_LIMIT
from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.cautions import LONG_FOR_A_CONSTANT
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.rows import ScheduleRow
from vllm_nfp.draft.typical import TYPICAL

_MARKS: Mapping[str, tuple[str, str]] = {"measured": ("", ""), "inferred": ("~", "")}
"""By basis, what stands before and after K; otherwise as a prediction."""
NEXT = (
    "Count yours: serve with speculation and give the server's URL (--acceptance-from URL), or "
    "copy vLLM's log line as --acceptance-rates"
)


def print_usual(console: Console, each: Mapping[float, Recommendation], of_server: str) -> None:
    """Print K and its gain by batch size and acceptance, published acceptances, and what to do.

    Args:
        each: the recommendation at each acceptance.
        of_server: why the server that was asked counts none; empty if none was.
    """

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    first = next(iter(each.values()))
    for text in first.verdict[: first.source.cut_layers is not None]:
        say(f"{text}.", "bold")
    say("K depends on how often drafts are accepted, which is not known here.", "bold")
    say(f"{NEXT}.")
    print_whole(console, _lengths(each))
    rows = [row for found in each.values() for row in found.rows if not row.between]
    for text in filter(None, (_legend(rows), _caution(rows))):
        say(f"{text}.")
    drafts = _with_adaptive_verification(each)
    if drafts:
        say(drafts)
    print_whole(console, _published())
    say("Sources: " + ", ".join(dict.fromkeys(one.source for one in TYPICAL)))
    if of_server:
        say(f"Why there is no single K: {of_server}.")


def usual_json(each: Mapping[float, Recommendation], why: str) -> dict[str, Any]:
    """The same as plain JSON values."""
    return {
        "schema": 1,
        "reason": why,
        "by_acceptance": [found.to_dict() for found in each.values()],
        "published_acceptance": [dataclasses.asdict(one) for one in TYPICAL],
    }


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1), pad_edge=False)


def _lengths(each: Mapping[float, Recommendation]) -> Table:
    table = _table("Draft length K (gain over no speculation) if each draft is accepted with")
    for name in ("L", "B", *(f"{acceptance:g}" for acceptance in each)):
        table.add_column(name, justify="right", no_wrap=True)
    context = None
    by_cell: dict[tuple[int, int], list[ScheduleRow]] = {}
    for row in itertools.chain(*(found.rows for found in each.values())):
        if not row.between:
            by_cell.setdefault((row.context, row.batch_size_first), []).append(row)
    for (at, batch_size), rows in sorted(by_cell.items()):
        if context not in (None, at):
            table.add_section()
        context = at
        table.add_row(str(at), str(batch_size), *map(_choice, rows))
    return table


def _choice(row: ScheduleRow) -> str:
    inferred, predicted = _MARKS.get(row.basis, ("", "?"))
    return f"{inferred}{row.length_text}{predicted} ({row.gain:.2f}x)"


def _legend(rows: Sequence[ScheduleRow]) -> str:
    """What the marks of the table mean; empty without any."""
    marks = {_MARKS.get(row.basis, ("", "?")) for row in rows}
    meanings = {("~", ""): "~K = inferred from other measurements", ("", "?"): "K? = predicted"}
    texts = [text for mark, text in meanings.items() if mark in marks]
    return "; ".join([*texts, AT_LIMIT] if any(row.at_limit for row in rows) else texts)


def _caution(rows: Sequence[ScheduleRow]) -> str:
    """Long drafts at a constant acceptance; empty if the table has none."""
    if max(row.draft_length for row in rows) < LONG_FOR_A_CONSTANT:
        return ""
    return (
        f"Counted acceptance falls with the position. Lengths of {LONG_FOR_A_CONSTANT} and more "
        f"are too long unless yours stays the same"
    )


def _with_adaptive_verification(each: Mapping[float, Recommendation]) -> str:
    """The drafts of each step; empty if nobody asked."""
    drafts = [
        f"{found.adaptive.draft_length} at {acceptance:g}"
        for acceptance, found in each.items()
        if found.adaptive is not None
    ]
    return (
        f"With adaptive verification draft {', '.join(drafts)} tokens at each step."
        if drafts
        else ""
    )


def _published() -> Table:
    table = _table("Published: fraction of drafts whose i-th token was accepted")
    table.add_column("method", no_wrap=True)
    table.add_column("--acceptance-rates", no_wrap=True)
    table.add_column("of")
    for one in TYPICAL:
        table.add_row(one.method, _rates(one.rates), one.of)
    return table


def _rates(rates: Sequence[float]) -> str:
    return ",".join(f"{rate:g}" for rate in rates)
