"""Claim: measured costs choose better than vLLM's own tables, and no worse than the best fixed K.

    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.verification.turns --shape qwen3-8b \\
        --traces benchmarks/results/2026-11-28-draft-traces-gpu/traces.npz --within 540 --out DIR

Like :mod:`benchmarks.verification.compare`, with all servers there at once, and each load with one
server right after another. A host's speed may change by a factor of two within seconds, and steps
of few requests are as fast as their host: servers that are measured one after another meet
different hosts. There is memory for three servers and fewer long prompts. Each pass begins with
another contender. Before a load adaptive ways run it for LEAD_IN_SECONDS: they follow the traffic,
and have missed it while they were stopped (SIGSTOP). A load lasts some seconds here and hours at a
user's, so ``measured`` runs it on until measured costs are in force, for ``--longest-lead-in`` at
most; each row says how long that took.

Each server is as its user has it: vLLM's choice of CUDA graphs is mended where draft lengths come
from a table (``fixed``) and with ``--nfp-verification-costs``, and is vLLM's own elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.serving import shapes
from benchmarks.serving.load import LoadError
from benchmarks.serving.remote import Remote
from benchmarks.serving.server import end_servers_on_sigterm
from benchmarks.verification.compare import Record, Settings, begin, one_load, say, spec_of
from benchmarks.verification.load import Point, lead_in
from benchmarks.verification.metrics import keep, verification
from benchmarks.verification.plan import (
    FIXED,
    LONG,
    LONGEST,
    PLACES,
    SHORT,
    STREAMS,
    points,
)
from benchmarks.verification.servers import Pairs, Start
from benchmarks.verification.table import read_record, table
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import Server

CONTENDERS = ("fixed", "vllm", "measured")
"""The last starts when the others are stopped, so that its probe meets no other's start, and finds
compiled what the one before it has compiled."""
MOST_LONG = 8
"""Prompts with the long context."""
LEAD_IN_SECONDS = 2.2
"""The probe publishes every 2 s, and costs follow the traffic from then on."""
LEAST_SECONDS = 2.5
"""Of a load. The probe counts steps every 2 s, and a host's speed changes within a second."""
LONGEST_LEAD_IN_SECONDS = 20.0
LOSES = 0.15
"""A draft length that is so much slower than the best is not measured again, and none beyond it."""


def loads(most: int = STREAMS) -> list[Point]:
    """Those of the comparison that fit.

    Args:
        most: requests of one.
    """
    return [p for p in points() if p.prompts.count(LONG) <= MOST_LONG and p.requests <= most]


def kv_tokens(most: int) -> int:
    """Of a server's KV cache, some 20 GiB for 25 layers of 8B and 128 requests.

    It holds all short prompts and their answers; long ones are read again before their load.
    """
    return most * (SHORT + 3 * PLACES) + MOST_LONG * (LONG if most < STREAMS else SHORT)


def settings_in_turn(**values: Any) -> Settings:
    """Those of :mod:`benchmarks.verification.compare`, with what differs for servers in turn."""
    kept = kv_tokens(values["most_requests"])
    return Settings(
        **values, in_turn=True, most_long=MOST_LONG, kv_tokens=kept, least_seconds=LEAST_SECONDS
    )


def turns(contenders: Sequence[str], number: int) -> list[str]:
    """The order of one pass."""
    first = number % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def measured_in_force(server: Server) -> bool:
    """Whether a server's measured costs choose its drafts."""
    return bool(verification(server.metrics()).get("measured_costs"))


def follows(seconds: float, chosen: Callable[[], bool], longest: float) -> bool:
    """Whether a load has run for so long that its server follows it.

    Args:
        seconds: of the load so far.
        chosen: whether drafts are chosen as they are to be; waited for.
        longest: seconds after which that is waited for no more.
    """
    return seconds >= LEAD_IN_SECONDS and (seconds >= longest or chosen())


