"""What the live controller would choose, given the step times that benchmarks.draft_lengths took.

    python -m benchmarks.draft_replay DIR [DIR ...]

Needs no GPU, and is no measurement of a server: each step lasts the recorded median of its draft
length, with noise and slow spells, and its drafts are thrown at the set acceptance. One controller
for each acceptance goes through the points in the order of the benchmark, beginning with what it
knew at the last one. It tells the controller's decisions apart from the noise of the host on which
the times were taken.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.draft_lengths import ACCEPTANCES, LENGTHS, MAIN_ACCEPTANCE, ROUND
from benchmarks.draft_table import read_rows
from vllm_nfp.draft import expected_tokens
from vllm_nfp.draft.live import Controller, Settings, StepObservation

STATIC_LENGTH = 3
MOST_SEQUENCES = 128
WIDEST_GRAPH = 512
STEPS = 1500
"""Steps at each point, ten seconds or so; the last fifth of them is judged."""
FIRST_STEPS = 400
SLOW_STEPS, SLOW_SHARE, SLOW_FACTOR = 40, 0.2, 1.4
NOISE = 0.02

Cell = tuple[int, int]
"""(context, batch size)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One point."""

    acceptance: float
    cell: Cell
    best: int
    chosen: int
    """The length of most of the judged steps."""
    share: float
    """Goodput of the judged steps over that of the best length, trials included."""
    from_the_start: float
    """The same of the first steps at the point, in which most is tried."""


def recorded(rows: Sequence[Mapping[str, Any]]) -> dict[Cell, dict[int, float]]:
    """Seconds of a step by draft length; cells that lack a length are left out."""
    found: dict[Cell, dict[int, list[float]]] = {}
    for row in rows:
        fixed = row["policy"].partition(":")[0] in ("fixed", ROUND)
        if fixed and row["acceptance"] == MAIN_ACCEPTANCE:
            cell = found.setdefault((row["context"], row["batch_size"]), {})
            for length, seconds in row["medians"].items():
                cell.setdefault(int(length), []).append(seconds)
    return {
        cell: {k: min(times) for k, times in lengths.items()}
        for cell, lengths in found.items()
        if set(lengths) == set(LENGTHS)
    }


def replay(cells: Mapping[Cell, Mapping[int, float]], acceptance: float) -> list[Replayed]:
    """Go through the points with one controller."""
    controller = Controller(
        [0, *[STATIC_LENGTH] * MOST_SEQUENCES], Settings(LENGTHS, widest_graph=WIDEST_GRAPH)
    )
    rng = random.Random(11)
    now, found = 0.0, []
    for (context, batch_size), seconds in cells.items():
        lengths: list[int] = []
        slow = 0
        pending = [controller.table(context)[batch_size]] * 2
        for _ in range(STEPS):
            pending.append(controller.table(context)[batch_size])
            length = pending.pop(0)
            slow = SLOW_STEPS if rng.random() < SLOW_SHARE / SLOW_STEPS else slow - 1
            taken = seconds[length] * rng.lognormvariate(0.0, NOISE)
            taken *= SLOW_FACTOR if slow > 0 else 1.0
            now += taken
            accepted = _accepted(rng, batch_size, length, acceptance)
            step = StepObservation(batch_size, context, length, taken, accepted)
            if controller.observe(step, now):
                controller.decide(batch_size, context, now)
            lengths.append(length)
        found.append(_judge(acceptance, (context, batch_size), seconds, lengths))
    return found


def _accepted(
    rng: random.Random, batch_size: int, length: int, acceptance: float
) -> tuple[int, ...]:
    accepted = []
    left = batch_size
    for _ in range(length):
        left = sum(rng.random() < acceptance for _ in range(left))
        accepted.append(left)
    return tuple(accepted)


def _judge(
    acceptance: float, cell: Cell, seconds: Mapping[int, float], lengths: Sequence[int]
) -> Replayed:
    rates = {k: expected_tokens(k, acceptance) / t for k, t in seconds.items()}
    best = max(rates, key=lambda k: rates[k])

    def share(some: Sequence[int]) -> float:
        tokens = sum(expected_tokens(k, acceptance) for k in some)
        return tokens / sum(seconds[k] for k in some) / rates[best]

    judged = lengths[-STEPS // 5 :]
    most = Counter(judged).most_common(1)[0][0]
    return Replayed(acceptance, cell, best, most, share(judged), share(lengths[:FIRST_STEPS]))


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print what would be chosen; see the module's text."""
    console = Console(width=100)
    for folder in folders:
        cells = recorded(read_rows(folder / "points.jsonl"))
        found = [one for acceptance in ACCEPTANCES for one in replay(cells, acceptance)]
        table = Table(title=folder.name)
        for name in ("a", "L", "B", "best K", "chosen K", "share of the best", "at first"):
            table.add_column(name, justify="right")
        for one in found:
            table.add_row(
                f"{one.acceptance:g}", *map(str, one.cell), str(one.best), str(one.chosen),
                f"{one.share:.3f}", f"{one.from_the_start:.3f}",
            )  # fmt: skip
        console.print(table)
        shares = [one.share for one in found]
        console.print(
            f"{len(shares)} points: median {statistics.median(shares):.3f}, "
            f"worst {min(shares):.3f}, {sum(s < 0.98 for s in shares)} below 0.98; over the first "
            f"{FIRST_STEPS} steps {statistics.mean(one.from_the_start for one in found):.3f}"
        )


if __name__ == "__main__":
    main()
