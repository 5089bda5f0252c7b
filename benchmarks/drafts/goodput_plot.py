"""Draws docs/images/goodput.png: goodput against draft length, the free region shaded.

    python -m benchmarks.drafts.goodput_plot benchmarks/results/2026-11-24-h100 dense -o goodput.png

Step times are those of the run; the acceptance is assumed, and drafts cost nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.prediction.to_profile import build
from vllm_nfp.draft import Demand, StepCurve, constant
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.draft.sources import curves_of_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCEPTANCES = ((0.5, "#E69F00"), (0.7, "#0072B2"), (0.9, "#CC79A7"))
EPSILON = 0.1
LONGEST = 24


def draw(axes: Axes, curve: StepCurve) -> None:
    """Gain over no drafts by draft length, for each acceptance."""
    free = curve.free_positions(EPSILON)[0] - 1
    axes.axvspan(0, min(free, LONGEST), color="#009E73", alpha=0.15, lw=0)
    axes.axhline(1.0, color="#666666", lw=0.8, ls=":")
    lengths = [n - 1 for n, _ in curve.points if n - 1 <= LONGEST]
    for acceptance, color in ACCEPTANCES:
        demand = Demand(constant(acceptance), max_draft_length=LONGEST, epsilon=EPSILON)
        gains = [demand.gain(curve, length) for length in lengths]
        axes.plot(lengths, gains, "o-", color=color, ms=3.5, lw=1.4, label=f"{acceptance:g}")
        best = best_length(curve, demand)
        axes.plot(
            best, demand.gain(curve, best), "*", color=color, ms=13, mec="white", mew=0.8, zorder=5
        )
    axes.set_title(f"B = {curve.batch_size}, {free} drafts free", fontsize=10)
    axes.set_xlabel("draft length K")
    axes.set_xlim(0, LONGEST)
    axes.grid(alpha=0.25)


def figure(curves: list[StepCurve]) -> Any:
    """One panel for each batch size."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.6, 3.5), dpi=110, layout="constrained")
    panels = drawn.subplots(1, len(curves), sharey=True)
    for axes, curve in zip(panels, curves, strict=True):
        draw(axes, curve)
    panels[0].set_ylabel("goodput over that without drafts")
    panels[0].legend(title="acceptance", loc="upper left", frameon=False, fontsize=9)
    return drawn


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name", type=click.Choice(["dense", "moe"]))
@click.option("--context", type=int, default=1024, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(folder: Path, name: str, context: int, output: Path) -> None:
    """Draw NAME's results in FOLDER."""
    curves = [c for c in curves_of_rows(build(folder, name).curves) if c.context == context]
    figure(curves).savefig(output)


if __name__ == "__main__":
    main()
