"""How fast the host was at each load of a recorded comparison, and what each way asks of it.

    python -m benchmarks.verification.host_speed RECORD.json.gz

Takes a record of :mod:`benchmarks.verification.compare` or :mod:`benchmarks.verification.turns`
with the times of the host's parts (``--time-host``). ``prepare_attn`` launches the same few kernels
in every way, so that its time tells how slow the host was. *Host* is what the serving thread takes
for a step (``execute_model`` and ``sample_tokens``), and *at even speed* the same on a host that
takes REFERENCE_MS for that part. Steps of more requests wait for the device inside these calls, so
that only loads of up to MOST_REQUESTS count in the summary. Records from 2026-11-29 on tell single
steps apart: how long they take, and how long the thread works in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.verification.host_parts import CUTS, STEP, WORK
from benchmarks.verification.table import read_record

COMMON = "prepare_attn"
WHOLE = ("execute_model", "sample_tokens")
REFERENCE_MS = 0.1
"""Of COMMON: near the middle of what was seen, 0.08 to 0.21 ms (2026-11-29, H200)."""
MOST_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Host:
    """One load of one way."""

    contender: str
    context: str
    requests: int
    step_ms: float
    """From one step to the next, waits for the device included."""
    common_ms: float
    host_ms: float

    @property
    def even_ms(self) -> float:
        """The host's time of a step at the speed of REFERENCE_MS."""
        return self.host_ms * REFERENCE_MS / self.common_ms


def hosts(record: Mapping[str, Any]) -> Iterator[Host]:
    """One for each load whose parts were timed."""
    for row in record["rows"]:
        parts = row.get("host") or {}
        steps = parts.get(WHOLE[0], {}).get("calls", 0)
        if not steps:
            continue
        each = {name: part["ms"] / steps for name, part in parts.items()}
        yield Host(
            row["contender"], row["context"], row["requests"], 1e3 * row["seconds"] / steps,
            each[COMMON], sum(each[name] for name in WHOLE),
        )  # fmt: skip


def lines(found: list[Host]) -> Iterator[str]:
    """Each load, then a summary of the ways."""
    yield "| way | context | requests | step, ms | prepare_attn, ms | host, ms | at even speed |"
    yield "| --- " * 7 + "|"
    for one in found:
        yield (
            f"| {one.contender} | {one.context} | {one.requests} | {one.step_ms:.2f} | "
            f"{one.common_ms:.3f} | {one.host_ms:.2f} | {one.even_ms:.2f} |"
        )
    yield ""
    yield f"Up to {MOST_REQUESTS} requests, medians:"
    yield ""
    yield "| way | loads | prepare_attn, ms: least, most | host at even speed, ms |"
    yield "| --- " * 4 + "|"
    for contender in dict.fromkeys(one.contender for one in found):
        few = [o for o in found if o.contender == contender and o.requests <= MOST_REQUESTS]
        if few:
            common = [one.common_ms for one in few]
            yield (
                f"| {contender} | {len(few)} | {min(common):.3f}, {max(common):.3f} | "
                f"{median(one.even_ms for one in few):.2f} |"
            )


def steps(record: Mapping[str, Any]) -> Iterator[str]:
    """Percentiles of single steps; nothing of a record that has none."""
    rows = [row for row in record["rows"] if next(iter(CUTS)) in row.get("host", {}).get(STEP, {})]
    if not rows:
        return
    named = ", ".join(name.removesuffix("_ms") for name in CUTS)
    yield ""
    yield f"| way | context | requests | n | a step, ms: {named} | the thread works, ms: {named} |"
    yield "| --- " * 6 + "|"
    for row in rows:
        cells = [
            ", ".join(f"{row['host'][part][name]:.2f}" for name in CUTS) for part in (STEP, WORK)
        ]
        yield (
            f"| {row['contender']} | {row['context']} | {row['requests']} | "
            f"{row['host'][STEP]['calls']} | {' | '.join(cells)} |"
        )


@click.command()
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(record: Path) -> None:
    """Print the tables; see the module's text."""
    held = read_record(record)
    found = list(hosts(held))
    if not found:
        raise click.ClickException(f"{record} has no times of the host: run with --time-host")
    click.echo("\n".join([*lines(found), *steps(held)]))


if __name__ == "__main__":
    main()
