"""Claim: what a step of adaptive verification takes beside the model and the drafts is the host's.

    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.verification.step_timeline \\
        --shape qwen3-8b --layers 36 \\
        --traces benchmarks/results/2026-11-28-draft-traces-gpu/traces.npz --out DIR

A server with fixed draft lengths and one with measured costs, as in
:mod:`benchmarks.verification.turns`, run the same loads, and PyTorch's profiler keeps what the
device does for some steps of each (:mod:`benchmarks.verification.timeline_steps`). Then the serving
thread of the measured server waits for confidences in two ways in turn: it sleeps, as vLLM has it,
or polls.

The profiler makes launches slower, in both servers alike, and the first steps that it keeps most.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.serving import shapes
from benchmarks.serving.remote import Remote
from benchmarks.serving.server import end_servers_on_sigterm
from benchmarks.verification.compare import Record, Settings, begin, one_load, say, spec_of
from benchmarks.verification.load import Point, lead_in
from benchmarks.verification.plan import LONGEST, PLACES_OF_FEW, SHORT
from benchmarks.verification.servers import Pairs
from benchmarks.verification.timeline_steps import events_of, steps_of, table, told
from benchmarks.verification.turns import (
    LONGEST_LEAD_IN_SECONDS,
    follows,
    measured_in_force,
    settings_in_turn,
)
from vllm_nfp.start.server import Server

FIXED, MEASURED = "fixed", "measured"
LENGTHS = (3, 5)
"""Fixed lengths whose steps are kept."""
WAYS = ("sleeps", "polls")
KEPT_SECONDS = 0.15
"""Of the device's work, for each load."""
MOST_REQUESTS = 16
"""Of a load: the servers' KV caches hold no more."""


class Keeper:
    """Keeps a timeline once a load is followed.

    Args:
        path: takes the profiler's trace; the server writes it.
        in_force: whether steps are chosen as they are to be.
    """

    def __init__(self, remote: Remote, path: Path, in_force: Callable[[], bool]) -> None:
        self._remote, self._path, self._in_force = remote, path, in_force

    def enough(self, seconds: float) -> bool:
        """Asked again and again during a load; the timeline is kept when it says yes."""
        if not follows(seconds, self._in_force, LONGEST_LEAD_IN_SECONDS):
            return False
        self._remote.call("bench_timeline", "")
        time.sleep(KEPT_SECONDS)
        self._remote.call("bench_timeline", str(self._path))
        return True


def timeline(server: Server, settings: Settings, point: Point, name: str) -> dict[str, Any]:
    """A server's steps under one load."""
    path = settings.out.resolve() / f"trace-{name}-{point.requests}.json"
    model = str(shapes.shared_model(settings.shape, settings.layers))

    def in_force() -> bool:
        return name != MEASURED or measured_in_force(server)

    keeper = Keeper(Remote(server.url), path, in_force)
    lead_in(server.url, model, shapes.vocab_size(settings.shape), point, keeper.enough)
    events = events_of(json.loads(path.read_text(encoding="utf-8")))
    path.unlink()
    kept = json.dumps([[event.name, event.start, event.end] for event in events])
    path.with_suffix(".json.gz").write_bytes(gzip.compress(kept.encode(), mtime=0))
    return {"server": name, "requests": point.requests, "told": told([*steps_of(events)])}


def waits(server: Server, settings: Settings, point: Point, rounds: int) -> dict[str, Any]:
    """Tokens a second of a load, with both ways to wait in turn."""
    remote, model = Remote(server.url), str(shapes.shared_model(settings.shape, settings.layers))
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            remote.call("bench_wait", way)
            rows.append({"way": way, **one_load(server, model, settings, point)})
    remote.call("bench_wait", WAYS[0])
    return {"requests": point.requests, "rows": rows}


def measure(
    servers: Mapping[str, Server], settings: Settings, point: Point, rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A load with each server, while the other is stopped: ("timelines" or "waits", row)."""
    fixed, measured = servers[FIXED], servers[MEASURED]
    fixed.child.resume()
    for length in LENGTHS:
        Remote(fixed.url).call("bench_draft_length", str(length))
        yield "timelines", timeline(fixed, settings, point, f"{FIXED}-{length}")
    fixed.child.pause()
    measured.child.resume()
    yield "timelines", timeline(measured, settings, point, MEASURED)
    yield "waits", waits(measured, settings, point, rounds)
    measured.child.pause()


def run(settings: Settings, points: list[Point], rounds: int) -> dict[str, Any]:
    """All loads, as long as there is time."""
    record, last = Record(settings), settings.started + settings.within
    held: dict[str, Any] = {"environment": record.environment, "timelines": [], "waits": []}
    specs = {name: spec_of(name, settings) for name in (FIXED, MEASURED)}
    with Pairs(specs, say) as started:
        servers = {}
        for start in (one for pair in started.pairs for one in started.answering(pair, last)):
            servers[start.contender] = begin(start, settings, record)
            servers[start.contender].child.pause()
        for point in points:
            if time.monotonic() > last:
                say(f"cut off at {point.requests} requests")
                break
            for kind, row in measure(servers, settings, point, rounds):
                held[kind].append(row)
                path = settings.out / "timeline.json"
                path.write_text(json.dumps(held), encoding="utf-8")
        for server in servers.values():
            server.child.resume()
    return held


@click.command()
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=36, show_default=True)
@click.option(
    "--traces", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option(
    "--requests",
    "counts",
    multiple=True,
    type=click.IntRange(1, MOST_REQUESTS),
    default=(1, 2, 4, 8),
    show_default=True,
    help="Of a load.",
)
@click.option("--rounds", default=3, show_default=True, help="Of both ways to wait.")
@click.option("--adaptive-drafts", type=click.IntRange(1, LONGEST), default=4, show_default=True)
@click.option("--within", type=float, default=560.0, show_default=True, help="Seconds, of all.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(counts: tuple[int, ...], rounds: int, out: Path, **values: Any) -> None:
    """Keep timelines of steps; see the module's text."""
    end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    settings = settings_in_turn(
        out=out, started=time.monotonic(), passes=1, most_requests=MOST_REQUESTS, time_host=True,
        **values,
    )  # fmt: skip
    points = [Point("1k", (SHORT,) * count, PLACES_OF_FEW) for count in counts]
    click.echo(table(run(settings, points, rounds)))


if __name__ == "__main__":
    main()
