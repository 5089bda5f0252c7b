"""``vllm-nfp watch``: a live terminal view of a running server."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import RenderableType
from rich.live import Live

from vllm_nfp import watch
from vllm_nfp.cli.common import Refusal, json_option
from vllm_nfp.cli.nfp_filter import Filter, filter_options
from vllm_nfp.cli.terminal import Console
from vllm_nfp.cli.watch_view import render
from vllm_nfp.results import fetching, scrape

FETCH_LIMIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Refresh:
    """One update: a reading of the server, or why there is none."""

    reading: watch.Reading | None
    before: watch.Reading | None
    """The last reading before this update."""
    problem: str = ""


@click.command("watch")
@click.argument("url")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two updates.",
)
@click.option("--epsilon", type=float, default=None, help="Tolerance to show [default: 0.1].")
@click.option("--once", is_flag=True, help="Print one view and exit.")
@filter_options
@json_option
def watch_command(
    url: str, interval: float, epsilon: float | None, once: bool, as_json: bool, shown: Filter
) -> None:
    """Watch free positions, batch, drafts and overhead of the server at URL.

    It keeps running while the server restarts; Ctrl-C ends it. With --json each update is one line.
    """
    try:
        first = _look(url, None)
        if first.reading is None:
            raise Refusal(first.problem)
        _check_epsilon(epsilon, first.reading)
        looks = iter([first]) if once else _looks(url, first, interval)
        if as_json:
            for refresh in looks:
                click.echo(json.dumps(_as_json(url, refresh, shown)))
        else:
            _show(looks, epsilon, once, shown)
    except KeyboardInterrupt:
        return


def _look(url: str, before: watch.Reading | None) -> _Refresh:
    end = fetching.deadline(FETCH_LIMIT_SECONDS)
    try:
        reading = watch.read(fetching.fetch(url, FETCH_LIMIT_SECONDS), end)
        _check_drawable(reading)
        return _Refresh(reading, before)
    except fetching.ScrapeError as error:
        return _Refresh(None, before, f"{error}")


def _check_drawable(reading: watch.Reading) -> None:
    most = max(Counter(row.epsilon for row in reading.scrape.rows).values(), default=0)
    if most > scrape.MOST_DRAWN_ROWS:
        raise fetching.ScrapeError(
            f"the server shows {most} estimates at one tolerance, more than a view of "
            f"{scrape.MOST_DRAWN_ROWS} holds: take vllm-nfp table --json"
        )


def _looks(
    url: str, first: _Refresh, interval: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[_Refresh]:
    """The first update and then one after the other, without end."""
    refresh, last = first, first.reading
    while True:
        yield refresh
        sleep(interval)
        refresh = _look(url, last)
        last = refresh.reading or last


def _check_epsilon(epsilon: float | None, reading: watch.Reading) -> None:
    if epsilon is not None and reading.epsilons and epsilon not in reading.epsilons:
        measured = ", ".join(f"{e:g}" for e in reading.epsilons)
        raise Refusal(
            f"--epsilon {epsilon:g} is not measured by this server: give one of {measured}"
        )


def _show(looks: Iterator[_Refresh], epsilon: float | None, once: bool, shown: Filter) -> None:
    console = Console()
    if once or not console.is_terminal:  # a file or pipe gets the views one below the other
        for refresh in looks:
            console.print(_view(refresh, epsilon, shown))
        return
    with Live(console=console, screen=True, auto_refresh=False) as display:
        for refresh in looks:
            display.update(_view(refresh, epsilon, shown), refresh=True)


def _view(refresh: _Refresh, epsilon: float | None, shown: Filter) -> RenderableType:
    # Without a new reading the last one stays, with the reason.
    last = refresh.reading or refresh.before
    assert last is not None, "the first look has a reading"
    before = refresh.before if refresh.reading else None
    chosen = watch.choose_epsilon(last.epsilons) if epsilon is None else epsilon
    return render(last, before, chosen, refresh.problem, shown)


def _as_json(url: str, refresh: _Refresh, shown: Filter) -> dict[str, Any]:
    reading = refresh.reading
    line: dict[str, Any] = {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": url,
        "problem": refresh.problem or None,
    }
    if reading is None:
        return {**line, "engines": [], "rows": []}
    earlier = {e.status.engine: e for e in refresh.before.engines} if refresh.before else {}
    return {
        **line,
        "engines": [_engine_json(e, earlier.get(e.status.engine)) for e in reading.engines],
        "rows": [dataclasses.asdict(row) for row in shown.applied(reading.scrape.rows)],
    }


def _engine_json(engine: watch.EngineReading, before: watch.EngineReading | None) -> dict[str, Any]:
    live, drafting = engine.live, engine.drafting
    recent = drafting.since(before.drafting if before else None) if drafting else None
    return {
        **dataclasses.asdict(engine.status),
        "overhead_budget": engine.overhead_budget,
        "live": None
        if live is None
        else {
            "batch_size": live.batch_size,
            "context": live.context,
            "positions": live.positions,
            "cell": None
            if live.cell is None
            else {"batch_size": live.cell[0], "context": live.cell[1]},
            "free_tokens": {f"{e:g}": tokens for e, tokens in live.free_tokens.items()},
            "basis": {f"{e:g}": live.basis(e) for e in live.free_tokens},
            "recommended_draft_length": live.draft_length,
        },
        "drafting": None
        if recent is None
        else {
            "draft_length": recent.draft_length,
            "acceptance": recent.acceptance,
            "drafts": recent.drafts,
        },
        "recommended_draft_lengths": {str(b): k for b, k in sorted(engine.recommended.items())},
    }
