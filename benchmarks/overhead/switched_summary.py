"""Ratios over a server without hooks, of what benchmarks.overhead.switched has measured."""

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

from benchmarks.overhead.hooks import OFF
from benchmarks.overhead.overhead_summary import Row, Turn
from benchmarks.serving.paired import (
    COARSE_BIN_US,
    Ratio,
    Rounds,
    delay_us,
    mean_ratio_of_quantiles,
    ratio_of_means,
    ratio_of_quantiles,
    ratio_of_sums,
)

SATURATED = 1.0
OPEN_SHARES = (0.1, 0.5, 0.9)
SHARES = (*OPEN_SHARES, SATURATED)
BUSY_SHARE = 0.06
"""Of a core, that the probe's threads take in a turn in which they disturb: 30 ms in half a second,
two publications of 15 ms or a part of a larger one."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A variant against ``off`` at one load.

    A round whose turn without hooks was busy does not count: up to 2026-11-29 threads went on there
    with what they had begun, and with no session they do not wait for steps that read prompts.

    Attributes:
        rounds: that count.
        busy: rounds that do not.
        intervals: inter-token times with the hooks.
        first_tokens: times to first token with the hooks.
        off_p50_ms: median inter-token time without them.
        ratios: by figure, variant over ``off``; without those that the run did not keep.
        delayed: decode steps that a probe delayed; None where the run did not count them.
        decode_steps: all decode steps with the hooks.
        idle_probes: pairs that ran while no request was there.
        delay_ms: by how much a delayed step is longer, from the mean of all inter-token times.
        hook_share: of the turns' time, spent in the hooks by the serving thread, probes and their
            launch among it.
        background_share: of the turns' time, CPU time of the probe's own threads.
        core_share: of the turns' time, the draft control's in the engine core, its thread's CPU
            time included; None where the engine core was not watched.
    """

    share: float
    variant: str
    rounds: int
    busy: int
    intervals: int
    first_tokens: int
    off_p50_ms: float
    ratios: Mapping[str, Ratio]
    delayed: int | None
    decode_steps: int
    idle_probes: int
    delay_ms: Ratio | None
    hook_share: float
    background_share: float | None
    core_share: float | None


def compare(
    rows: Sequence[Row],
    times_us: Mapping[str, NDArray[np.uint32]],
    share: float,
    variant: str,
    drafts: bool = False,
) -> Compared | None:
    """A variant against ``off`` over the quiet rounds that both have; None if there are none.

    Args:
        drafts: the server speculates. Tokens then come several at once, so that their median
            distance says nothing and is left out; the mean and tokens/s do.
    """
    turns = {(r["variant"], r["round"]): r for r in rows if r["share"] == share}
    ran, rounds = _rounds(rows, share, variant)
    if not rounds:
        return None
    off, on = ([turns[v, n] for n in rounds] for v in (OFF, variant))
    steps, first = _sides(times_us, share, variant, rounds)
    seconds = sum(row["seconds"] for row in on)
    counted = all("background_seconds" in row for row in on)
    delayed = [row.get("hook_delayed_steps", 0) for row in on]
    decoded = [row.get("hook_decode_steps", 0) for row in on]
    return Compared(
        share,
        variant,
        len(rounds),
        ran - len(rounds),
        sum(map(len, steps[1])),
        sum(map(len, first[1])),
        float(np.median(np.concatenate(steps[0]))) / 1e3,
        _ratios(share, off, on, steps, first, drafts),
        sum(delayed) if counted else None,
        sum(decoded),
        sum(row.get("hook_idle_probes", 0) for row in on),
        _in_ms(delay_us(*steps, delayed, decoded)) if sum(delayed) else None,
        sum(row["hook_seconds"] for row in on) / seconds,
        sum(row["background_seconds"] for row in on) / seconds if counted else None,
        _core_seconds(on) / seconds if all("core_hook_seconds" in row for row in on) else None,
    )


def busy(row: Row) -> bool:
    """Whether the probe's threads worked much in this turn; not known of older runs."""
    found: bool = row.get("background_seconds", 0.0) > BUSY_SHARE * row["seconds"]
    return found


def _rounds(rows: Sequence[Row], share: float, variant: str) -> tuple[int, list[int]]:
    """How many rounds have both sides, and those whose turn without hooks was quiet."""
    at = [row for row in rows if row["share"] == share]
    on = {row["round"] for row in at if row["variant"] == variant}
    off = [row for row in at if row["variant"] == OFF and row["round"] in on]
    return len(off), sorted(row["round"] for row in off if not busy(row))


def _core_seconds(rows: Sequence[Row]) -> float:
    found: float = sum(row["core_hook_seconds"] + row["core_thread_seconds"] for row in rows)
    return found


def _sides(
    times_us: Mapping[str, NDArray[np.uint32]], share: float, variant: str, rounds: Sequence[int]
) -> tuple[tuple[Rounds, Rounds], tuple[Rounds, Rounds]]:
    """Inter-token times without and with the hooks by round, and times to first token."""
    none = np.zeros(0, np.uint32)
    off, on = ([Turn(share, n, v) for n in rounds] for v in (OFF, variant))
    return (
        ([times_us[turn.key] for turn in off], [times_us[turn.key] for turn in on]),
        (
            [times_us.get(turn.first_key, none) for turn in off],
            [times_us.get(turn.first_key, none) for turn in on],
        ),
    )


