"""``vllm-nfp table``: the NFP that a running server has measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import click
from rich import box
from rich.table import Table
from rich.text import Text

from vllm_nfp.cli.common import Refusal, json_option
from vllm_nfp.cli.terminal import Console
from vllm_nfp.results import scrape
from vllm_nfp.text import printable
from vllm_nfp.types import reading_order


@click.command("table")
@click.argument("url")
@click.option("--epsilon", type=float, default=None, help="Show only this tolerance.")
@json_option
def table_command(url: str, epsilon: float | None, as_json: bool) -> None:
    """Print the NFP table of the running server at URL, e.g. http://localhost:8000."""
    end = scrape.deadline()
    try:
        found = scrape.parse(scrape.fetch(url), end)
    except scrape.ScrapeError as error:
        raise Refusal(str(error)) from None
    if epsilon is not None and all(row.epsilon != epsilon for row in found.rows) and found.rows:
        measured = ", ".join(f"{e:g}" for e in sorted({row.epsilon for row in found.rows}))
        raise Refusal(
            f"--epsilon {epsilon:g} is not measured by this server: give one of {measured}"
        )
    rows = [row for row in found.rows if epsilon is None or row.epsilon == epsilon]
    if as_json:
        click.echo(_as_json(found, rows))
    elif len(rows) > scrape.MOST_DRAWN_ROWS:
        raise Refusal(
            f"{len(rows)} estimates do not fit a table of {scrape.MOST_DRAWN_ROWS} rows: give one "
            f"tolerance with --epsilon, or --json"
        )
    else:
        print_table(found, rows)


def _as_json(found: scrape.Scrape, rows: Sequence[scrape.Row]) -> str:
    return json.dumps(
        {
            "schema": 1,
            "engines": [dataclasses.asdict(status) for status in found.statuses],
            "rows": [dataclasses.asdict(row) for row in rows],
        },
        indent=1,
    )


def print_table(found: scrape.Scrape, rows: Sequence[scrape.Row]) -> None:
    """Print the rows of a scrape."""
    console = Console()
    for status in found.statuses:
        probes = ", ".join(f"{count} {outcome}" for outcome, count in status.probes.items())
        line = (
            f"{status.model_name}, engine {status.engine}: {status.state}; "
            f"overhead {status.overhead_ratio:.2%}; probe pairs: {probes or 'none'}"
        )
        console.print(printable(line), markup=False)
    if not rows:
        console.print(
            "No estimate yet: the probe measures while the server decodes. Send requests."
        )
        return
    table = Table(
        title="Free positions per sequence (NFP) [95 % interval]", box=box.SIMPLE, padding=(0, 1)
    )
    for name in ("module", "L", "B", "epsilon", "NFP", "idle-compute", "predicted"):
        table.add_column(name, justify="left" if name == "module" else "right", no_wrap=True)
    for row in sorted(rows, key=_reading_order):
        more = "+" if row.at_limit else ""
        table.add_row(
            Text(printable(row.module)),
            str(row.context),
            str(row.batch_size),
            f"{row.epsilon:g}",
            Text(f"{row.positions}{more} [{row.lower}, {row.upper}]"),
            "-" if row.idle_compute is None else str(row.idle_compute),
            "-" if row.predicted is None else str(row.predicted),
        )
    console.print(table)
    if any(row.at_limit for row in rows):
        console.print("+ = still free at the largest N measured")


def _reading_order(row: scrape.Row) -> tuple[str, tuple[int, str], int, int, float]:
    """The order of a profile's table."""
    return row.engine, reading_order(row.module), row.context, row.batch_size, row.epsilon
