"""Goodput of recommended tables and the live controller over the best fixed draft length.

Of rows of benchmarks.draft_servers. A policy's rate at a point is the median over its rounds. The
best fixed length is the best of several noisy rates, so that a policy that always ran it would
score a little below 1.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from benchmarks.draft_fleet import LIVE, NONE

Place: TypeAlias = tuple[str, float, int]
"""(GPU, acceptance, batch size)."""
TABLE, SERVED, FAILED = "table", "served", "failed"
"""A policy, which is also the field of a row that says what became of the recommended table: it was
served, its server failed, or there was none (NONE)."""
CHOSEN = (TABLE, LIVE)
WITHIN = (0.02, 0.05)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all GPUs of a run."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("gpu-*/rows.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def points(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One for each GPU, acceptance and batch size, with rates over the best fixed length's.

    Where no table was recommended, no speculation stands for it. A point that the end of the time
    has cut off in its first round is left out, and a table whose server failed has no score.
    """
    rows = list(rows)
    every = {row["policy"] for row in rows if row["policy"].startswith("fixed:")}
    tables = {(row["gpu"], row["acceptance"]): row.get(TABLE, NONE) for row in rows}
    rates: dict[Place, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    plain: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["policy"] == NONE:
            plain[row["gpu"], row["batch_size"]].append(row["tokens_per_second"])
        else:
            at = (row["gpu"], row["acceptance"], row["batch_size"])
            rates[at][row["policy"]].append(row["tokens_per_second"])
    found = []
    for (gpu, acceptance, batch_size), by_policy in rates.items():
        medians = {policy: statistics.median(values) for policy, values in by_policy.items()}
        medians[NONE] = statistics.median(plain[gpu, batch_size])
        fixed = {p: rate for p, rate in medians.items() if p.startswith("fixed:")}
        table = tables[gpu, acceptance]
        if not {*every, LIVE, *([TABLE] if table == SERVED else [])} <= medians.keys():
            continue
        if table == NONE:
            medians.setdefault(TABLE, medians[NONE])
        best = max(fixed, key=lambda policy: fixed[policy])
        found.append({
            "gpu": gpu, "acceptance": acceptance, "batch_size": batch_size,
            "best": best, "best_rate": fixed[best], "rounds": len(by_policy[LIVE]),
            **{
                policy: medians[policy] / fixed[best]
                for policy in (NONE, *CHOSEN, *fixed) if policy in medians
            },
        })  # fmt: skip
    return sorted(found, key=lambda one: (one["acceptance"], one["batch_size"]))


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the table and the controller fare over all points at which they were measured."""
    each = {policy: [one for one in found if policy in one] for policy in (NONE, *CHOSEN)}
    return {policy: _summary(scored, policy) for policy, scored in each.items() if scored}


def _summary(found: Sequence[Mapping[str, Any]], policy: str) -> dict[str, Any]:
    return {
        "points": len(found),
        "median": statistics.median(one[policy] for one in found),
        "worst": min(one[policy] for one in found),
        **{
            f"within_{round(100 * share)}_percent": sum(one[policy] >= 1.0 - share for one in found)
            for share in WITHIN
        },
        "worst_over_none": min(one[policy] / one[NONE] for one in found),
    }


def print_scores(folders: Sequence[Path]) -> None:
    """A table of the points of each run, and what they come to."""
    console = Console(width=120)
    for folder in folders:
        found = points(read_rows(folder))
        fixed = sorted({key for one in found for key in one if key.startswith("fixed:")})
        table = Table(title=f"{folder.name}: goodput over that of the best fixed length")
        for name in ("a", "B", "rounds", "best", "tok/s", NONE, *CHOSEN, *fixed):
            table.add_column(name, justify="right")
        for one in found:
            table.add_row(
                f"{one['acceptance']:g}", str(one["batch_size"]), str(one["rounds"]), one["best"],
                f"{one['best_rate']:.0f}",
                *(f"{one[p]:.3f}" if p in one else "-" for p in (NONE, *CHOSEN, *fixed)),
            )  # fmt: skip
        console.print(table)
        if found:
            console.print_json(data=summary(found))
