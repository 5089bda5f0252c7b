"""How wide intervals of step times may be for adaptive verification to choose well by them.

    python -m benchmarks.answers.cost_width

Two tables, of what is lost when drafts are chosen by times that are not exact:

- **By error.** Recorded curves of whole steps (``2026-11-24-h100``) with errors drawn independently
  at each N, the worst case: errors that are alike at all N change no choice.
- **By answer.** What servers at the defaults said, at the start and after each phase of traffic,
  against the truth of the same run (RUNS). Beside it what costs like vLLM's own lose: a step of T
  tokens is priced like T sequences with one position and 4096 tokens each. vLLM's own have 8192.
  Rows by the widest 95 % interval of the ratios that the choice reads, and apart for answers that
  rest on the prediction at one N or more.

Drafting is paid for before the choice. All sequences draft alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers.at_defaults_score import true_points
from benchmarks.answers.steps_again import MOMENTS, TRUTH, curves_at, unpacked
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.sources import from_profile
from vllm_nfp.types import Basis

RESULTS = Path(__file__).parents[1] / "results"
RECORDED = RESULTS / "2026-11-24-h100"
MOST_POSITIONS = 8
ACCEPTANCES = (0.5, 0.7, 0.8, 0.9)
WIDTHS = (1.05, 1.1, 1.2, 1.4, 2.0, 2.5)
DRAFTING = 0.05
"""Time of drafting, as a fraction of t(1)."""
DRAWS = 2000
RUNS = (
    "2026-11-28-h100-at-defaults/dense",
    "2026-11-28-h200-at-defaults/dense",
    "2026-11-28-h200-fp8-images/fp8",
    "2026-11-28-h200x2-alike/moe",
    "2026-11-29-h200/experts",
    "2026-11-28-h100-at-defaults/latent-attention",
)
"""Each with the times that its truth has measured; the last server was passive."""
DRAFTS = (4, 7)
OWN_CONTEXT = 4096
ENDS = (1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is lost by one answer, at one acceptance."""

    width: float
    """Upper over lower end of the widest interval that was read."""
    predicted: bool
    lost: float
    """Fraction of the best goodput."""
    own: float | None
    """By costs like vLLM's own; None: the truth lacks what they would be."""


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
        yield interpolated(np.arange(1, MOST_POSITIONS + 1), counts, [cell[n] for n in counts])


def lost(ratio: FloatArray, acceptance: float, width: float, random: np.random.Generator) -> float:
    """Mean fraction of the best goodput that is lost.

    Args:
        ratio: t(N) / t(1), shape [n].
        width: upper over lower end of the 95 % interval of each ratio.
    """
    error = random.normal(0.0, math.log(width) / (2 * 1.959964), (DRAWS, len(ratio)))
    error[:, 0] = 0.0
    return float(np.mean(lost_by(ratio * np.exp(error), ratio, acceptance)))


def lost_by(said: FloatArray, ratio: FloatArray, acceptance: float) -> FloatArray:
    """Fraction of the best goodput that is lost by choosing by what is said.

    Args:
        said: shape [..., n].
        ratio: the truth, shape [n].
    """
    tokens = np.cumsum(acceptance ** np.arange(len(ratio)))
    goodput = tokens / (ratio + DRAFTING)
    chosen = (tokens / (said + DRAFTING)).argmax(axis=-1)
    return np.asarray(1.0 - goodput[chosen] / goodput.max())


def choices(run: Path) -> Iterator[Choice]:
    """What the answers of a server lose, at each moment and point of its truth."""
    truth = {(c.batch_size, c.context): c for c in from_profile(unpacked(run / TRUTH)).curves}
    for moment in MOMENTS:
        _, said = curves_at(run / f"{moment}.prom.gz")
        for cell, true in truth.items():
            for drafts in DRAFTS:
                measured = _measured(true, drafts + 1)
                if cell in said and measured is not None and said[cell].largest > drafts:
                    own = _own(truth, true, drafts + 1)
                    yield from _of_answer(said[cell], measured, own)


def _measured(true: StepCurve, positions: int) -> FloatArray | None:
    """t(N) / t(1) at N = 1 to so many; None if one was not measured in a CUDA graph."""
    known = {1: 1.0, **dict(true_points(true))}
    wanted = [n for n, _ in true.points if n <= positions]
    if true.largest < positions or any(n not in known for n in wanted):
        return None
    counts = sorted(known)
    return interpolated(np.arange(1, positions + 1), counts, [known[n] for n in counts])


def interpolated(at: NDArray[Any], known: Sequence[int], values: Sequence[float]) -> FloatArray:
    """On straight lines between what is known."""
    return np.asarray(np.interp(at, known, values), dtype=np.float64)


def _own(
    truth: Mapping[tuple[int, int], StepCurve], true: StepCurve, positions: int
) -> FloatArray | None:
    """What costs by tokens alone say in the place of t(N) / t(1)."""
    sizes = sorted(b for b, context in truth if context == OWN_CONTEXT)
    tokens = true.batch_size * np.arange(1, positions + 1)
    if not sizes or tokens[-1] > sizes[-1]:
        return None
    seconds = [truth[b, OWN_CONTEXT].seconds_at_one for b in sizes]
    return interpolated(tokens, sizes, seconds) / true.seconds_at_one


def _of_answer(said: StepCurve, ratio: FloatArray, own: FloatArray | None) -> Iterator[Choice]:
    counts = range(1, len(ratio) + 1)
    read = [
        (basis, upper / lower)
        for (n, _), basis, (lower, upper) in zip(
            said.points, said.bases, said.intervals, strict=True
        )
        if n in counts[1:]
    ]
    answered = np.array([said.ratio(n) for n in counts])
    for acceptance in ACCEPTANCES:
        yield Choice(
            max(width for _, width in read),
            any(basis is Basis.PREDICTED for basis, _ in read),
            float(lost_by(answered, ratio, acceptance)),
            None if own is None else float(lost_by(own, ratio, acceptance)),
        )


def print_by_error() -> None:
    """The mean and the worst loss by width and kind of model."""
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


def print_by_answer(found: Sequence[Choice]) -> None:
    """The mean and the worst loss by the width of what was said."""
    print(
        "width        n  lost: mean, worst   predicted: n, mean   where both: n, this, vLLM's own"
    )
    for low, high in zip(ENDS, (*ENDS[1:], math.inf), strict=True):
        here = [c for c in found if low <= c.width < high]
        if not here:
            continue
        losses = [c.lost for c in here]
        predicted = [c.lost for c in here if c.predicted]
        both = [(c.lost, c.own) for c in here if c.own is not None]
        this, own = np.mean(both, axis=0)
        print(
            f"{low:.1f}-{high:<4.1f} {len(here):5d} {np.mean(losses):8.2%} "
            f"{max(losses):7.2%}   {len(predicted):8d} "
            f"{np.mean(predicted) if predicted else math.nan:8.2%}   {len(both):8d} "
            f"{this:6.2%} {own:6.2%}"
        )


def all_choices() -> list[Choice]:
    """Of all runs."""
    return [choice for run in RUNS for choice in choices(RESULTS / run)]


def main() -> None:
    """Print both tables."""
    print_by_error()
    print()
    print_by_answer(all_choices())


if __name__ == "__main__":
    main()
