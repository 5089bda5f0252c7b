"""Claim: measured costs choose better than vLLM's own tables, and no worse than the best fixed K.

    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.verification.compare --shape qwen3-8b \\
        --traces benchmarks/results/2026-11-28-draft-traces-gpu/traces.npz --within 540 --out DIR

The same loads for each server, while the others are stopped: without speculation (``none``), with
a fixed draft length (``fixed``: one server, whose table of draft lengths is rewritten between
loads), with vLLM's adaptive verification and its own cost tables (``vllm``), and with those of this
project (``measured``: ``--nfp-probe --nfp-verification-costs``, as a user would). Two servers start
side by side (:mod:`benchmarks.verification.servers`). Weights are dummy ones.
Recorded drafts of a trained head take the place of theirs (:mod:`benchmarks.verification.replay`),
the same for all. ``--tabulate`` prints what is in ``--out``.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.serving import length_graphs, shapes, stall_watch
from benchmarks.serving.load import LoadError
from benchmarks.serving.remote import Remote
from benchmarks.serving.server import Spec, end_servers_on_sigterm
from benchmarks.serving.traces import read_traces
from benchmarks.verification.load import Point, fill, measure, measure_for
from benchmarks.verification.metrics import counters, keep, verification
from benchmarks.verification.plan import (
    CONTENDERS,
    FIXED,
    KV_TOKENS,
    LONG,
    LONGEST,
    MOST_LONG,
    OTHER_KINDS,
    SHORT,
    STREAM_PLACES,
    STREAMS,
    WARM_UP,
    flags_of,
    points,
)
from benchmarks.verification.servers import Pairs, Start
from benchmarks.verification.table import read_record, table
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import Server

PAIR_SECONDS = 230.0
"""Of a later pair, its start and one pass each, which no further pass of an earlier one takes."""
MARGIN = 0.05
"""Of the 56 loads of 2026-11-28 (H200, Qwen3-8B, 24 layers) this leaves 23 out, and no best one."""
MOST_WARM_UP_SECONDS = 6.0
"""Of the warm-up with other numbers of requests."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared."""

    shape: str
    layers: int
    traces: Path
    within: float
    passes: int
    """Of all loads, at most."""
    out: Path
    started: float
    """time.monotonic() when all began."""
    watch_stalls: bool = False
    guard_drafter: bool = False
    adaptive_drafts: int = LONGEST
    time_host: bool = False
    in_turn: bool = False
    """Each load with one server after another, as benchmarks.verification.turns does."""
    most_requests: int = STREAMS
    """Of a load."""
    most_long: int = MOST_LONG
    """Of a load, with the long context."""
    kv_tokens: int = KV_TOKENS
    """Of each server's KV cache."""
    least_seconds: float = 0.0
    """Of a load: one that is over sooner is run again, and the mean counts."""
    longest_lead_in: float = 0.0
    """Seconds of a load in turn, before it is measured."""

    def flags_of(self, contender: str, head: Path) -> tuple[str, ...]:
        """Of a contender's server, whose drafter is in ``head``."""
        return flags_of(
            contender, self.shape, self.layers, head, self.adaptive_drafts, self.kv_tokens
        )

    def is_mended(self, contender: str) -> bool:
        """Whether its server finds the CUDA graphs of each draft length."""
        return contender != "vllm" if self.in_turn else self.guard_drafter


