"""Goodput of recommended tables and the live controller over the best fixed draft length.

Of rows of benchmarks.drafts.servers. A policy's rate at a point is the median over its rounds. The
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

from benchmarks.drafts.fleet import LIVE, NONE

Place: TypeAlias = tuple[str, str | float, int]
"""(GPU, acceptance, batch size); up to 2026-11-29 rows have the acceptance as a number."""
TABLE, SERVED, FAILED, REFUSED = "table", "served", "failed", "refused"
"""A policy, which is also the field of a row that says what became of the recommended table: it was
served, its server failed, ``recommend`` answered with an error, or no drafts pay (NONE)."""
CHOSEN = (TABLE, LIVE)
SILENT_SECONDS = 0.2
"""A round stalled if no request had a token for so long. On an H200 99 of 100 intervals of 8 tokens
of one request were below 0.22 s at 128 streams and K = 8, and far shorter elsewhere; rounds that
stalled had gaps of 0.2 to 2.2 s (docs/draft-results.md)."""
LEFT_OUT = "left_out"
"""Field of a row that stands for a round of a fixed length that was not measured: shorter ones had
lost."""
STALLED = "stalled"
"""Field of a point: by policy, its rounds that stalled. They count in all rates."""
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
    has cut off in its first round is left out, and a table that was not served has no score.
    """
    rows = list(rows)
    every = {row["policy"] for row in rows if row["policy"] not in (NONE, TABLE)}
    lost: dict[Place, set[str]] = defaultdict(set)
    for row in rows:
        if row.get(LEFT_OUT):
            lost[row["gpu"], row["acceptance"], row["batch_size"]].add(row["policy"])
    rows = [row for row in rows if not row.get(LEFT_OUT)]
    tables = {(row["gpu"], row["acceptance"]): row.get(TABLE, NONE) for row in rows}
    rates: dict[Place, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    stalled = _stalled(rows)
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
        if plain[gpu, batch_size]:
            medians[NONE] = statistics.median(plain[gpu, batch_size])
        fixed = {p: rate for p, rate in medians.items() if p.startswith("fixed:")}
        table = tables[gpu, acceptance]
        wanted = {*every, *([TABLE] if table == SERVED else [])}
        if not fixed or not wanted - lost[gpu, acceptance, batch_size] <= medians.keys():
            continue
        if table == NONE and NONE in medians:
            medians.setdefault(TABLE, medians[NONE])
        best = max(fixed, key=lambda policy: fixed[policy])
        found.append({
            "gpu": gpu, "acceptance": acceptance, "batch_size": batch_size,
            "best": best, "best_rate": fixed[best], "rounds": len(by_policy[best]),
            STALLED: {**stalled[gpu, None, batch_size], **stalled[gpu, acceptance, batch_size]},
            **{
                policy: medians[policy] / fixed[best]
                for policy in (NONE, *CHOSEN, *fixed) if policy in medians
            },
        })  # fmt: skip
    return sorted(found, key=lambda one: (str(one["acceptance"]), one["batch_size"]))


def stalls(row: Mapping[str, Any]) -> bool:
    """Whether a round stalled; one of before 2026-11-28 tells it only if it made no token."""
    return bool(row.get("silent_seconds", 0.0) >= SILENT_SECONDS or row["tokens_per_second"] == 0)


def _stalled(
    rows: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str | float | None, int], dict[str, int]]:
    """Rounds that stalled, by place and policy."""
    found: dict[tuple[str, str | float | None, int], dict[str, int]] = defaultdict(dict)
    for row in rows:
        if stalls(row):
            at = found[row["gpu"], row["acceptance"], row["batch_size"]]
            at[row["policy"]] = at.get(row["policy"], 0) + 1
    return found


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the table and the controller fare over all points at which they were measured.

    And again over those points alone at which no round of any policy stalled.
    """
    scores = _scores(found)
    steady = [one for one in found if not one[STALLED]]
    return scores if len(steady) == len(found) else {**scores, "without_stalls": _scores(steady)}


def _scores(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        for name in ("a", "B", "rounds", "best", "tok/s", NONE, *CHOSEN, *map(_short, fixed)):
            table.add_column(name, justify="right")
        for one in found:
            table.add_row(
                str(one["acceptance"]), str(one["batch_size"]), str(one["rounds"]),
                _short(one["best"]), f"{one['best_rate']:.0f}",
                *(f"{one[p]:.3f}" if p in one else "-" for p in (NONE, *CHOSEN, *fixed)),
            )  # fmt: skip
        console.print(table)
        for one in found:
            if one[STALLED]:
                console.print(
                    f"a={one['acceptance']} B={one['batch_size']}: rounds without a token for "
                    f"{SILENT_SECONDS:g} s and more: "
                    + ", ".join(f"{n} of {policy}" for policy, n in sorted(one[STALLED].items()))
                )
        if found:
            console.print_json(data=summary(found))


def _short(policy: str) -> str:
    """A fixed length's name in a narrow table."""
    return policy.replace("fixed:", "K=")
