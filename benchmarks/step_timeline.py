"""Claim: what a step of adaptive verification takes beside the model and the drafts.

    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.step_timeline --shape qwen3-8b --layers 36 \\
        --traces benchmarks/results/2026-11-28-draft-traces-gpu/traces.npz --out DIR

A server with a fixed draft length and one with measured costs, as in
:mod:`benchmarks.verification_turns`, run the same loads. PyTorch's profiler keeps what the device
does for some steps of each: how long it is busy, between which kernels it is idle, and which
kernels only one of the servers has. Then the measured server's thread waits for confidences in one
way and the other in turn: it sleeps as vLLM has it, or polls.

The profiler makes each kernel of a CUDA graph slower by a little, in both servers alike.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import click

from benchmarks import shapes
from benchmarks.server import end_servers_on_sigterm
from benchmarks.switched_server import Remote
from benchmarks.verification_compare import Record, Settings, begin, one_load, say, spec_of
from benchmarks.verification_load import Point, lead_in
from benchmarks.verification_metrics import verification
from benchmarks.verification_plan import LONGEST, PLACES_OF_FEW, SHORT
from benchmarks.verification_servers import Pairs
from benchmarks.verification_turns import LEAD_IN_SECONDS, settings_in_turn
from vllm_nfp.start.server import Server

CONTENDERS = ("fixed", "measured")
MARK, MARKS = "_tokens", 2
"""The benchmark's own kernel, and how often a step runs it."""
KEPT_SECONDS = 0.15
"""Of the device's work, for each load."""
SHOWN = 12
"""Lines of each table."""


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
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    found = [
        Event(one["name"], float(one["ts"]), float(one["ts"]) + float(one["dur"]))
        for one in trace["traceEvents"]
        if one.get("cat") in kinds
    ]
    return sorted(found, key=lambda event: event.start)


def steps_of(events: Sequence[Event], mark: str = MARK, marks: int = MARKS) -> Iterator[Step]:
    """The whole steps of a trace."""
    places = [place for place, event in enumerate(events) if event.name == mark][::marks]
    for first, last in pairwise(places):
        yield _step(events[first:last], events[last])


def _step(events: Sequence[Event], following: Event) -> Step:
    idle: Counter[tuple[str, str]] = Counter()
    kernels: Counter[str] = Counter()
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
    idle: Counter[tuple[str, str]] = Counter()
    kernels: Counter[str] = Counter()
    for step in steps:
        idle.update(step.idle)
        kernels.update(step.kernels)
    count = len(steps)
    return {
        "steps": count,
        "period": median(step.period for step in steps),
        "busy": median(step.busy for step in steps),
        "idle": mean(step.period - step.busy for step in steps),
        "idle_at": [
            [before, after, us / count] for (before, after), us in idle.most_common(3 * SHOWN)
        ],
        "kernels": {name: us / count for name, us in kernels.items()},
    }


def table(record: Mapping[str, Any]) -> str:
    """In Markdown."""
    lines = ["| requests | server | steps | period, us | busy | idle |", "| --- " * 6 + "|"]
    for row in record["timelines"]:
        if row["told"]:
            cells = "{period:.0f} | {busy:.0f} | {idle:.0f}".format(**row["told"])
            lines.append(
                f"| {row['requests']} | {row['server']} | {row['told']['steps']} | {cells} |"
            )
    for row in record["timelines"]:
        lines += ["", f"{row['server']}, {row['requests']} requests: idle, us a step"]
        lines += [
            f"  {us:7.1f} {before[:70]} -> {after[:70]}"
            for before, after, us in row["told"].get("idle_at", [])[:SHOWN]
        ]
    lines += ["", *_only_measured(record["timelines"])]
    lines += ["", "| requests | sleeps | polls | polls / sleeps |", "| --- " * 4 + "|"]
    for row in record["waits"]:
        sleeps, polls = (mean(row[way]) for way in ("sleeps", "polls"))
        lines.append(f"| {row['requests']} | {sleeps:.0f} | {polls:.0f} | {polls / sleeps:.3f} |")
    return "\n".join(lines)