class Record:
    """What was measured, written anew after each load."""

    def __init__(self, settings: Settings) -> None:
        _, recorded = read_traces(settings.traces)
        self._path = settings.out / f"verification-{settings.shape}.json"
        self.environment = environment.record()
        self.servers: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self._fixed = {
            "shape": settings.shape, "layers": settings.layers, "traces": recorded,
            "environment": self.environment, "guard_drafter": settings.guard_drafter,
            "adaptive_drafts": settings.adaptive_drafts, "in_turn": settings.in_turn,
        }  # fmt: skip

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one load."""
        self.rows.append(dict(row))
        self.write()

    def fail(self, contender: str, error: Exception) -> None:
        """Say and keep that a server did not start or was lost: the others are worth it."""
        say(f"{contender}: {error}")
        self.servers.setdefault(contender, {})["failed"] = str(error)
        self.write()

    def write(self) -> None:
        """Write all that is there."""
        held = {**self._fixed, "servers": self.servers, "rows": self.rows}
        self._path.write_text(json.dumps(held), encoding="utf-8")


def one_pass(
    contender: str, number: int, server: Server, model: str, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Each load once, with the name under which it counts; of ``fixed`` with each length.

    A length is left out at a load where the length before it was already worse than the best by
    MARGIN: tokens of a step grow ever less with its drafts, and its time does not.
    """
    remote = Remote(server.url)
    lengths: tuple[int | None, ...] = FIXED if contender == "fixed" else (None,)
    speeds: dict[Point, list[float]] = {point: [] for point in points()}
    for length in lengths:
        if length is not None:
            remote.call("bench_draft_length", str(length))
        for point, so_far in speeds.items():
            if len(so_far) > 1 and so_far[-1] < (1.0 - MARGIN) * max(so_far):
                continue
            name = contender if length is None else f"{contender}-{length}"
            row = one_load(server, model, settings, point)
            so_far.append(row["tokens_per_second"])
            yield {"contender": name, "pass": number, **row}


def one_load(server: Server, model: str, settings: Settings, point: Point) -> dict[str, Any]:
    """What a server shows under a load."""
    remote, vocabulary = Remote(server.url), shapes.vocab_size(settings.shape)
    before = counters(server.metrics())
    _host_parts(remote, settings)
    speed = measure_for(settings.least_seconds, server.url, model, vocabulary, point)
    host = _host_parts(remote, settings)
    metrics = server.metrics()
    after = counters(metrics)
    return {
        "context": point.context, "requests": point.requests, **dataclasses.asdict(speed),
        "counted": {name: after[name] - before.get(name, 0.0) for name in after},
        "verification": verification(metrics), **host,
    }  # fmt: skip


def _host_parts(remote: Remote, settings: Settings) -> dict[str, Any]:
    """What the host has taken since the last look, if it is timed."""
    return {"host": remote.call("bench_host_parts", "")[0]} if settings.time_host else {}


def spec_of(contender: str, settings: Settings) -> Spec:
    """Of a contender's server."""
    model = shapes.shared_model(settings.shape, settings.layers)
    head = shapes.shared_draft_head(settings.shape, "eagle3", settings.layers)
    return Spec(
        model, settings.out / f"server-{settings.shape}-{contender}.log", free_port(),
        settings.flags_of(contender, head),
        extra={
            "VLLM_SERVER_DEV_MODE": "1",
            stall_watch.VARIABLE: str(int(settings.watch_stalls)),
            length_graphs.AS_IS_VARIABLE: str(int(not settings.is_mended(contender))),
        },
    )  # fmt: skip


def compare_one(start: Start, settings: Settings, record: Record, until: float) -> None:
    """One server, while others are stopped, and as many whole passes as fit before ``until``."""
    server = begin(start, settings, record)
    contender, model = start.contender, str(shapes.shared_model(settings.shape, settings.layers))
    _measure_passes(contender, server, model, settings, record, until)
    record.servers[contender]["after"] = environment.gpu_state()
    record.write()


def begin(start: Start, settings: Settings, record: Record) -> Server:
    """Let a server go on, and ready it for loads.

    Raises:
        ProcessError: if it did not start.
    """
    contender, server = start.contender, start.server
    if server is None:
        raise ProcessError(start.failed)
    server.child.resume()
    model = str(shapes.shared_model(settings.shape, settings.layers))
    vocabulary = shapes.vocab_size(settings.shape)
    asked = {
        "traces": str(settings.traces.resolve()), "streams": STREAMS, "places": STREAM_PLACES,
        "vocabulary": vocabulary,
    }  # fmt: skip
    answer = Remote(server.url).call("bench_replay", json.dumps(asked))[0]
    shown = settings.flags_of(contender, Path("HEAD"))
    record.servers[contender] = {"flags": shown, "start_seconds": start.seconds, **answer}
    short = settings.most_requests - settings.most_long
    fill(server.url, model, vocabulary, [LONG] * settings.most_long + [SHORT] * short)
    if answer["adaptive"]:
        warm_up(server.url, model, vocabulary, settings.most_requests)
    if settings.time_host:
        Remote(server.url).call("bench_time_host", "")
    return server


