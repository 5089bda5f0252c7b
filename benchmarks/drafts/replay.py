"""What the live controller would choose, given the step times that benchmarks.drafts.lengths took.

    python -m benchmarks.drafts.replay DIR [DIR ...]

Needs no GPU, and is no measurement of a server: each step lasts the recorded median of its draft
length, with noise and slow spells, and its drafts are thrown at the set acceptance. One controller
for each acceptance goes through the points in the order of the benchmark, beginning with what it
knew at the last one; another three times over the ramp, beginning with nothing. It separates
the controller's decisions from the noise of the host on which the times were taken.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.drafts.plan import (
    ACCEPTANCES,
    LENGTHS,
    LEVEL_SECONDS,
    LEVELS,
    MAIN_ACCEPTANCE,
    WIDEST_GRAPH,
    step_times,
    up_and_down,
)
from benchmarks.drafts.times import Cell, length_seconds, read_rows
from vllm_nfp.draft import StepCurve, expected_tokens
from vllm_nfp.draft.inputs import source_of
from vllm_nfp.draft.live import Controller, Settings, StepObservation
from vllm_nfp.draft.live.steps import context_cell

STATIC_LENGTH = 3
MOST_SEQUENCES = 128
STEPS = 1500
"""Steps at each point, ten seconds or so; the last fifth of them is judged."""
FIRST_STEPS = 400
LAG = 2
"""Steps from the choice of a length to the step that verifies so many drafts."""
RAMP_ROUNDS = 3
SEED = 11
"""Of noise, slow spells and acceptance."""


@dataclass(frozen=True, slots=True)
class Host:
    """How the times of steps scatter."""

    noise: float = 0.02
    """Standard deviation of the logarithm of a step's time."""
    slow_steps: int = 40
    """Length of a slow spell, in steps."""
    slow_share: float = 0.2
    """Fraction of steps in slow spells."""
    slow_factor: float = 1.4


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


@dataclass(frozen=True, slots=True)
class RampRound:
    """One way up and down."""

    number: int
    over_best_fixed: float
    """Mean goodput of the levels over that of the best single length."""
    over_ideal: float
    """The same over that of each level's own best length."""


class Server:
    """Steps of recorded times under a controller.

    Args:
        curves: the probe's, which the controller gets.
        acceptance: probability of each draft, given those before it; may be set anew.
        host: how times scatter.
        seed: of noise, slow spells and acceptance.
    """

    def __init__(
        self,
        curves: Sequence[StepCurve],
        acceptance: float,
        host: Host = Host(),
        seed: int = SEED,
    ) -> None:
        static = [0, *[STATIC_LENGTH] * MOST_SEQUENCES]
        self.controller = Controller(static, Settings(LENGTHS, widest_graph=WIDEST_GRAPH))
        self.controller.set_curves(curves)
        self.acceptance = acceptance
        self._host = host
        self._random = random.Random(seed)
        self._now = 0.0
        self._slow = 0
        self._asked = deque([STATIC_LENGTH] * LAG)
        self._applied: tuple[int, int] | None = None
        self._table = static

    def step(self, cell: Cell, seconds: Mapping[int, float]) -> int:
        """One step at (context, batch size); the draft length that it ran."""
        context, batch_size = cell
        applied = (self.controller.version, context_cell(context))
        if applied != self._applied:  # as a server's table is written
            self._applied, self._table = applied, self.controller.table(context)
        self._asked.append(self._table[batch_size])
        length = self._asked.popleft()
        taken = seconds[length] * self._slowness()
        self._now += taken
        timed = self._asked[0] == length  # as in a server: it makes as many as it verifies
        accepted = self._accepted(batch_size, length)
        seen = StepObservation(batch_size, context, length, taken if timed else None, accepted)
        if self.controller.observe(seen, self._now):
            self.controller.decide(batch_size, context, self._now)
        return length

    def idle(self, seconds: float) -> None:
        """Time in which others are measured."""
        self._now += seconds

    def _slowness(self) -> float:
        host = self._host
        begins = self._random.random() < host.slow_share / host.slow_steps
        self._slow = host.slow_steps if begins else self._slow - 1
        factor = host.slow_factor if self._slow > 0 else 1.0
        return self._random.lognormvariate(0.0, host.noise) * factor

    def _accepted(self, batch_size: int, length: int) -> tuple[int, ...]:
        accepted = []
        left = batch_size
        for _ in range(length):
            left = sum(self._random.random() < self.acceptance for _ in range(left))
            accepted.append(left)
        return tuple(accepted)


