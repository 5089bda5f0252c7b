"""Rates that follow from the rows of the draft length benchmark; see benchmarks.drafts.table."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drafts.cost import draft_cost
from benchmarks.drafts.plan import (
    ACCEPTANCES,
    DOCUMENTED,
    LENGTHS,
    ROUND,
    step_times,
)
from benchmarks.drafts.times import filed_under, length_seconds, method_of, read_rows, spread
from vllm_nfp.draft import constant, expected_tokens
from vllm_nfp.draft.demand import FREE, DraftCost
from vllm_nfp.draft.inputs import StepTimes, source_of
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.draft.speculative_config import table

STEADY = 1.1
"""Spread up to which a point's rounds resolve differences of a few per cent."""
Point = tuple[float, int, int]
"""(acceptance, context, batch size)."""


def expected_rate(row: Mapping[str, Any], acceptance: float) -> float:
    """Tokens per second at an acceptance, given the steps of each length and their medians."""
    tokens = seconds = 0.0
    for length, count in row["lengths"].items():
        tokens += count * expected_tokens(int(length), acceptance)
        seconds += count * row["medians"][length]
    return float(row["batch_size"] * tokens / seconds)


def rate_at(row: Mapping[str, Any], acceptance: float, seconds: Mapping[int, float]) -> float:
    """Tokens per second of the lengths that a row's steps ran, at these times."""
    batch_size = row.get("batch_size", row.get("level"))
    tokens = sum(n * expected_tokens(int(k), acceptance) for k, n in row["lengths"].items())
    return float(batch_size * tokens / sum(n * seconds[int(k)] for k, n in row["lengths"].items()))


def _median_rate(
    rows: Sequence[Mapping[str, Any]],
    point: Point,
    policy: str,
    seconds: Mapping[int, float] | None,
) -> float | None:
    """Of a policy at a point, over its rounds; at its own times if no others are given."""
    found = []
    for row in rows:
        if (row["context"], row["batch_size"]) != point[1:] or row["policy"] != policy:
            continue
        if policy == "live" and row["acceptance"] != point[0]:
            continue
        if seconds is None:
            found.append(expected_rate(row, point[0]))
        else:
            found.append(rate_at(row, point[0], seconds))
    return statistics.median(found) if found else None


def raw_over_expected(rows: Sequence[Mapping[str, Any]]) -> float:
    """Tokens that came out over those on average to be expected, over all drafting steps."""
    drafting = [row for row in rows if row["policy"] not in ("none", "fixed:0")]
    made = sum(row["tokens"] for row in drafting)
    expected = sum(
        row["batch_size"] * count * expected_tokens(int(length), row["acceptance"])
        for row in drafting
        for length, count in row["lengths"].items()
    )
    return float(made / expected)


def live_length(rows: Sequence[Mapping[str, Any]], point: Point) -> int:
    """The length of most steps that the live controller ran at a point."""
    steps: Counter[int] = Counter()
    for row in rows:
        at = (row["acceptance"], row["context"], row["batch_size"])
        if row["policy"] == "live" and at == point:
            steps.update({int(length): count for length, count in row["lengths"].items()})
    return steps.most_common(1)[0][0]


def length_in(table: Sequence[Sequence[int]], batch_size: int) -> int:
    """The draft length of a batch size, as vLLM reads a table: gaps and the tail carry on."""
    length = 0
    for first, _, k in table:
        if first <= batch_size:
            length = k
    return length


def our_length(source: StepTimes, point: Point, cost: DraftCost = FREE) -> int:
    """What ``recommend`` chooses from the step's curves for this context alone."""
    acceptance, context, batch_size = point
    found = recommend(
        source, constant(acceptance), cost=cost, max_batch_size=128, draft_lengths=LENGTHS
    )
    at = filed_under(context, (row.context for row in found.rows))
    return next(
        row.draft_length
        for row in found.rows
        if row.context == at and row.batch_size_first <= batch_size <= row.batch_size_last
    )


def recommended(
    source: StepTimes, acceptance: float, context: int, largest: int, cost: DraftCost = FREE
) -> list[list[int]]:
    """The table that ``recommend`` makes of the step's curves.

    Args:
        context: of the traffic; the curves of the nearest known one count.
        cost: of the drafts, as :mod:`benchmarks.drafts.cost` finds it: for a head the controllers'
            measured time of a drafted token, or else that of the measured round.
    """
    known = {curve.context for curve in source_of(source).curves}
    at = filed_under(context, known)
    found = recommend(
        source,
        constant(acceptance),
        cost=cost,
        contexts=() if at is None else (at,),
        max_batch_size=largest,
        draft_lengths=LENGTHS,
    )
    return table(found.schedule)


