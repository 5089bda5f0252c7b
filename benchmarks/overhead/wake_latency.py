"""Claim: a thread that sleeps until the device has passed an event wakes later than one that polls.

    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.overhead.wake_latency --out FILE.json

vLLM's adaptive verification waits at every step for the confidences of the step before, with an
event that lets the thread sleep (``torch.cuda.Event(blocking=True)``). Here the device is kept busy
for some milliseconds, as by a step, and the thread waits for an event behind that, in one way and
the other in turn. How long it waits beyond the device's work differs by the latency alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import click

from benchmarks.hosts import environment
from vllm_nfp.probe.launcher import LONGEST_HOLD_SECONDS, hold_stream

WAYS = {"polls": False, "sleeps": True}
"""How the thread waits, and whether its event blocks."""
TENTHS = 10


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from the launch of the device's work until the thread goes on.

    Attributes:
        busy_ms: what the device was asked to be busy for.
    """

    way: str
    busy_ms: float
    count: int
    tenth: float
    median: float
    ninth: float


def waited(launch: Callable[[], None], event: Any, now: Callable[[], float]) -> float:
    """One wait for an event behind work that is launched here."""
    begun = now()
    launch()
    event.record()
    event.synchronize()
    return now() - begun


def waits_of(way: str, busy_ms: float, seconds: list[float]) -> Waits:
    """The distribution of one way's waits."""
    cuts = quantiles(seconds, n=TENTHS)
    return Waits(way, busy_ms, len(seconds), cuts[0], cuts[TENTHS // 2 - 1], cuts[-1])


def measure(busy_ms: float, count: int) -> Iterator[Waits]:
    """Both ways in turn on the current device."""
    import torch

    launch = partial(hold_stream, 1e-3 * busy_ms)
    events = {way: torch.cuda.Event(blocking=blocking) for way, blocking in WAYS.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    torch.cuda.synchronize()
    for _ in range(count):
        for way, event in events.items():
            seconds[way].append(waited(launch, event, time.perf_counter))
    return (waits_of(way, busy_ms, found) for way, found in seconds.items())


def table(rows: list[Waits]) -> str:
    """In Markdown, milliseconds."""
    lines = [
        "| the thread | device busy, ms | n | waits, ms: 10 %, median, 90 % |",
        "| --- " * 4 + "|",
    ]
    for row in rows:
        cells = ", ".join(f"{1e3 * cut:.3f}" for cut in (row.tenth, row.median, row.ninth))
        lines.append(f"| {row.way} | {row.busy_ms:g} | {row.count} | {cells} |")
    return "\n".join(lines)


@click.command()
@click.option(
    "--busy-ms",
    type=click.FloatRange(0, 1e3 * LONGEST_HOLD_SECONDS, min_open=True),
    multiple=True,
    default=(0.5, 2.0, 6.0),
    show_default=True,
)
@click.option("--count", type=click.IntRange(TENTHS), default=200, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(busy_ms: tuple[float, ...], count: int, out: Path) -> None:
    """Time both ways of waiting; see the module's text."""
    rows = [row for busy in busy_ms for row in measure(busy, count)]
    held = {"environment": environment.record(), "waits": [asdict(row) for row in rows]}
    out.write_text(json.dumps(held, indent=1) + "\n")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