def recorded(rows: Sequence[Mapping[str, Any]]) -> dict[Cell, dict[int, float]]:
    """Seconds of a step by draft length, of cells that have them all."""
    return _whole(length_seconds(rows))


def _whole(cells: Mapping[Cell, dict[int, float]]) -> dict[Cell, dict[int, float]]:
    return {cell: times for cell, times in cells.items() if set(times) == {*LENGTHS}}


def with_no_drafts(
    levels: Mapping[Cell, Mapping[int, float]], points: Mapping[Cell, Mapping[int, float]]
) -> dict[Cell, dict[int, float]]:
    """The ramp's times and those of K = 0, which ran on no ramp.

    Over K = 1 it takes the share that it took at the point with the nearest batch size.
    """
    found = {}
    for (context, batch_size), seconds in levels.items():
        at = min(points, key=lambda cell: (cell[0] != context, abs(cell[1] - batch_size)))
        found[context, batch_size] = {0: seconds[1] * points[at][0] / points[at][1], **seconds}
    return _whole(found)


def replay(
    cells: Mapping[Cell, Mapping[int, float]], curves: Sequence[StepCurve], acceptance: float
) -> list[Replayed]:
    """Go through the points with one controller."""
    server = Server(curves, acceptance)
    found = []
    for cell, seconds in cells.items():
        lengths = [server.step(cell, seconds) for _ in range(STEPS)]
        found.append(_judge(acceptance, cell, seconds, lengths))
    return found


def replay_ramp(
    cells: Mapping[Cell, Mapping[int, float]], curves: Sequence[StepCurve], acceptance: float
) -> list[RampRound]:
    """Go up and down the levels several times with one controller; none if a level lacks times."""
    by_level = {batch_size: (context, seconds) for (context, batch_size), seconds in cells.items()}
    if not set(LEVELS) <= set(by_level):
        return []
    levels = up_and_down(LEVELS)
    rates = {
        level: {
            k: level * expected_tokens(k, acceptance) / t for k, t in by_level[level][1].items()
        }
        for level in LEVELS
    }
    fixed = max(statistics.mean(rates[level][k] for level in levels) for k in LENGTHS)
    ideal = statistics.mean(max(rates[level].values()) for level in levels)
    server, found = Server(curves, acceptance), []
    for number in range(RAMP_ROUNDS):
        made = []
        for level in levels:
            context, seconds = by_level[level]
            made.append(_level_rate(server, (context, level), seconds, acceptance))
        rate = statistics.mean(made)
        found.append(RampRound(number, rate / fixed, rate / ideal))
        server.idle(10 * LEVEL_SECONDS * len(levels))  # ten other policies, in the benchmark
    return found


def _level_rate(
    server: Server, cell: Cell, seconds: Mapping[int, float], acceptance: float
) -> float:
    tokens = taken = 0.0
    while taken < LEVEL_SECONDS:
        length = server.step(cell, seconds)
        tokens += cell[1] * expected_tokens(length, acceptance)
        taken += seconds[length]
    return tokens / taken


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


def print_points(console: Console, title: str, found: Sequence[Replayed]) -> None:
    """A row for each point, and what they come to."""
    table = Table(title=title)
    for name in ("a", "L", "B", "best K", "chosen K", "fraction of the best", "at first"):
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


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print what would be chosen; see the module's text."""
    console = Console(width=100)
    for folder in folders:
        cells = recorded(read_rows(folder / "points.jsonl"))
        curves = source_of(step_times(folder / "spec")).curves
        found = [one for a in ACCEPTANCES for one in replay(cells, curves, a)]
        print_points(console, folder.name, found)
        levels = with_no_drafts(length_seconds(read_rows(folder / "ramps.jsonl")), cells)
        for one in replay_ramp(levels, curves, MAIN_ACCEPTANCE):
            console.print(
                f"ramp, round {one.number + 1}: {one.over_best_fixed:.3f} of the best fixed "
                f"length, {one.over_ideal:.3f} of the best at each level"
            )


if __name__ == "__main__":
    main()
