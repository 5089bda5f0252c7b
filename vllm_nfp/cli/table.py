"""``vllm-nfp table``: the free positions of a running server."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from vllm_nfp import watch
from vllm_nfp.cli.common import Refusal, json_option
from vllm_nfp.cli.nfp_filter import Filter, filter_options
from vllm_nfp.cli.nfp_table import Line, lines_of, nfp_table, print_whole
from vllm_nfp.cli.terminal import Console
from vllm_nfp.cli.watch_view import heading, is_live, notes, prior_lines, step_line
from vllm_nfp.results import fetching, scrape


@click.command("table")
@click.argument("url")
@click.option("--epsilon", type=float, default=None, help="Show only this tolerance.")
@filter_options
@json_option
def table_command(url: str, epsilon: float | None, as_json: bool, shown: Filter) -> None:
    """Print the NFP table of the running server at URL, e.g. http://localhost:8000."""
    if Path(url).is_file():
        raise Refusal(
            f"{url!r:.80} is a file, and table reads a running server: give its URL. For a profile "
            f"use vllm-nfp report or vllm-nfp recommend"
        )
    end = fetching.deadline()
    try:
        reading = watch.read(fetching.fetch(url), end)
    except fetching.ScrapeError as error:
        raise Refusal(str(error)) from None
    if epsilon is not None and epsilon not in reading.epsilons and reading.epsilons:
        known = ", ".join(f"{e:g}" for e in reading.epsilons)
        raise Refusal(f"--epsilon {epsilon:g} is not measured by this server: give one of {known}")
    rows = [row for row in reading.scrape.rows if epsilon is None or row.epsilon == epsilon]
    if as_json:
        click.echo(_as_json(reading, shown.applied(rows)))
    elif len(rows) > scrape.MOST_DRAWN_ROWS:
        raise Refusal(
            f"{len(rows)} estimates do not fit a table of {scrape.MOST_DRAWN_ROWS} rows: give one "
            f"tolerance with --epsilon, or --json"
        )
    else:
        print_table(reading, epsilon, shown)


def _as_json(reading: watch.Reading, rows: Sequence[scrape.Row]) -> str:
    return json.dumps(
        {
            "schema": 1,
            "engines": [dataclasses.asdict(status) for status in reading.scrape.statuses],
            "rows": [dataclasses.asdict(row) for row in rows],
        },
        indent=1,
    )


def print_table(
    reading: watch.Reading, epsilon: float | None = None, shown: Filter | None = None
) -> None:
    """Print what a server says, engine by engine.

    Args:
        epsilon: tolerance to show; None: all.
        shown: batch sizes and contexts to show; None: all.

    Raises:
        Refusal: for a batch size or context that the server does not report.
    """
    console = Console()
    usual = watch.choose_epsilon(reading.epsilons) if epsilon is None else epsilon
    chosen = shown or Filter()
    # Of all engines first: a refusal comes before the first line.
    tables = [
        chosen.applied(lines_of(reading.rows_of(engine.status.engine, epsilon)))
        for engine in reading.engines
    ]
    for engine, lines in zip(reading.engines, tables, strict=True):
        for text in (heading(engine), step_line(engine, usual), *prior_lines(engine.status)):
            console.print(text, soft_wrap=True)
        if not lines:
            console.print("No answer yet: the probe has just started.")
            continue
        _print_lines(console, lines, engine.live)


def _print_lines(
    console: Console, lines: Sequence[Line[scrape.Row]], live: watch.Live | None
) -> None:
    marked = None if live is None else lambda line: is_live(line, live)
    console.print()
    print_whole(console, nfp_table(lines, _predictions(lines), marked))
    console.print(notes(lines, live), highlight=False, markup=False)


def _predictions(
    lines: Sequence[Line[scrape.Row]],
) -> Mapping[str, Callable[[Line[scrape.Row]], str]]:
    """The columns of the prediction and of the idle-compute rule; none on a device without."""
    if all(row.predicted is None for line in lines for row in line.answers.values()):
        return {}
    return {
        "predicted": lambda line: _joined([row.predicted for row in _rows(line)]),
        "idle-\ncompute": lambda line: _joined([row.idle_compute for row in _rows(line)]),
    }


def _rows(line: Line[scrape.Row]) -> Sequence[scrape.Row]:
    return [line.answers[epsilon] for epsilon in sorted(line.answers)]


def _joined(values: Sequence[int | None]) -> str:
    """The values of all tolerances; one if they are the same."""
    texts = ["-" if value is None else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)
