"""Claim: the predictor finds the boundary, and better than the idle-compute rule.

    python -m benchmarks.prediction.validate benchmarks/results --out DIR [--plots DIR]
    python -m benchmarks.prediction.validate benchmarks/results --page docs/validation.md \\
        --public curves.json

Compares predicted with measured NFP in every cell of the H100 timings: kernels alone
(``*-h100-kernels``) and whole models through the probe (``*-h100-whole-models``, ``*-h100``).
Shapes under ``reference`` fitted the constants; those under ``set-aside``, and whole models of
other shapes, did not: both are reported apart. Measured NFP is the first crossing of the medians;
predictions are read at the measured N only, so that both have the same grid.

A granularity step is: 64 rows of a tile in dense products, ceil(64 / B) positions; 64 query rows
in attention, ceil(64 / g); for experts that are all active a block of rows in each, otherwise one
position; for a whole model that of its FFN. Writes validation.json; plots t(N) with --plots.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from benchmarks.prediction.score_public import score
from benchmarks.prediction.validation_cells import all_cells
from benchmarks.prediction.validation_outcomes import Outcome, outcomes, print_summary
from benchmarks.prediction.validation_page import write_page
from benchmarks.prediction.validation_plots import draw
from vllm_nfp.cli.common import Refusal
from vllm_nfp.principle import (
    HardwareError,
    target_of,
)

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _line(o: Outcome) -> str:
    where = f"{o.source:11s} {o.model:16s} {o.module:9s} {o.decoding:6s}"
    cell = f"B={o.batch_size:<3d} L={o.context:<5d} eps={o.epsilon}"
    more = "+" if o.at_limit else ""
    figures = f"measured {o.measured}{more}, predicted {o.predicted}, idle {o.idle_compute}"
    return f"{where} {cell}: {figures}{'' if o.within_step else '  <--'}"


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hardware", default="H100-SXM", help="A name or a hardware file.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--rows", is_flag=True, help="Print every set-aside cell.")
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None)
@click.option(
    "--public", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None
)
def main(
    results: Path,
    hardware: str,
    out: Path | None,
    plots: Path | None,
    rows: bool,
    page: Path | None,
    public: Path | None,
) -> None:
    """Score the predictor; see the module's text."""
    try:
        target = target_of(hardware)
    except HardwareError as error:
        raise Refusal(str(error)) from None
    cells = all_cells(results, target)
    found = outcomes(cells)
    console = Console(width=150)
    scores = print_summary(found, console)
    if rows:
        for outcome in (o for o in found if o.group == "set-aside"):
            console.print(_line(outcome), highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        kept = {"scores": scores, "outcomes": [asdict(o) for o in found]}
        (out / "validation.json").write_text(json.dumps(kept, indent=1))
    if plots is not None:
        draw(cells, plots)
    if (page is None) != (public is None):
        raise Refusal("--page and --public go together: the page has tables of both kinds of data")
    if page is not None and public is not None:
        sets = json.loads(public.read_text(encoding="utf-8"))["sets"]
        write_page(page, cells, score(sets))


if __name__ == "__main__":
    main()
