"""``vllm-nfp compare``: what changed between two profiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich import box
from rich.table import Table

from vllm_nfp.cli.common import Refusal, json_option, read_profile
from vllm_nfp.cli.terminal import Console
from vllm_nfp.results.compare import (
    CHANCE_SHARE,
    CompareError,
    Comparison,
    NfpChange,
    TimeChange,
    compare,
)
from vllm_nfp.results.compare_settings import SettingChange
from vllm_nfp.text import duration
from vllm_nfp.types import Basis

MOST_MISSING = 6
"""Cells that only one profile has and that are named; the rest is counted."""


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Also show what did not change.")
@json_option
def compare_command(before: Path, after: Path, everything: bool, as_json: bool) -> None:
    """Show what changed from profile BEFORE to profile AFTER, and whether it is significant.

    Significant: the 95 % intervals do not overlap, and both results were measured.
    """
    try:
        comparison = compare(read_profile(before), read_profile(after))
    except CompareError as error:
        raise Refusal(str(error)) from None
    if as_json:
        click.echo(json.dumps(comparison.to_dict(), indent=1))
    else:
        _print(Console(), comparison, everything)


def _print(console: Console, found: Comparison, everything: bool) -> None:
    for noun, change in found.different:
        told = f"Two different {noun}: {_plain(change.before)} and {_plain(change.after)}."
        console.print(f"[bold]{told}[/bold]", highlight=False)
    if found.different:
        console.print("The changes below are differences between them.")
    if found.cut:
        console.print(
            f"Only a part of a model was timed ({'; '.join(found.cut)}).", highlight=False
        )
    console.print(_settings_table(found.settings) if found.settings else "Environment: no change")
    _print_nfp(console, found, everything)
    _print_times(console, found, everything)
    for cells, which in ((found.only_before, "before"), (found.only_after, "after")):
        if cells:
            more = f" and {len(cells) - MOST_MISSING} more" if len(cells) > MOST_MISSING else ""
            names = ", ".join(cells[:MOST_MISSING])
            console.print(f"Only {which}: {names}{more}", highlight=False)


def _print_nfp(console: Console, found: Comparison, everything: bool) -> None:
    changed = found.significant_nfp
    judged = [row for row in found.nfp if row.significant is not None]
    if changed:
        console.print(f"NFP: {len(changed)} of {len(judged)} boundaries moved significantly")
    elif judged:
        console.print(f"NFP: no significant change in {len(judged)} boundaries")
    else:
        console.print(f"NFP: none of {len(found.nfp)} boundaries was measured in both profiles")
    if 0 < len(judged) < len(found.nfp):
        console.print(
            f"NFP: {len(found.nfp) - len(judged)} not compared: not measured in both profiles"
        )
    rows = found.nfp if everything else changed
    if rows:
        console.print(_nfp_table(rows))


def _print_times(console: Console, found: Comparison, everything: bool) -> None:
    judged = [row for row in found.times if row.significant is not None]
    changed = found.significant_times
    if not judged:
        console.print("Median times: too few samples, or not measured in both profiles")
    elif changed:
        console.print(
            f"Median times: {len(changed)} of {len(judged)} changed significantly; about "
            f"{CHANCE_SHARE * len(judged):.1f} would by chance. Clocks and temperature also differ "
            f"between runs, which the intervals do not include."
        )
    else:
        console.print(f"Median times: no significant change in {len(judged)} points")
    rows = found.times if everything else changed
    if rows:
        console.print(_times_table(rows))


def _new_table(title: str, *names: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1), title_justify="left")
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    return table


def _settings_table(rows: Sequence[SettingChange]) -> Table:
    table = Table(title="Environment", box=box.SIMPLE, padding=(0, 1), title_justify="left")
    for name in ("what", "before", "after"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(text) for text in (row.name, row.before, row.after)))
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "?" for c in text))


def _nfp_table(rows: Sequence[NfpChange]) -> Table:
    table = _new_table("NFP [95 % interval]", "module", "L", "B", "epsilon", "before", "after", "")
    for row in rows:
        table.add_row(
            row.module,
            str(row.context),
            str(row.batch_size),
            f"{row.epsilon:.3g}",
            _interval(row.before, row.before_lower, row.before_upper, row.before_basis),
            _interval(row.after, row.after_lower, row.after_upper, row.after_basis),
            _moved(row),
        )
    return table


def _interval(positions: int, lower: int, upper: int | None, basis: Basis) -> str:
    more = "+" if upper is None else ""
    told = f"{positions}{more} \\[{lower}, {'-' if upper is None else upper}]"
    return told if basis is Basis.MEASURED else f"{told} {basis}"


def _moved(row: NfpChange) -> str:
    if row.significant is None:
        return "not compared"
    if not row.significant:
        return "no significant change"
    return "more" if row.after > row.before else "fewer"


def _times_table(rows: Sequence[TimeChange]) -> Table:
    table = _new_table("Median time", "module", "L", "B", "N", "before", "after", "change", "")
    for row in rows:
        table.add_row(
            row.module,
            str(row.context),
            str(row.batch_size),
            str(row.positions),
            _time(row.before_seconds, row.before_basis),
            _time(row.after_seconds, row.after_basis),
            f"{row.ratio - 1.0:+.1%}",
            _verdict(row),
        )
    return table


def _time(seconds: float, basis: Basis) -> str:
    return duration(seconds) if basis is Basis.MEASURED else f"{duration(seconds)} {basis}"


def _verdict(row: TimeChange) -> str:
    if {row.before_basis, row.after_basis} != {Basis.MEASURED}:
        return "not compared"
    if row.significant is None:
        return "too few samples"
    if not row.significant:
        return "no significant change"
    return "slower" if row.ratio > 1.0 else "faster"
