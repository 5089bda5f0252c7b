"""Ratios over a server without hooks, of what benchmarks.switched has measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.hooks import OFF
from benchmarks.overhead_summary import Row, Turn
from benchmarks.paired import (
    Ratio,
    mean_ratio_of_quantiles,
    ratio_of_quantiles,
    ratio_of_sums,
)

SATURATED = 1.0
OPEN_SHARES = (0.1, 0.5, 0.9)
SHARES = (*OPEN_SHARES, SATURATED)


def print_summary(path: Path) -> None:
    """Ratios over ``off`` at every load."""
    record = json.loads(path.read_text(encoding="utf-8"))
    with np.load(f"{str(path).removesuffix('.json')}.npz") as stored:
        itl_us = dict(stored)
    console = Console(width=150)
    table = Table(title=f"{record['settings']['shape']}: over off, 95 % intervals over rounds")
    names = ("load", "variant", "rounds", "intervals", "off p50, ms", "p50", "p99", "tokens/s")
    for name in (*names, "hooks, us/step"):
        table.add_column(name, justify="right")
    for share in SHARES:
        for variant in record["settings"]["variants"][1:]:
            table.add_row(*cells(record["rounds"], itl_us, share, variant))
    console.print(table)
    for variant in record["settings"]["variants"][1:]:
        sides = [_sides(record["rounds"], itl_us, share, variant) for share in OPEN_SHARES]
        sides = [both for both in sides if both[0]]
        for name, quantile in (("p50", 0.5), ("p99", 0.99)):
            pooled = mean_ratio_of_quantiles(sides, quantile)
            console.print(f"{variant}, {name}, mean over {len(sides)} loads: {_figure(pooled)}")
    for rank, account in enumerate(record.get("account", ())):
        console.print(f"rank {rank}: resident", account["resident"]["mib"])
        for variant, session in account["sessions"].items():
            console.print(variant, session)


def _figure(ratio: Ratio) -> str:
    return f"{ratio.ratio:.4f} [{ratio.lower:.4f}, {ratio.upper:.4f}]"


def cells(
    rows: Sequence[Row], itl_us: Mapping[str, NDArray[np.uint32]], share: float, variant: str
) -> list[str]:
    """A line of the table."""
    turns = {(r["variant"], r["round"]): r for r in rows if r["share"] == share}
    rounds, sides = _rounds(rows, share, variant), _sides(rows, itl_us, share, variant)
    if not rounds:
        return [f"{100 * share:.0f} %", variant, "0", *[""] * 6]
    tokens = [[turns[v, n]["tokens_per_second"] for n in rounds] for v in (OFF, variant)]
    medians = [sum(turns[variant, n]["hook_median_us"].values()) for n in rounds]
    return [
        f"{100 * share:.0f} %",
        variant,
        str(len(rounds)),
        str(sum(map(len, sides[1]))),
        f"{np.median(np.concatenate(sides[0])) / 1e3:.2f}",
        _figure(ratio_of_quantiles(sides[0], sides[1], 0.5)),
        _figure(ratio_of_quantiles(sides[0], sides[1], 0.99)),
        _figure(ratio_of_sums(tokens[0], tokens[1])) if share == SATURATED else "",
        f"{np.median(medians):.1f}",
    ]


def _rounds(rows: Sequence[Row], share: float, variant: str) -> list[int]:
    """Those in which both the variant and ``off`` had their turn."""
    had = {(r["variant"], r["round"]) for r in rows if r["share"] == share}
    return sorted(n for v, n in had if v == variant and (OFF, n) in had)


def _sides(
    rows: Sequence[Row], itl_us: Mapping[str, NDArray[np.uint32]], share: float, variant: str
) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
    """Intervals without and with the hooks, by round."""
    rounds = _rounds(rows, share, variant)
    off, on = ([itl_us[Turn(share, n, v).key] for n in rounds] for v in (OFF, variant))
    return off, on