def _ratios(
    share: float,
    off: Sequence[Row],
    on: Sequence[Row],
    steps: tuple[Rounds, Rounds],
    first: tuple[Rounds, Rounds],
    drafts: bool,
) -> dict[str, Ratio]:
    found = {} if drafts else {"itl_p50": ratio_of_quantiles(*steps, 0.5)}
    found |= {
        "itl_p99": ratio_of_quantiles(*steps, 0.99),
        "itl_mean": ratio_of_means(*steps),
    }
    if min(sum(map(len, side)) for side in first):
        found["ttft_p50"] = ratio_of_quantiles(*first, 0.5, COARSE_BIN_US)
        found["ttft_p99"] = ratio_of_quantiles(*first, 0.99, COARSE_BIN_US)
    if share == SATURATED:
        tokens = [[row["tokens_per_second"] for row in side] for side in (off, on)]
        found["tokens"] = ratio_of_sums(*tokens)
    return found


def _in_ms(found: Ratio) -> Ratio:
    return Ratio(found.ratio / 1e3, found.lower / 1e3, found.upper / 1e3)


def all_loads(path: Path) -> list[Compared]:
    """Every load and variant of a run."""
    record = json.loads(path.read_text(encoding="utf-8"))
    times_us = times_of(path)
    return [
        found
        for share in SHARES
        for variant in record["settings"]["variants"][1:]
        if (found := compare(record["rounds"], times_us, share, variant, _drafts(record)))
        is not None
    ]


def _drafts(record: Mapping[str, Any]) -> bool:
    return record["settings"].get("draft") is not None


def times_of(path: Path) -> dict[str, NDArray[np.uint32]]:
    """The times beside a run's JSON file."""
    with np.load(path.with_suffix(".npz")) as stored:
        return dict(stored)


def print_summary(path: Path) -> None:
    """Ratios over ``off`` at every load."""
    record = json.loads(path.read_text(encoding="utf-8"))
    console = Console(width=220)
    table = Table(title=f"{record['settings']['shape']}: over off, 95 % intervals over rounds")
    for name in HEADS:
        table.add_column(name, justify="right")
    for found in all_loads(path):
        table.add_row(*cells(found))
    console.print(table)
    times_us = times_of(path)
    for variant in record["settings"]["variants"][1:]:
        for name, quantile in (("p50", 0.5), ("p99", 0.99))[_drafts(record) :]:
            pooled = over_loads(record["rounds"], times_us, variant, quantile)
            if pooled is not None:
                console.print(f"{variant}, {name}, mean over the loads: {figure(pooled)}")
    for rank, account in enumerate(record.get("account", ())):
        console.print(f"rank {rank}: resident", account["resident"]["mib"])
        for variant, session in account["sessions"].items():
            console.print(variant, session)


HEADS = (
    "load", "variant", "rounds, busy", "intervals", "first tokens", "off p50, ms", "p50", "p99",
    "mean", "TTFT p50", "TTFT p99", "tokens/s", "delayed", "idle", "ms a delay", "hooks", "threads",
    "engine core",
)  # fmt: skip


def cells(found: Compared) -> list[str]:
    """A line of the table."""
    ratios = [
        figure(found.ratios[name]) if name in found.ratios else ""
        for name in ("itl_p50", "itl_p99", "itl_mean", "ttft_p50", "ttft_p99", "tokens")
    ]
    delayed = "" if found.delayed is None else f"{found.delayed} of {found.decode_steps}"
    background, core = found.background_share, found.core_share
    return [
        f"{100 * found.share:.0f} %",
        found.variant,
        f"{found.rounds}, {found.busy}",
        str(found.intervals),
        str(found.first_tokens),
        f"{found.off_p50_ms:.2f}",
        *ratios,
        delayed,
        str(found.idle_probes),
        "" if found.delay_ms is None else figure(found.delay_ms, 1),
        f"{found.hook_share:.2%}",
        "" if background is None else f"{background:.2%}",
        "" if core is None else f"{core:.2%}",
    ]


def figure(ratio: Ratio, digits: int = 4) -> str:
    """As it is printed."""
    return f"{ratio.ratio:.{digits}f} [{ratio.lower:.{digits}f}, {ratio.upper:.{digits}f}]"


def over_loads(
    rows: Sequence[Row], times_us: Mapping[str, NDArray[np.uint32]], variant: str, quantile: float
) -> Ratio | None:
    """Geometric mean of a quantile's ratio over the loads with random arrivals."""
    sides = []
    for share in OPEN_SHARES:
        _, rounds = _rounds(rows, share, variant)
        if rounds:
            sides.append(_sides(times_us, share, variant, rounds)[0])
    return mean_ratio_of_quantiles(sides, quantile) if sides else None
