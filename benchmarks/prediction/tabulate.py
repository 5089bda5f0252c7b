"""Prints the tables of docs/measured.md from the raw results.

python -m benchmarks.prediction.tabulate benchmarks/results/2026-11-24-h100
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from statistics import median, pstdev
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--epsilon", type=float, default=0.1)
def main(folder: Path, epsilon: float) -> None:
    """Print Markdown tables for each model in FOLDER."""
    for name in ("dense", "moe"):
        print_model(folder, name, epsilon)


def print_model(folder: Path, name: str, epsilon: float = 0.1) -> None:
    """Print the Markdown table of one model of h100_session's results."""
    table = json.loads((folder / f"{name}-table.json").read_text())
    with gzip.open(folder / f"{name}-pairs.jsonl.gz", "rt") as lines:
        pairs = [json.loads(line) for line in lines]
    click.echo(f"\n### {table['shape']}, {table['layers']} layers, epsilon {epsilon:g}\n")
    _print_nfp(table["snapshot"], epsilon)
    _print_agreement(pairs, table["layers"])


def _print_nfp(snapshot: dict[str, Any], epsilon: float) -> None:
    idle = {
        (p["module"], p["batch_size"], p["context"]): p["idle_compute_positions"]
        for p in snapshot["predictions"]
        if p["epsilon"] == epsilon
    }
    cells: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for row in snapshot["boundaries"]:
        if row["epsilon"] != epsilon:
            continue
        key = (row["module"], row["batch_size"], row["context"])
        interval = "" if row["lower"] == row["upper"] else f" [{row['lower']}, {row['upper']}]"
        more = "+" if row["at_limit"] else ""
        cells[key[0], key[1]][key[2]] = f"{row['positions']}{more}{interval} ({idle.get(key, '-')})"
    contexts = sorted({context for row in cells.values() for context in row})
    click.echo("| module | B | " + " | ".join(f"L = {c}" for c in contexts) + " |")
    click.echo("| --- | --- |" + " --- |" * len(contexts))
    for (module, batch_size), row in sorted(cells.items()):
        values = " | ".join(row.get(c, "-") for c in contexts)
        click.echo(f"| {module} | {batch_size} | {values} |")


def _print_agreement(pairs: list[dict[str, Any]], layers: int) -> None:
    """How repeatable a pair is, and how much of the step its modules and LM head explain."""
    spreads: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    shares = []
    for pair in pairs:
        many, one = pair["many"], pair["one"]
        if many["execution"] != "full":
            continue
        spreads[tuple(many["shape"].values())].append(many["step_seconds"] / one["step_seconds"])
        parts = layers * sum(many["modules"].values()) + many["lm_head_seconds"]
        shares.append(parts / many["step_seconds"])
    if not shares:
        click.echo(f"\n{len(pairs)} pairs, none in a FULL graph")
        return
    spread = median(pstdev(values) for values in spreads.values() if len(values) > 5)
    click.echo(
        f"\n{len(pairs)} pairs; step ratio t(N)/t(1) in FULL graphs: median standard deviation "
        f"{spread:.2%}; timed modules x layers + LM head: {median(shares):.0%} of the step "
        f"(range {min(shares):.0%} to {max(shares):.0%}), the rest is projections and norms"
    )


if __name__ == "__main__":
    main()
