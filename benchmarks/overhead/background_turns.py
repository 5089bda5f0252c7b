"""Claim: what a probe costs in the tail is its background thread's work, and not its pairs.

    python -m benchmarks.overhead.background_turns DIR/switched-qwen3-8b.json

On a record of :mod:`benchmarks.overhead.switched`. Turns at the defaults and with hooks off are
divided by the CPU time that the background thread took in them: in a busy turn more than
:data:`benchmarks.overhead.switched_summary.BUSY_SHARE` of a core. In a turn with hooks off it
finished what it had begun before, in runs up to 2026-11-29. Printed are times to first token and
inter-token latency of both kinds. Turns have the same arrivals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.overhead.hooks import OFF
from benchmarks.overhead.overhead_summary import Row, Turn
from benchmarks.overhead.switched_summary import OPEN_SHARES, busy, times_of

PERCENTILES = (50, 90, 99)
DEFAULTS = "active"


@dataclass(frozen=True, slots=True)
class Kind:
    """Turns of one load and variant in which the background thread was busy, or was not.

    Attributes:
        delayed: decode steps that probes delayed.
        first_ms: times to first token.
        between_ms: inter-token times.
    """

    share: float
    variant: str
    busy: bool
    turns: int
    delayed: int
    first_ms: NDArray[np.float64]
    between_ms: NDArray[np.float64]

    def cells(self) -> list[str]:
        """A line of the table."""
        return [
            f"{100 * self.share:.0f} %",
            self.variant,
            "busy" if self.busy else "quiet",
            str(self.turns),
            str(self.delayed),
            _at(self.first_ms, 0),
            _at(self.between_ms, 1),
            f"{len(self.first_ms)}, {len(self.between_ms)}",
        ]


def kinds(rows: Sequence[Row], times_us: Mapping[str, NDArray[np.uint32]]) -> Iterator[Kind]:
    """Each load, variant and kind of turn that the record has."""
    for share in OPEN_SHARES:
        for variant in (OFF, DEFAULTS):
            for was_busy in (False, True):
                turns = [
                    row
                    for row in rows
                    if (row["share"], row["variant"]) == (share, variant) and busy(row) is was_busy
                ]
                if turns:
                    yield _kind(share, variant, was_busy, turns, times_us)


def _kind(
    share: float,
    variant: str,
    busy: bool,
    rows: Sequence[Row],
    times_us: Mapping[str, NDArray[np.uint32]],
) -> Kind:
    turns = [Turn(share, row["round"], variant) for row in rows]
    return Kind(
        share,
        variant,
        busy,
        len(turns),
        sum(int(row.get("hook_delayed_steps", 0)) for row in rows),
        np.concatenate([times_us[turn.first_key] for turn in turns]) / 1e3,
        np.concatenate([times_us[turn.key] for turn in turns]) / 1e3,
    )


def _at(times_ms: NDArray[np.float64], digits: int) -> str:
    if not len(times_ms):
        return "-"
    return ", ".join(f"{value:.{digits}f}" for value in np.percentile(times_ms, PERCENTILES))


@click.command()
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(record: Path) -> None:
    """Print turns in which the background thread was busy beside those in which it was not."""
    rows = json.loads(record.read_text(encoding="utf-8"))["rounds"]
    table = Table(
        "load", "variant", "background", "turns", "delayed steps",
        "TTFT p50, p90, p99, ms", "ITL p50, p90, p99, ms", "n",
    )  # fmt: skip
    for kind in kinds(rows, times_of(record)):
        table.add_row(*kind.cells())
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
