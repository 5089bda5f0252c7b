"""Steps in a profiler's trace: how long the device is busy, and between which kernels it is idle.

A step reaches from one run of the benchmark's own kernel to the next
(:mod:`benchmarks.verification.kernels`): every server of
:mod:`benchmarks.verification.step_timeline` has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median
from typing import Any

MARK, MARKS = "_tokens", 2
"""The kernel, and how often a step runs it: after sampling, and after drafting."""
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what the device does (``torch.profiler``, ``export_chrome_trace``)."""
SHOWN = 6
"""Places of each server where the device is idle for longest."""
KEPT = 36
"""The same, in a record."""
NAME = 60
"""Letters of a kernel's name that are shown."""


@dataclass(frozen=True, slots=True)
class Event:
    """A kernel or copy on the device, in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Step:
    """From one mark to the next, in microseconds.

    Attributes:
        idle: by the kernels before and after it.
        kernels: busy time by name.
    """

    period: float
    busy: float
    idle: Mapping[tuple[str, str], float]
    kernels: Mapping[str, float]


def events_of(trace: Mapping[str, Any]) -> list[Event]:
    """The device's work of a profiler's trace, in order."""
    found = [
        Event(one["name"], float(one["ts"]), float(one["ts"]) + float(one["dur"]))
        for one in trace["traceEvents"]
        if one.get("cat") in DEVICE
    ]
    return sorted(found, key=lambda event: event.start)


def steps_of(events: Sequence[Event]) -> Iterator[Step]:
    """The whole steps of a trace."""
    marks = [place for place, event in enumerate(events) if event.name == MARK]
    for first, last in pairwise(marks[::MARKS]):
        yield _step(events[first:last], events[last])


def _step(events: Sequence[Event], following: Event) -> Step:
    idle: defaultdict[tuple[str, str], float] = defaultdict(float)
    kernels: defaultdict[str, float] = defaultdict(float)
    until, before = events[0].start, events[0].name
    for event in (*events, following):
        if event.start > until:
            idle[before, event.name] += event.start - until
        if event.end > until:
            until, before = event.end, event.name
    for event in events:
        kernels[event.name] += event.end - event.start
    period = following.start - events[0].start
    return Step(period, period - sum(idle.values()), idle, kernels)


def told(steps: Sequence[Step]) -> dict[str, Any]:
    """What steps come to, in microseconds of one; empty without any."""
    if not steps:
        return {}
    idle, kernels = (_mean(steps, part) for part in ("idle", "kernels"))
    longest = sorted(idle.items(), key=lambda item: -item[1])[:KEPT]
    return {
        "steps": len(steps),
        "period": median(step.period for step in steps),
        "busy": median(step.busy for step in steps),
        "idle": mean(step.period - step.busy for step in steps),
        "idle_at": [[before, after, us] for (before, after), us in longest],
        "kernels": kernels,
    }


def _mean(steps: Sequence[Step], part: str) -> dict[Any, float]:
    summed: dict[Any, float] = {}
    for step in steps:
        for name, us in getattr(step, part).items():
            summed[name] = summed.get(name, 0.0) + us / len(steps)
    return summed


def table(record: Mapping[str, Any]) -> str:
    """In Markdown: all timelines, where each is idle, and both ways to wait."""
    kept = [row for row in record["timelines"] if row["told"]]
    return "\n".join([*_timelines(kept), *_idle(kept), "", *_waits(record["waits"])])


def _timelines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| requests | server | steps | period, us | busy, us | idle, us (mean) |"
    yield "| --- " * 6 + "|"
    for row in rows:
        found = row["told"]
        times = " | ".join(f"{found[name]:.0f}" for name in ("period", "busy", "idle"))
        yield f"| {row['requests']} | {row['server']} | {found['steps']} | {times} |"


def _idle(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield f"\n{row['server']}, {row['requests']} requests: idle for longest, us a step\n"
        for before, after, us in row["told"]["idle_at"][:SHOWN]:
            yield f"- {us:.0f}: `{before[:NAME]}`, then `{after[:NAME]}`"


def _waits(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| requests | sleeps, tokens/s | polls, tokens/s | polls / sleeps | n of each |"
    yield "| --- " * 5 + "|"
    for row in rows:
        speeds: dict[str, list[float]] = {}
        for one in row["rows"]:
            speeds.setdefault(one["way"], []).append(one["tokens_per_second"])
        ranges = [f"{min(of):.0f} to {max(of):.0f}" for of in (speeds["sleeps"], speeds["polls"])]
        ratio = mean(speeds["polls"]) / mean(speeds["sleeps"])
        yield f"| {row['requests']} | {' | '.join(ranges)} | {ratio:.3f} | {len(speeds['polls'])} |"
