"""Ratios between servers that took turns in benchmarks.overhead.overhead."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.serving.paired import Ratio, ratio_of_quantiles, ratio_of_sums

VARIANTS: Mapping[str, Mapping[str, object] | None] = {
    "off": None,
    "passive": {"passive": True},
    "active": {},
}
"""Settings of the probe by variant; the first one is the baseline."""
BASELINE = "off"
Row = dict[str, Any]
"""One turn, JSON-serializable: share, round, variant, and the load's summary."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One variant's part of a round at one load."""

    share: float
    round: int
    variant: str

    @property
    def key(self) -> str:
        """Name of its inter-token times in the .npz."""
        return f"{round(100 * self.share)}-round{self.round}-{self.variant}"

    @property
    def first_key(self) -> str:
        """Name of its times to first token in the .npz of benchmarks.overhead.switched."""
        return f"{self.key}-first"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one variant at one load."""

    share: float
    variant: str
    figure: str
    rounds: int
    ratio: Ratio


def compare(rows: Sequence[Row], itl_us: Mapping[str, NDArray[np.uint32]]) -> list[Comparison]:
    """Every variant against the baseline at every load, over the rounds that both have."""
    turns = {(row["share"], row["variant"], row["round"]): row for row in rows}
    found = []
    for share in sorted({row["share"] for row in rows}):
        for variant in VARIANTS:
            rounds = sorted(
                r
                for s, v, r in turns
                if (s, v) == (share, variant) and (share, BASELINE, r) in turns
            )
            if variant != BASELINE and rounds:
                found += _compare(turns, itl_us, share, variant, rounds)
    return found


def _compare(
    turns: Mapping[tuple[float, str, int], Row],
    itl_us: Mapping[str, NDArray[np.uint32]],
    share: float,
    variant: str,
    rounds: list[int],
) -> list[Comparison]:
    sides = (BASELINE, variant)
    tokens = [[float(turns[share, v, r]["tokens_per_second"]) for r in rounds] for v in sides]
    times = [[itl_us[Turn(share, r, v).key] for r in rounds] for v in sides]
    if min(sum(side) for side in tokens) <= 0 or min(sum(map(len, side)) for side in times) == 0:
        return []
    return [
        Comparison(share, variant, figure, len(rounds), ratio)
        for figure, ratio in (
            ("tokens/s", ratio_of_sums(tokens[0], tokens[1])),
            ("p50 inter-token", ratio_of_quantiles(times[0], times[1], 0.5)),
            ("p99 inter-token", ratio_of_quantiles(times[0], times[1], 0.99)),
        )
    ]


def client_was_late(row: Row) -> bool:
    """Whether this client, not the server, may have shaped the turn's intervals."""
    lag, interval = row["client_lag_p99_ms"], row["itl_p50_ms"]
    return lag is None or interval is None or lag > interval / 2


def print_result(path: Path) -> None:
    """Print one shape's comparisons and figures."""
    result = json.loads(path.read_text(encoding="utf-8"))
    console = Console(width=120)
    console.print(f"{result['shape']}, {result['layers']} layers; over off, 95 % intervals")
    table = Table()
    for name in ("load", "variant", "figure", "rounds", "ratio"):
        table.add_column(name)
    for line in result["summary"]:
        ratio = line["ratio"]
        table.add_row(
            f"{100 * line['share']:.0f} %",
            line["variant"],
            line["figure"],
            str(line["rounds"]),
            f"{ratio['ratio']:.4f} [{ratio['lower']:.4f}, {ratio['upper']:.4f}]",
        )
    console.print(table)
    for variant, figures in result["servers"].items():
        console.print(variant, figures)
    late = sum(client_was_late(row) for row in result["rounds"])
    if late:
        console.print(f"WARNING: client late in {late} of {len(result['rounds'])} turns")
