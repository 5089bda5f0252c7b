"""Draws docs/images/basis.png: how pairs turn a prediction into a measured answer.

    python -m benchmarks.answers.basis_plot -o docs/images/basis.png

Left: the prediction with its 95 % band and the boundary that follows. Right: the same after a few
pairs. The prior and its uncertainty are those that a server with a Llama 8B on an H100 starts
from. The pairs are made up: they lie 0.5 to 4 % above the prediction.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.serving.shapes import SHAPES
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.surface import (
    RECORDED,
    CellAnswer,
    CostSurface,
    Observations,
    Prior,
    Ratio,
    boundary,
    predicted_prior,
)
from vllm_nfp.types import Basis, Module, Shape

CONFIG = SHAPES["llama-3.1-8b"]
BATCH_SIZE, CONTEXT, EPSILON = 16, 1024, 0.1
POSITIONS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
PAIRS = ((4, 0.005), (6, 0.005), (8, 0.01), (12, 0.04))
"""Positions, and log of the made-up ratio over the predicted one."""
NOISE = 0.002
"""Standard deviation of a pair's log ratio."""
BAND, LINE, TEXT, FREE = "#1f6fc4", "#174f8c", "#1b2430", "#2a9d5c"


def answer(prior: Prior, pairs: Sequence[tuple[int, float]]) -> CellAnswer:
    """The curve of the whole step after these pairs."""
    expected = prior(BATCH_SIZE, CONTEXT).log_seconds(Module.MODEL)
    seen = Observations(
        tuple(
            Ratio(
                Module.MODEL, Shape(BATCH_SIZE, CONTEXT, n),
                float(expected[n - 1] - expected[0]) + error, NOISE**2, 1,
            )
            for n, error in pairs
        )
    )  # fmt: skip
    surface = CostSurface(prior, RECORDED, seen)
    surface.update(0.0)
    found = surface.answers([(BATCH_SIZE, CONTEXT)], POSITIONS)
    return found[Module.MODEL, BATCH_SIZE, CONTEXT]


def draw(axes: Any, found: CellAnswer, title: str) -> None:
    """One panel: the curve with its band, its points, and the boundary below it."""
    lower, upper = found.interval
    axes.axhspan(0.8, 1.0 + EPSILON, color=FREE, alpha=0.13, linewidth=0)
    axes.axhline(1.0 + EPSILON, color=TEXT, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.fill_between(POSITIONS, lower, upper, color=BAND, alpha=0.22, linewidth=0)
    for i in range(1, len(POSITIONS)):
        predicted = found.basis[i] is Basis.PREDICTED
        axes.plot(
            POSITIONS[i - 1 : i + 1], found.ratio[i - 1 : i + 1], color=LINE, linewidth=2.0,
            linestyle=(0, (2.5, 2)) if predicted else "-",
        )  # fmt: skip
    for basis, face in ((Basis.MEASURED, LINE), (Basis.INFERRED, "white")):
        rows = [i for i, of in enumerate(found.basis) if of is basis]
        axes.plot(
            [POSITIONS[i] for i in rows], found.ratio[rows], "o", color=LINE, markersize=7,
            markerfacecolor=face,
        )  # fmt: skip
    nfp = boundary(found, EPSILON)
    axes.plot(
        [nfp.lower, nfp.upper], [0.93, 0.93], color=FREE, linewidth=9, alpha=0.5,
        solid_capstyle="round",
    )  # fmt: skip
    axes.plot([nfp.positions], [0.93], "o", color=FREE, markersize=10)
    mark = {Basis.MEASURED: "{}", Basis.INFERRED: "~{}", Basis.PREDICTED: "{}?"}[nfp.basis]
    axes.annotate(
        f"NFP {mark.format(nfp.positions)} [{nfp.lower}, {nfp.upper}]", (1.05, 0.93),
        va="center", color=TEXT, fontsize=13, fontweight="bold",
    )  # fmt: skip
    axes.set_title(title, fontsize=14, color=TEXT, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.95, POSITIONS[-1] * 1.08)
    axes.set_ylim(0.88, 1.45)
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelsize=13)
    axes.set_xlabel("positions per sequence, N", fontsize=13)
    axes.set_ylabel("t(N) / t(1)", fontsize=13)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    prior = predicted_prior(
        shape_from_config(CONFIG), target_of("H100-SXM"), Serving(), POSITIONS[-1]
    )
    figure = Figure(figsize=(5.6, 8.4), facecolor="white", layout="constrained")
    above, below = figure.subplots(2, 1)
    draw(above, answer(prior, ()), "At the start: predicted")
    draw(below, answer(prior, PAIRS), f"After {len(PAIRS)} pairs: measured and inferred")
    for style, name in (
        ({"marker": "o", "linestyle": "-"}, "measured"),
        ({"marker": "o", "linestyle": "-", "markerfacecolor": "white"}, "inferred"),
        ({"linestyle": (0, (2.5, 2))}, "predicted"),
    ):
        below.plot([], [], color=LINE, linewidth=2.0, markersize=7, label=name, **style)
    below.legend(loc="upper left", fontsize=13, frameon=False)
    figure.savefig(output, dpi=110, metadata={"Software": None})
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
