"""How wide intervals of step times may be for adaptive verification to choose well by them.

    python -m benchmarks.cost_width

Over recorded curves of whole steps (``2026-11-24-h100``): what is lost when drafts are chosen by
times with an error. The errors are drawn independently at each N, the worst case: errors that are
alike at all N change no choice. Drafting is paid for before the choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RECORDED = Path(__file__).parent / "results" / "2026-11-24-h100"
MOST_POSITIONS = 8
ACCEPTANCES = (0.5, 0.7, 0.8, 0.9)
WIDTHS = (1.05, 1.1, 1.2, 1.4, 2.0)
DRAFTING = 0.05
"""Time of drafting, as a fraction of t(1)."""
DRAWS = 2000

FloatArray = NDArray[np.float64]


def curves(path: Path) -> Iterator[FloatArray]:
    """t(N) / t(1) of whole steps at N = 1 to 8, of each recorded cell."""
    rows = json.loads(path.read_text(encoding="utf-8"))["snapshot"]["curves"]
    cells: dict[tuple[int, int], dict[int, float]] = {}
    for row in rows:
        if row["module"] == "model":
            cell = cells.setdefault((row["batch_size"], row["context"]), {1: 1.0})
            cell[row["positions"]] = row["ratio"]
    for cell in cells.values():
        counts = sorted(cell)
        yield np.interp(np.arange(1, MOST_POSITIONS + 1), counts, [cell[n] for n in counts])


def lost(ratio: FloatArray, acceptance: float, width: float, random: np.random.Generator) -> float:
    """Mean fraction of the best goodput that is lost.

    Args:
        ratio: t(N) / t(1), shape [n].
        width: upper over lower end of the 95 % interval of each ratio.
    """
    tokens = np.cumsum(acceptance ** np.arange(len(ratio)))
    goodput = tokens / (ratio + DRAFTING)
    error = random.normal(0.0, math.log(width) / (2 * 1.959964), (DRAWS, len(ratio)))
    error[:, 0] = 0.0
    chosen = (tokens / (ratio * np.exp(error) + DRAFTING)).argmax(axis=1)
    return float(1.0 - (goodput[chosen] / goodput.max()).mean())


def main() -> None:
    """Print the mean and the worst loss by width and kind of model."""
    print("width  " + "  ".join(f"{kind:>14}" for kind in ("dense", "moe")))
    for width in WIDTHS:
        found = []
        for kind in ("dense", "moe"):
            random = np.random.default_rng(0)
            losses = [
                lost(ratio, acceptance, width, random)
                for ratio in curves(RECORDED / f"{kind}-table.json")
                for acceptance in ACCEPTANCES
            ]
            found.append(f"{np.mean(losses):6.2%} {max(losses):6.2%}")
        print(f"{width:5.2f}  " + "  ".join(f"{text:>14}" for text in found))


if __name__ == "__main__":
    main()