class Turns:
    """All servers, and what they have shown so far."""

    def __init__(self, servers: Mapping[str, Server], settings: Settings) -> None:
        self._servers, self._settings = servers, settings
        self._lost: set[tuple[Point, int]] = set()
        """Lengths that lost at a load in an earlier pass: they are not run again."""

    def measure(self, point: Point, number: int) -> Iterator[dict[str, Any]]:
        """A load with each server, one after another."""
        for contender in turns(tuple(self._servers), number):
            server = self._servers[contender]
            server.child.resume()
            try:
                yield from self._with(contender, server, point, number)
            except (LoadError, ProcessError, OSError) as error:  # the others are worth it
                say(f"{contender}, {point.requests} requests: {error}")
            server.child.pause()

    def _with(
        self, contender: str, server: Server, point: Point, number: int
    ) -> Iterator[dict[str, Any]]:
        model = str(shapes.shared_model(self._settings.shape, self._settings.layers))
        vocabulary = shapes.vocab_size(self._settings.shape)
        if contender != "fixed":
            enough = partial(self._enough, contender, server)
            seconds = lead_in(server.url, model, vocabulary, point, enough)
            row = one_load(server, model, self._settings, point)
            yield {"contender": contender, "pass": number, "lead_in_seconds": seconds, **row}
            return
        speeds: dict[int, float] = {}
        for length in FIXED:
            if (point, length) in self._lost:
                continue
            Remote(server.url).call("bench_draft_length", str(length))
            row = one_load(server, model, self._settings, point)
            yield {"contender": f"fixed-{length}", "pass": number, **row}
            speeds[length] = row["tokens_per_second"]
            if speeds[length] < (1.0 - LOSES) * max(speeds.values()):
                self._lost |= {(point, other) for other in FIXED if other > length}
                break
        best = max(speeds.values())
        self._lost |= {(point, n) for n, s in speeds.items() if s < (1.0 - LOSES) * best}

    def _enough(self, contender: str, server: Server, seconds: float) -> bool:
        """Whether an adaptive way has run a load for so long that it follows it."""
        chosen = partial(measured_in_force, server) if contender == "measured" else lambda: True
        return follows(seconds, chosen, self._settings.longest_lead_in)


def run(settings: Settings) -> None:
    """All loads in turn, as long as there is time."""
    record, last = Record(settings), settings.started + settings.within
    specs = {name: spec_of(name, settings) for name in CONTENDERS}
    with Pairs(specs, say) as started:
        servers: dict[str, Server] = {}
        for pair in started.pairs:
            for start in started.answering(pair, last):
                server = _ready(start, settings, record)
                servers |= {} if server is None else {start.contender: server}
        if servers:
            _passes(Turns(servers, settings), settings, record, last)
        for contender, server in servers.items():
            server.child.resume()
            name = f"metrics-{settings.shape}-{contender}.prom.gz"
            keep(server.metrics(), settings.out / name)
            record.servers[contender]["after"] = environment.gpu_state()
        record.write()


def _ready(start: Start, settings: Settings, record: Record) -> Server | None:
    try:
        server = begin(start, settings, record)
    except (LoadError, ProcessError, OSError) as error:
        record.fail(start.contender, error)
        return None
    server.child.pause()
    return server


def _passes(servers: Turns, settings: Settings, record: Record, last: float) -> None:
    for number in range(settings.passes):
        for point in loads(settings.most_requests):
            before = time.monotonic()
            for row in servers.measure(point, number):
                record.add(row)
            if time.monotonic() + 1.3 * (time.monotonic() - before) > last:
                say(f"pass {number + 1} is cut off at {point.context}, {point.requests} requests")
                return
        say(f"pass {number + 1} ended after {time.monotonic() - settings.started:.0f} s")


@click.command()
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=24, show_default=True)
@click.option(
    "--traces", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option("--within", type=float, default=560.0, show_default=True, help="Seconds, of all.")
@click.option("--passes", default=3, show_default=True, help="Of all loads, at most.")
@click.option("--watch-stalls", is_flag=True, help="Stacks in the logs where no step follows.")
@click.option(
    "--adaptive-drafts",
    type=click.IntRange(1, LONGEST),
    default=4,
    show_default=True,
    help="Drafted at each step by ways that verify adaptively.",
)
@click.option("--time-host", is_flag=True, help="Keep the host's time of each part of a step.")
@click.option(
    "--most-requests",
    type=click.IntRange(16, STREAMS),
    default=STREAMS,
    show_default=True,
    help="Of a load: three servers of many layers need smaller KV caches.",
)
@click.option(
    "--longest-lead-in",
    type=float,
    default=LONGEST_LEAD_IN_SECONDS,
    show_default=True,
    help="Seconds of a load before it is measured, at most.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(out: Path, traces: Path, **values: Any) -> None:
    """Compare ways of choosing drafts in turn; see the module's text."""
    end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    run(settings_in_turn(traces=traces, out=out, started=time.monotonic(), **values))
    for path in sorted(out.glob("verification-*.json")):
        click.echo(table(read_record(path)))


if __name__ == "__main__":
    main()
