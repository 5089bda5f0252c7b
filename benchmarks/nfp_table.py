"""Claim: the probe gives NFP of each module, per batch size and context, in a server under load.

    python benchmarks/nfp_table.py --shape qwen3-8b --layers 16 --out DIR

Serves the shape with dummy weights, CUDA graphs and the probe, sends load that cycles through the
cells, and writes DIR/<shape>.json (environment, all metrics' rows, curves), the probe's raw pairs
and the server's log; prints the table.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from itertools import cycle
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment, load, serving, shapes
from vllm_nfp import scrape


@click.command()
@click.option("--shape", type=click.Choice(list(shapes.SHAPES)), required=True)
@click.option("--layers", type=int, default=None, help="Fewer layers than the published shape.")
@click.option("--seconds", type=float, default=60.0, help="Length of the load.")
@click.option("--startup-seconds", type=float, default=40.0, help="Length of the first scan.")
@click.option("--batch-sizes", default="1,8,32")
@click.option("--contexts", default="1024,4096,16384")
@click.option("--max-positions", type=int, default=128)
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
    flags: str,
    out: Path,
) -> None:
    """Measure and print the NFP table of one shape."""
    out.mkdir(parents=True, exist_ok=True)
    cells = [(b, c) for c in _numbers(contexts) for b in _numbers(batch_sizes)]
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
    }
    work = Path(tempfile.mkdtemp(prefix="nfp-table-"))
    model = shapes.write_model(work / "model", shape, layers)
    log = out / f"{shape}-server.log"
    with serving.server(model, log, flags.split(), probe, work / "probe") as url:
        started = environment.record()
        _send_load(url, str(model), shape, cells, seconds)
        found = scrape.parse(scrape.fetch(url))
    snapshot = json.loads((work / "probe" / "engine-0.json").read_text())
    result = {
        "shape": shape,
        "layers": layers or shapes.SHAPES[shape]["num_hidden_layers"],
        "environment": started,
        "after": environment.record()["gpu"],
        "probe": probe,
        "snapshot": snapshot,
    }
    (out / f"{shape}.json").write_text(json.dumps(result))
    with (
        (work / "probe" / "samples-0.jsonl").open("rb") as raw,
        gzip.open(out / f"{shape}-pairs.jsonl.gz", "wb") as packed,
    ):
        shutil.copyfileobj(raw, packed)
    print_tables(found)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _send_load(
    url: str, model: str, shape: str, cells: list[tuple[int, int]], seconds: float
) -> None:
    each = max(5.0, seconds / len(cells))
    spent = 0.0
    for batch_size, context in cycle(cells):
        if spent >= seconds:
            return
        load.run(
            load.Load(
                url, model, shapes.vocab_size(shape), batch_size, int(context * 0.9), 64, each - 1.0
            ),
            warmup_seconds=1.0,
        )
        spent += each


def print_tables(found: scrape.Scrape) -> None:
    """Print one table for each epsilon."""
    console = Console(width=150)
    for status in found.statuses:
        console.print(status)
    for epsilon in sorted({row.epsilon for row in found.rows}):
        table = Table(title=f"NFP [95 % interval] at epsilon {epsilon:g}")
        for name in ("module", "L", "B", "NFP", "idle-compute", "predicted"):
            table.add_column(name)
        for row in (r for r in found.rows if r.epsilon == epsilon):
            nfp = f"{row.positions}{'+' if row.at_limit else ''} [{row.lower}, {row.upper}]"
            table.add_row(
                row.module,
                str(row.context),
                str(row.batch_size),
                nfp,
                str(row.idle_compute),
                str(row.predicted),
            )
        console.print(table)


if __name__ == "__main__":
    main()
