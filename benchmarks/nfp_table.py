"""Claim: the probe gives NFP of each module, per batch size and context, in a server under load.

    python -m benchmarks.nfp_table --shape qwen3-8b --layers 16 --out DIR

Serves the shape with dummy weights, CUDA graphs and the probe, sends load that cycles through the
cells, and writes DIR/<shape>.json (environment, settings, the probe's snapshot, rows, the load
that arrived in each cell), DIR/<shape>-metrics.txt (all of /metrics), DIR/<shape>-probe/ (the
probe's output folder, raw pairs gzipped) and the server's log; prints the table. ``--no-probe``
tries the script and its load without the probe.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment, load, server, shapes
from benchmarks.packing import pack
from vllm_nfp.results import scrape

OUTPUT_TOKENS = 64
PROMPT_SHARE = 0.9
"""Of a cell's context; the rest is for the tokens that are decoded."""
SHORTEST_VISIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is served and sent."""

    shape: str
    layers: int | None
    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: float
    probe: Mapping[str, object] | None
    flags: tuple[str, ...]

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """Batch size and context of each cell."""
        return tuple((b, c) for c in self.contexts for b in self.batch_sizes)

    @property
    def visit_seconds(self) -> float:
        """Length of one visit to a cell."""
        return max(SHORTEST_VISIT_SECONDS, self.seconds / len(self.cells))


def send_load(settings: Settings, url: str, model: str) -> list[dict[str, Any]]:
    """Visit the cells in turn until the time is over; what arrived in each visit."""
    deadline = time.monotonic() + settings.seconds
    visits = []
    for number, (batch_size, context) in enumerate(cycle(settings.cells)):
        if time.monotonic() >= deadline:
            break
        visit = load.Load(
            url,
            model,
            shapes.vocab_size(settings.shape),
            batch_size,
            prompt_tokens(context),
            OUTPUT_TOKENS,
            seconds=settings.visit_seconds / 2,
            # Long prompts may fill the visit: then it counts as load, but reached no full batch.
            first_tokens_limit_seconds=settings.visit_seconds / 2,
            seed=number,
        )
        summary = load.run(visit, warmup_seconds=0.0).summary()
        visits.append({"batch_size": batch_size, "context": context, **summary})
    return visits


def prompt_tokens(context: int) -> int:
    """Prompt length that keeps a request in its cell while it decodes."""
    return max(load.MIN_PROMPT_TOKENS, min(int(context * PROMPT_SHARE), context - OUTPUT_TOKENS))


def save_probe_output(source: Path, target: Path) -> None:
    """Copy the probe's output folder; raw pairs are gzipped."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        if path.suffix != ".jsonl":
            shutil.copy(path, target / path.name)
            continue
        pack(path, target / f"{path.name}.gz")


def read_snapshot(folder: Path) -> dict[str, Any] | None:
    """The engine's last snapshot as JSON; None if the probe left none."""
    path = folder / "engine-0.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def print_tables(found: scrape.Scrape) -> None:
    """Print what the probe measured, a table for each epsilon."""
    console = Console(width=150)
    for status in found.statuses:
        console.print(status)
    for epsilon in sorted({row.epsilon for row in found.rows}):
        table = Table(title=f"NFP [95 % interval] at epsilon {epsilon:g}")
        for name in ("module", "L", "B", "NFP", "idle-compute", "predicted"):
            table.add_column(name)
        for row in (r for r in found.rows if r.epsilon == epsilon):
            table.add_row(*table_cells(row))
        console.print(table)


def table_cells(row: scrape.Row) -> tuple[str, ...]:
    """One line of the table; "+" marks a boundary at or beyond the largest probed count."""
    nfp = f"{row.positions}{'+' if row.at_limit else ''} [{row.lower}, {row.upper}]"
    idle, predicted = ("-" if n is None else str(n) for n in (row.idle_compute, row.predicted))
    return row.module, str(row.context), str(row.batch_size), nfp, idle, predicted


