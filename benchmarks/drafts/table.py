"""Tables of what benchmarks.drafts.lengths has written; needs no GPU.

    python -m benchmarks.drafts.table DIR [DIR ...]

A rate is B E(K) for each step of K drafts, over the time of these steps: the tokens that come out
on average at the set acceptance, on a host that nothing stops. Synthetic acceptance is a throw of
dice, so that the tokens that did come out scatter by several per cent where few are made.

The time of a length is the median of its steps on the round of all lengths, and a policy is judged
by the lengths that it ran at these times (``live``, ``ours``, ``docs``). ``live`` also shows the
length of most of its steps; others were trials. ``live timed`` uses the times of the controller's
own turns instead, in which alone the host may have been slow. Below the tables: whether tokens as
they came and as expected agree over all steps, and the fraction of the time in which the host was
stopped.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.drafts.rates import (
    point_rows,
    ramp_rows,
    raw_over_expected,
    summary,
)
from benchmarks.drafts.times import read_rows, stalls, step_over_probe


def print_points(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of the points."""
    table = Table(title=title)
    for name in (
        "a",
        "L",
        "B",
        "best K",
        "tok/s",
        "none",
        "K=0",
        "docs",
        "ours",
        "live",
        "live timed",
        "spread",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['acceptance']:g}", str(row["context"]), str(row["batch_size"]),
            str(row["best"]), f"{row['best_rate']:.0f}", f"{row['none']:.3f}",
            f"{row['zero']:.3f}", f"{row['documented']:.3f} (K={row['documented_length']})",
            f"{row['ours']:.3f} (K={row['ours_length']})",
            f"{row['live']:.3f} (K={row['live_length']})",
            f"{row['live_timed']:.3f}", f"{row['spread']:.3f}",
        )  # fmt: skip
    console.print(table)


def _print_agreement(console: Console, found: Sequence[float]) -> None:
    if found:
        within = {share: sum(abs(one - 1.0) <= share for one in found) for share in (0.03, 0.05)}
        console.print(
            f"the engine's step over the probe's, in CUDA graphs: {len(found)} points, median "
            f"{statistics.median(found):.3f}, {min(found):.3f} to {max(found):.3f}, "
            f"{within[0.03]} within 3 %, {within[0.05]} within 5 %"
        )


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def main(folders: tuple[Path, ...], as_json: bool) -> None:
    """Print the tables; see the module's text."""
    console = Console(width=160)
    for folder in folders:
        rows, ramps = point_rows(folder), ramp_rows(folder)
        if as_json:
            found = {"folder": folder.name, "points": rows, "ramps": ramps}
            json.dump({**found, "summary": summary(rows) if rows else None}, sys.stdout)
            continue
        if rows:
            method, seconds = rows[0]["method"], rows[0]["draft_token_seconds"]
            print_points(console, f"{folder.name}: {method}, {seconds * 1e3:.3g} ms a draft", rows)
            console.print(summary(rows))
            all_rows = read_rows(folder / "points.jsonl")
            console.print(f"time beyond the medians: {stalls(all_rows):.3f}")
            console.print(f"tokens over expected tokens: {raw_over_expected(all_rows):.4f}")
            _print_agreement(console, step_over_probe(folder))
        table = Table(title=f"{folder.name}: the ramp")
        for name in ("acceptance", "round", "policy", "tok/s, expected", "as they came"):
            table.add_column(name, justify="right")
        for row in ramps:
            table.add_row(
                f"{row['acceptance']:g}", str(row["round"]), row["policy"],
                f"{row['expected']:.0f}", f"{row['raw']:.0f}",
            )  # fmt: skip
        console.print(table)


if __name__ == "__main__":
    main()