def _only_measured(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Kernels that take longer in the measured server than in any other, per step."""
    for row in rows:
        if row["server"] != "measured" or not row["told"]:
            continue
        others = [
            r["told"]["kernels"]
            for r in rows
            if r["requests"] == row["requests"] and r["server"] != "measured" and r["told"]
        ]
        more = {
            name: us - max((other.get(name, 0.0) for other in others), default=0.0)
            for name, us in row["told"]["kernels"].items()
        }
        yield f"measured, {row['requests']} requests: kernels beyond the fixed lengths', us a step"
        for name, us in sorted(more.items(), key=lambda item: -item[1])[: 2 * SHOWN]:
            yield f"  {us:7.1f} {name[:120]}"


class Keeper:
    """Keeps a timeline in the middle of a load."""

    def __init__(self, server: Server, path: Path, ready: float, measured: bool) -> None:
        self._remote, self._server, self._path = Remote(server.url), server, path
        self._ready, self._measured, self._begun = ready, measured, False

    def enough(self, seconds: float) -> bool:
        """Begin once the load is followed, and end at the next look after."""
        if seconds < self._ready:
            return False
        if not self._begun:
            if self._measured and seconds < 20.0 and not self._in_force():
                return False
            self._remote.call("bench_timeline", "")
            time.sleep(KEPT_SECONDS)
            self._remote.call("bench_timeline", str(self._path))
            self._begun = True
        return True

    def _in_force(self) -> bool:
        return bool(verification(self._server.metrics()).get("measured_costs"))


def timeline(server: Server, settings: Settings, point: Point, name: str) -> dict[str, Any]:
    """One load's timeline of a server."""
    path = settings.out.resolve() / f"trace-{name}-{point.requests}.json"
    model = str(shapes.shared_model(settings.shape, settings.layers))
    measured = name == "measured"
    keeper = Keeper(server, path, LEAD_IN_SECONDS if measured else 1.0, measured)
    lead_in(server.url, model, shapes.vocab_size(settings.shape), point, keeper.enough)
    text = path.read_text(encoding="utf-8")
    path.unlink()
    events = events_of(json.loads(text))
    kept = [[event.name, event.start, event.end] for event in events]
    path.with_suffix(".json.gz").write_bytes(gzip.compress(json.dumps(kept).encode(), mtime=0))
    return {"server": name, "requests": point.requests, "told": told(list(steps_of(events)))}


def waits(server: Server, settings: Settings, point: Point, rounds: int) -> dict[str, Any]:
    """Tokens a second of a load, with both ways to wait in turn."""
    remote, model = Remote(server.url), str(shapes.shared_model(settings.shape, settings.layers))
    found: dict[str, Any] = {"requests": point.requests, "sleeps": [], "polls": []}
    for _ in range(rounds):
        for way in ("sleeps", "polls"):
            remote.call("bench_wait", way)
            row = one_load(server, model, settings, point)
            found[way].append(row["tokens_per_second"])
            found.setdefault(f"host {way}", []).append(row.get("host"))
    remote.call("bench_wait", "sleeps")
    return found


@click.command()
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=36, show_default=True)
@click.option(
    "--traces", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option("--requests", multiple=True, type=int, default=(1, 2, 4, 8), show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Of both ways to wait.")
@click.option("--adaptive-drafts", type=click.IntRange(1, LONGEST), default=4, show_default=True)
@click.option("--within", type=float, default=300.0, show_default=True, help="Seconds, of all.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(requests: tuple[int, ...], rounds: int, out: Path, **values: Any) -> None:
    """Keep timelines of steps; see the module's text."""
    end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    settings = settings_in_turn(
        out=out, started=time.monotonic(), passes=1, most_requests=16, time_host=True, **values
    )
    last = settings.started + settings.within
    record = Record(settings)
    held: dict[str, Any] = {"timelines": [], "waits": [], "environment": record.environment}
    points = [Point("1k", (SHORT,) * n, PLACES_OF_FEW) for n in requests]
    with Pairs({name: spec_of(name, settings) for name in CONTENDERS}, say) as started:
        servers = {
            start.contender: begin(start, settings, record)
            for pair in started.pairs
            for start in started.answering(pair, last)
        }
        for server in servers.values():
            server.child.pause()
        for point in points:
            for name in _names():
                contender = name.split("-")[0]
                server = servers[contender]
                server.child.resume()
                if contender == "fixed":
                    Remote(server.url).call("bench_draft_length", name.split("-")[1])
                held["timelines"].append(timeline(server, settings, point, name))
                if contender == "measured" and time.monotonic() < last:
                    held["waits"].append(waits(server, settings, point, rounds))
                server.child.pause()
                (out / "timeline.json").write_text(json.dumps(held))
            if time.monotonic() > last:
                break
        for server in servers.values():
            server.child.resume()
    click.echo(table(held))


def _names() -> tuple[str, ...]:
    return ("fixed-3", "fixed-5", "measured")


if __name__ == "__main__":
    main()