@click.command()
@click.option("--shape", type=click.Choice(list(shapes.SHAPES)), required=True)
@click.option("--layers", type=int, default=None, help="Fewer layers than the published shape.")
@click.option("--seconds", type=float, default=60.0, help="Length of the load.")
@click.option("--startup-seconds", type=float, default=40.0, help="Length of the first scan.")
@click.option("--batch-sizes", default="1,8,32")
@click.option("--contexts", default="1024,4096,16384")
@click.option("--max-positions", type=int, default=128)
@click.option("--nfp-config", default="{}", help="Further settings of the probe, JSON.")
@click.option("--no-probe", is_flag=True, help="Serve without the probe, to try the load alone.")
@click.option(
    "--flags",
    default="--max-model-len 20480 --max-num-seqs 256",
    help="Further flags of vllm serve.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shape: str,
    layers: int | None,
    seconds: float,
    startup_seconds: float,
    batch_sizes: str,
    contexts: str,
    max_positions: int,
    nfp_config: str,
    no_probe: bool,
    flags: str,
    out: Path,
) -> None:
    """Measure and print the NFP table of one shape."""
    server.end_servers_on_sigterm()
    probe = {
        "batch_sizes": _numbers(batch_sizes),
        "contexts": _numbers(contexts),
        "max_positions": max_positions,
        "startup_seconds": startup_seconds,
        "capture_seconds": 60.0,
        "graph_memory_mib": 8192,
        "min_samples": 10,
        # More than a server would spend, so that a short load gives many pairs.
        "overhead_budget": 0.2,
        **json.loads(nfp_config),
    }
    settings = Settings(
        shape,
        layers,
        _numbers(batch_sizes),
        _numbers(contexts),
        seconds,
        None if no_probe else probe,
        tuple(shlex.split(flags)),
    )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-table-") as work:
        measure(settings, Path(work), out)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def measure(settings: Settings, work: Path, out: Path) -> None:
    """Serve, load, save, print."""
    model = shapes.write_model(work / "model", settings.shape, settings.layers)
    port = server.free_ports(1)[0]
    log = out / f"{settings.shape}-server.log"
    spec = server.Spec(model, log, port, settings.flags, settings.probe, work / "probe")
    try:
        with server.running([spec], together=False) as (target,):
            started = environment.record()
            visits = send_load(settings, target.url, str(model))
            metrics = target.metrics()
            after = environment.gpu_state()
    finally:
        # A server that broke down leaves its pairs all the same.
        save_probe_output(work / "probe", out / f"{settings.shape}-probe")
    found = scrape.parse(metrics) if settings.probe is not None else scrape.Scrape((), ())
    (out / f"{settings.shape}-metrics.txt").write_text(metrics, encoding="utf-8")
    result = {
        "schema": 1,
        "shape": settings.shape,
        "layers": settings.layers or shapes.layer_count(settings.shape),
        "settings": dataclasses.asdict(settings),
        "environment": started,
        "after": after,
        "probe": settings.probe,
        "snapshot": read_snapshot(work / "probe"),
        "rows": [dataclasses.asdict(row) for row in found.rows],
        "load": visits,
    }
    (out / f"{settings.shape}.json").write_text(json.dumps(result), encoding="utf-8")
    print_tables(found)
    _print_load(visits)


def _print_load(visits: list[dict[str, Any]]) -> None:
    table = Table(title="load that arrived")
    for name in ("B", "L", "tokens/s", "ITL p50 ms", "all decoding"):
        table.add_column(name)
    for visit in visits:
        p50 = visit["itl_p50_ms"]
        table.add_row(
            str(visit["batch_size"]),
            str(visit["context"]),
            f"{visit['tokens_per_second']:.1f}",
            "-" if p50 is None else f"{p50:.2f}",
            "yes" if visit["all_decoding"] else "no",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