def warm_up(url: str, model: str, vocabulary: int, most: int = STREAMS) -> None:
    """Have an adaptive way learn, and compile what it compiles at the first step of a kind.

    Args:
        most: requests that the server's KV cache holds.

    Loads stalled by 0.3 to 2.5 s at that (2026-11-28, H200, vLLM 0.33).
    """
    measure(url, model, vocabulary, WARM_UP)
    until = time.monotonic() + MOST_WARM_UP_SECONDS
    for point in OTHER_KINDS:
        left = until - time.monotonic()
        if left <= 0.0:
            return
        fitting = replace(point, prompts=point.prompts[:most])
        try:
            measure(url, model, vocabulary, fitting, limit_seconds=left)
        except LoadError as error:  # what was compiled until then is compiled
            say(f"warm-up with {point.requests} requests: {error}")


def _measure_passes(
    contender: str, server: Server, model: str, settings: Settings, record: Record, until: float
) -> None:
    """One pass, as far as there is time at all; further ones that fit before ``until``."""
    last, began = settings.started + settings.within, time.monotonic()
    for number in range(settings.passes):
        whole = _measure_pass(contender, number, server, model, settings, record, last)
        name = f"metrics-{settings.shape}-{contender}-{number}.prom.gz"
        keep(server.metrics(), settings.out / name)
        now = time.monotonic()
        passes = f"{number + 1} passes" if whole else "cut off"
        say(f"{contender}: {passes}, {now - settings.started:.0f} s")
        if not whole or now + (now - began) / (number + 1) > until:
            return


def _measure_pass(
    contender: str, number: int, server: Server, model: str, settings: Settings, record: Record,
    last: float,
) -> bool:  # fmt: skip
    """Keep each load; whether all of them ended before ``last``."""
    before = time.monotonic()
    for rows, row in enumerate(one_pass(contender, number, server, model, settings), start=1):
        record.add(row)
        now = time.monotonic()
        if now + 2 * (now - before) / rows > last:
            return False
    return True


def say(text: str) -> None:
    """Print at once."""
    click.echo(text)


def run(settings: Settings, contenders: tuple[str, ...]) -> None:
    """All contenders, as long as there is time."""
    record, last = Record(settings), settings.started + settings.within
    with Pairs({name: spec_of(name, settings) for name in contenders}, say) as servers:
        for place, pair in enumerate(servers.pairs):
            starts = servers.answering(pair, last)
            further = PAIR_SECONDS * (len(servers.pairs) - place - 1)
            for number, start in enumerate(starts):
                now = time.monotonic()
                until = now + (last - now - further) / (len(pair) - number)
                try:
                    compare_one(start, settings, record, until)
                except (LoadError, ProcessError, OSError) as error:
                    record.fail(start.contender, error)
                servers.end(start.contender)


@click.command()
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=24, show_default=True)
@click.option("--traces", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--contender", "contenders", type=click.Choice(CONTENDERS), multiple=True)
@click.option("--within", type=float, default=560.0, show_default=True, help="Seconds, of all.")
@click.option("--passes", default=3, show_default=True, help="Of all loads, at most.")
@click.option("--watch-stalls", is_flag=True, help="Stacks in the logs where no step follows.")
@click.option(
    "--adaptive-drafts",
    type=click.IntRange(1, LONGEST),
    default=LONGEST,
    show_default=True,
    help="Drafted at each step by ways that verify adaptively.",
)
@click.option("--time-host", is_flag=True, help="Keep the host's time of each part of a step.")
@click.option("--guard-drafter", is_flag=True, help="See benchmarks/serving/length_graphs.py.")
@click.option("--tabulate", is_flag=True, help="Print the results in --out; measure nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    out: Path, tabulate: bool, traces: Path | None, contenders: tuple[str, ...], **values: Any
) -> None:
    """Compare ways of choosing drafts; see the module's text."""
    if not tabulate:
        if traces is None:
            raise click.UsageError("--traces names the recorded drafts; it is missing")
        end_servers_on_sigterm()
        out.mkdir(parents=True, exist_ok=True)
        settings = Settings(traces=traces, out=out, started=time.monotonic(), **values)
        run(settings, contenders or CONTENDERS)
    for path in sorted(out.glob("verification-*.json")):
        click.echo(table(read_record(path)))


if __name__ == "__main__":
    main()
