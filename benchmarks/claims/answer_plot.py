"""Draws docs/images/answers.svg: how true a server's answers are, from its start on.

    python -m benchmarks.claims.answer_plot -o docs/images/answers.svg

The runs are those of benchmarks.answers.at_defaults that the claims rest on, at the moments that
they kept: the first answer, and the end of each phase of traffic. Drawn are the shares of draft
lengths that lose at most 2 % of the best goodput, and of ratios t(N) / t(1) inside their 95 %
intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.answers.at_defaults_score import Score, scores_of
from benchmarks.claims.at_defaults_claims import RESULTS, SERVERS
from benchmarks.hosts.records import unpacked

ROOT = Path(__file__).resolve().parents[2]
INK, GRID = "#1b2430", "#d5dbe3"
COLORS = ("#174f8c", "#1f9ac4", "#c4571f", "#8c5aa8", "#2a9d5c", "#8c8c17", "#6b7480")
PANELS = (
    ("Draft lengths within 2 % of the best", "good", "drafts"),
    ("t(N) / t(1) inside its 95 % interval", "covered", "points"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One run.

    Attributes:
        seconds: of traffic until each moment.
        shares: by panel, in percent; None where the truth has nothing to compare with.
    """

    name: str
    seconds: tuple[float, ...]
    shares: tuple[tuple[float, ...] | None, ...]


def line_of(name: str, record: Path) -> Line:
    """A recorded run."""
    with unpacked(record) as folder:
        scores = list(scores_of(folder))
        clients = json.loads((folder / "clients.json").read_text(encoding="utf-8"))
    seconds = tuple(accumulate((clients[s.moment]["seconds"] for s in scores[1:]), initial=0.0))
    return Line(name, seconds, tuple(_shares(scores, *panel[1:]) for panel in PANELS))


def _shares(scores: Sequence[Score], part: str, whole: str) -> tuple[float, ...] | None:
    steps = [score.steps for score in scores]
    counts = [(getattr(s, part), s.drafts if whole == "drafts" else len(s.errors)) for s in steps]
    if not all(count for _, count in counts):
        return None
    return tuple(100.0 * right / count for right, count in counts)


def draw(lines: Sequence[Line]) -> Figure:
    """A panel for each share."""
    figure = Figure(figsize=(9.6, 3.9), facecolor="white", layout="constrained")
    colored = list(zip(lines, COLORS[: len(lines)], strict=True))
    for number, axes in enumerate(figure.subplots(1, len(PANELS))):
        for line, color in colored:
            shares = line.shares[number]
            if shares is not None:
                axes.plot(line.seconds, shares, "o-", color=color, linewidth=2, label=line.name)
        axes.set_title(PANELS[number][0], fontsize=12, color=INK, loc="left")
        axes.set_xlabel("seconds of traffic", fontsize=11)
        axes.set_ylabel("%", fontsize=11, rotation=0)
        axes.set_ylim(0, 104)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles = {line.name: color for line, color in colored}
    figure.legend(
        [mpl.lines.Line2D([], [], color=color, marker="o") for color in handles.values()],
        list(handles), loc="outside lower center", ncols=3, frameon=False, fontsize=10,
    )  # fmt: skip
    return figure


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    lines = [
        line_of(
            f"{server.model}, {server.gpu.split(',')[0]}, {server.commit}",
            ROOT / RESULTS / server.folder,
        )
        for server in SERVERS
        if server.row is not None
    ]
    mpl.rcParams |= {"svg.hashsalt": "nfp", "svg.fonttype": "path"}
    draw(lines).savefig(output, metadata={"Date": None, "Creator": None})
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