def point_rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each point: the best fixed length, and every policy's rate over its rate."""
    source, rows = step_times(folder / "spec"), read_rows(folder / "points.jsonl")
    method, cost = method_of(rows), _cost(folder, source, rows)
    times = length_seconds(rows)
    found = []
    for acceptance, (context, batch_size) in itertools.product(ACCEPTANCES, sorted(times)):
        point, seconds = (acceptance, context, batch_size), times[context, batch_size]
        fixed = {k: batch_size * expected_tokens(k, acceptance) / t for k, t in seconds.items()}
        none = _median_rate(rows, point, "none", None)
        live = _median_rate(rows, point, "live", seconds)
        timed = _median_rate(rows, point, "live", None)
        if len(fixed) < len(LENGTHS) or none is None or live is None or timed is None:
            continue
        best = max(fixed, key=lambda k: fixed[k])
        ours, documented = our_length(source, point, cost), length_in(DOCUMENTED, batch_size)
        ours_rate = fixed[ours]
        found.append({
            "method": method, "draft_token_seconds": cost.seconds_per_token,
            "acceptance": acceptance, "context": context, "batch_size": batch_size,
            "best": best, "best_rate": fixed[best],
            "none": none / fixed[best], "zero": fixed[0] / fixed[best],
            "documented_length": documented,
            "documented": fixed[documented] / fixed[best],
            "ours_length": ours, "ours": ours_rate / fixed[best],
            "live_length": live_length(rows, point),
            "live": live / fixed[best], "live_timed": timed / fixed[best],
            "ours_over_none": ours_rate / none, "live_over_none": live / none,
            "spread": spread(rows, (context, batch_size)),
            **{f"fixed_{k}": rate / fixed[best] for k, rate in sorted(fixed.items())},
        })  # fmt: skip
    return found


def _cost(folder: Path, source: StepTimes, rows: Sequence[Mapping[str, Any]]) -> DraftCost:
    """What drafts cost by all that the run has measured."""
    rounds = [row for row in rows if row["policy"] == ROUND]
    return draft_cost(method_of(rows), read_rows(folder / "draft_costs.jsonl"), rounds, source)


def ramp_rows(folder: Path) -> list[dict[str, Any]]:
    """Tokens per second over the whole ramp, by round and policy.

    Expected ones, at what each level's lengths took over all fixed ramps, and as they came.
    """
    rows = read_rows(folder / "ramps.jsonl")
    times = length_seconds(rows)
    totals: dict[tuple[float, int, str], list[float]] = defaultdict(lambda: [0.0] * 4)
    for row in rows:
        total = totals[row["acceptance"], row["round"], _name(row["policy"])]
        seconds = times[row["context"], row["level"]]
        # Every level lasts equally long, so that the rate of the whole is their mean.
        if row["policy"] == "none" or not {int(k) for k in row["lengths"]} <= set(seconds):
            rate = expected_rate({**row, "batch_size": row["level"]}, row["acceptance"])
        else:
            rate = rate_at(row, row["acceptance"], seconds)
        total[0] += row["tokens"]
        total[1] += row["elapsed"]
        total[2] += rate
        total[3] += 1
    return [
        {
            "method": method_of(rows), "acceptance": a, "round": number, "policy": policy,
            "raw": tokens / seconds, "expected": rate / levels,
        }
        for (a, number, policy), (tokens, seconds, rate, levels) in sorted(totals.items())
    ]  # fmt: skip


def _name(policy: str) -> str:
    if policy.startswith("table:"):
        return "documented" if json.loads(policy[6:]) == DOCUMENTED else "ours"
    return policy


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the claims fare over the points."""

    def below(key: str, least: float, of: Sequence[Mapping[str, Any]] = rows) -> int:
        return sum(row[key] < least for row in of)

    steady = [row for row in rows if row["spread"] <= STEADY]
    return {
        "points": len(rows),
        "steady_points": len(steady),
        "steady_ours_beyond_2_percent": below("ours", 0.98, steady),
        "steady_live_beyond_2_percent": below("live", 0.98, steady),
        **{
            f"{key}_worst": min(row[key] for row in rows)
            for key in (
                "ours",
                "live",
                "live_timed",
                "documented",
                "ours_over_none",
                "live_over_none",
            )
        },
        **{
            f"{key}_median": statistics.median(row[key] for row in rows)
            for key in ("ours", "live", "live_timed", "documented")
        },
        "ours_beyond_2_percent": below("ours", 0.98),
        "live_beyond_2_percent": below("live", 0.98),
        "documented_beyond_2_percent": below("documented", 0.98),
        "ours_below_none_by_1_percent": below("ours_over_none", 0.99),
        "live_below_none_by_1_percent": below("live_over_none", 0.99),
    }
