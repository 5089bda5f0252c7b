"""Claim: a minute of traffic at the defaults gives a true answer, with honest intervals.

    python -m benchmarks.replay benchmarks/results --out DIR
    python -m benchmarks.replay benchmarks/results --only qwen3-14b --method surface,prior

Simulates servers from recorded times (``replay_recorded.py``) under a load in time, with the real
budget, and the pairs that a method asks for. After the scan at the start, 60 s and 10 min it
compares what the method says with the recorded truth, at every cell: batch sizes 1 to 128 and
contexts 1k to 16k where times are known. Each family of models is scored with hyperparameters
fitted on the others (``replay_fit.py``; ``split.json`` was written before).

What is simulated: the times of pairs and real steps with the noise that pairs of that kind showed,
five in a thousand with a delay of the host; captures; the budget's two bounds. What is not: clocks
that drift, memory that runs out, ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.replay_fit import hyperparameters_from
from benchmarks.replay_methods import (
    ACCEPTANCES,
    EPSILONS,
    Answers,
    GridMethod,
    Measured,
    Method,
    SurfaceMethod,
    grid_of,
    pair_seconds,
    positions_of,
    true_boundary,
)
from benchmarks.replay_recorded import REFERENCE, Cell, Server, all_servers
from vllm_nfp.draft.length import expected_tokens
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.observations import (
    NOISE_WITH_EXPERTS,
    NOISE_WITHOUT_GRAPH,
    USUAL_NOISE,
)
from vllm_nfp.surface.prior import generic_prior
from vllm_nfp.types import Module, Shape

STARTUP_SECONDS = 2.0
SHARE, STEP_SHARE = 0.01, 0.0025
"""The budgets' defaults."""
MOST_SEQUENCES = 256
MOMENTS = (0.0, 60.0, 600.0)
"""Seconds of traffic after which is scored; 0: after the scan at the start."""
PHASES = ((1, 25.0), (8, 45.0), (32, 45.0), (128, 20.0))
"""Streams and seconds, over and over: as in benchmarks/results/2026-11-27-h200-at-defaults, and a
peak."""
READS_PROMPTS = 0.1
"""Share of steps that read a prompt."""
WAITING = 0.0
"""Share of steps with a sign that requests wait; ``--waiting`` changes it."""
DELAYED, DELAY = 0.005, 0.3
"""Share of runs that the host delays, and the mean delay as a share of their time: of the recorded
pairs in CUDA graphs 0.7 to 1.4 % are more than 5 % off, with two ranks 4 %."""
OFFSET = 0.15
"""log of a real step over a probed one: host, sampling."""
NEAR = 0.15
CERTAIN = 0.03
"""Largest standard deviation of a recorded log t(N) / t(1) of which a draft length is judged: host
stops make some recorded steps without a CUDA graph worth little."""


@dataclass
class Score:
    """How often a method was right at one moment, on one server."""

    method: str
    server: str
    family: str
    composed: bool
    seconds: float
    pairs: int
    boundaries: int = 0
    near: int = 0
    inside: int = 0
    """Boundaries below the largest N that was asked for."""
    near_inside: int = 0
    boundary_covered: int = 0
    answered: int = 0
    drafts: int = 0
    good_drafts: int = 0
    worst_draft: float = 1.0
    errors: tuple[float, ...] = ()
    """|log| of said over true t(N) / t(1) of the whole step, in CUDA graphs."""
    points: int = 0
    covered: int = 0
    by_module: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Points and those whose interval holds the truth, by module."""
    publish_seconds: float = 0.0


class Simulation:
    """A server under load, and a method that measures it."""

    def __init__(self, server: Server, method: Method, waiting: float, seed: int) -> None:
        self._server, self._method, self._waiting = server, method, waiting
        self._random = np.random.default_rng(seed)
        self._ready: set[Shape] = set()
        self._budget = Budget(SHARE, STEP_SHARE)
        self.pairs = 0
        self._cells = {streams: _cell_for(server, streams) for streams, _ in PHASES}

    def start(self, seconds: float) -> None:
        """The scan before the first request."""
        left = seconds
        while True:
            shape = self._method.next(frozenset(self._ready), None)
            if shape is None or (left := left - self._cost(shape)) < 0.0:
                return
            self._run(shape, 0.0)

    def serve(self, begin: float, end: float) -> None:
        """Traffic between two moments."""
        now = begin
        seen: dict[Cell, float] = {}
        base = {c: self._seconds(Module.MODEL, c, 1) for c in self._cells.values()}
        while now < end:
            cell = self._cell_at(now)
            seconds = base[cell]
            self._budget.observe(
                cell[0] / MOST_SEQUENCES,
                self._random.random() < READS_PROMPTS,
                self._random.random() < self._waiting,
            )
            self._budget.earn(seconds)
            now += seconds
            if seen.setdefault(cell, 0.0) + 10.0 < now:
                seen[cell] = now
                noisy = seconds * np.exp(OFFSET + 0.01 * self._random.standard_normal())
                self._method.add_step(Shape(*cell, 1), noisy, now)
            now = self._maybe_probe(cell, now)

    def _maybe_probe(self, cell: Cell, now: float) -> float:
        if self._wanted is None:
            self._wanted = self._method.next(frozenset(self._ready), cell)
            if self._wanted is None:
                return now
            self._wanted_cost = self._cost(self._wanted)
        cost = self._wanted_cost
        if not self._budget.affords(cost):
            return now
        self._budget.started()
        self._budget.spend(cost)
        self._run(self._wanted, now)
        self._wanted = None
        return now + cost

    _wanted: Shape | None = None
    _wanted_cost = 0.0

    def _cell_at(self, now: float) -> Cell:
        left = now % sum(seconds for _, seconds in PHASES)
        streams = PHASES[-1][0]
        for count, seconds in PHASES:
            if left < seconds:
                streams = count
                break
            left -= seconds
        return self._cells[streams]

    def _cost(self, shape: Shape) -> float:
        return pair_seconds(self._server, shape, frozenset(self._ready))

    def _run(self, shape: Shape, now: float) -> None:
        server, cell = self._server, (shape.batch_size, shape.context)
        inside = bool(server.prior(*cell).in_graph[shape.positions - 1])
        self._ready |= {shape, replace(shape, positions=1)}
        many, one = {}, {}
        for module in server.modules:
            layers = server.layers(module)
            at_n = layers * self._seconds(module, cell, shape.positions)
            if not np.isfinite(at_n):
                continue
            routed = server.routed and module is Module.MODEL
            usual = NOISE_WITH_EXPERTS if routed else USUAL_NOISE[module]
            noise = usual if inside else NOISE_WITHOUT_GRAPH
            many[module] = at_n * self._noise(noise)
            one[module] = layers * self._seconds(module, cell, 1) * self._noise(0.0)
        self.pairs += 1
        self._method.add(Measured(shape, many, one, inside), now)

    def _noise(self, deviation: float) -> float:
        delay = self._random.exponential(DELAY) if self._random.random() < DELAYED else 0.0
        return float(np.exp(deviation * self._random.standard_normal() + delay))

    def _seconds(self, module: Module, cell: Cell, positions: int) -> float:
        at = self._server.positions[cell].index(positions)
        return self._server.seconds[module, *cell][at]


def _cell_for(server: Server, streams: int) -> Cell:
    """The cell with the nearest batch size; prompts of 8 streams are longer."""
    near = min({b for b, _ in server.cells}, key=lambda b: abs(np.log(b / streams)))
    contexts = sorted(c for b, c in server.cells if b == near)
    return near, contexts[min(len(contexts) - 1, streams == 8)]


def score(answers: Answers, server: Server, into: Score) -> Score:
    """Compare what a method says with the truth."""
    errors: list[float] = []
    for module in server.modules:
        for cell in server.cells:
            _score_boundaries(answers, server, module, cell, into)
            said = answers.ratio(module, cell)
            if said is None:
                continue
            truth, spread = server.ratios(module, cell), server.deviations(module, cell)
            inside = server.prior(*cell).in_graph[np.array(server.positions[cell]) - 1]
            ratio, low, high = said
            known = np.isfinite(truth) & np.isfinite(ratio) & inside
            known[0] = False
            if module is Module.MODEL:
                errors += np.abs(np.log(ratio[known] / truth[known])).tolist()
            # A recorded truth is uncertain itself: its interval counts with the method's.
            with np.errstate(divide="ignore"):
                reach = np.hypot(np.log(high / low) / 2, 1.96 * spread)
            middle = np.log(ratio)
            held = np.abs(np.log(truth) - middle) <= reach
            into.points += int(known.sum())
            into.covered += int(held[known].sum())
            points, covered = into.by_module.get(str(module), (0, 0))
            into.by_module[str(module)] = (
                points + int(known.sum()), covered + int(held[known].sum())
            )  # fmt: skip
    for cell in server.cells:
        _score_drafts(answers, server, cell, into)
    into.errors = tuple(errors)
    return into


def _score_boundaries(
    answers: Answers, server: Server, module: Module, cell: Cell, into: Score
) -> None:
    grid = grid_of(server, cell)
    for epsilon in EPSILONS:
        truth = true_boundary(server, module, cell, epsilon)
        if truth is None or len(grid) < 3:
            continue
        into.boundaries += 1
        into.inside += int(truth < grid[-1])
        said = answers.boundary(module, cell, epsilon)
        if said is None:
            continue
        into.answered += 1
        apart = abs(positions_of(grid, said[0]) - positions_of(grid, truth))
        near = apart <= 1 or abs(said[0] - truth) <= NEAR * truth
        into.near += int(near)
        into.near_inside += int(near and truth < grid[-1])
        into.boundary_covered += int(said[1] <= truth <= said[2])


def _score_drafts(answers: Answers, server: Server, cell: Cell, into: Score) -> None:
    truth = dict(zip(server.positions[cell], server.ratios(Module.MODEL, cell), strict=True))
    spread = server.deviations(Module.MODEL, cell)
    if not np.isfinite(list(truth.values())).all():
        return
    certain = {n for n, s in zip(truth, spread, strict=True) if s <= CERTAIN}
    for acceptance in ACCEPTANCES:
        goodput = {n: expected_tokens(n - 1, acceptance) / ratio for n, ratio in truth.items()}
        chosen = answers.draft(cell, acceptance) + 1
        at = max(n for n in goodput if n <= chosen)
        if at not in certain or max(goodput, key=goodput.__getitem__) not in certain:
            continue
        share = goodput[at] / max(goodput.values())
        into.drafts += 1
        into.good_drafts += int(share >= 0.98)
        into.worst_draft = min(into.worst_draft, float(share))


def replay(
    server: Server,
    name: str,
    method: Method,
    waiting: float,
    seed: int,
    startup: float,
    moments: Sequence[float] = MOMENTS,
) -> Iterator[Score]:
    """Run one server through all moments."""
    simulation = Simulation(server, method, waiting, seed)
    simulation.start(startup)
    before = 0.0
    for moment in moments:
        simulation.serve(before, moment)
        before = moment
        begun = time.perf_counter()
        answers = method.answers(moment)
        empty = Score(name, server.name, server.family, server.composed, moment, simulation.pairs)
        found = score(answers, server, empty)
        found.publish_seconds = time.perf_counter() - begun
        yield found


Maker = Callable[[Server, Hyperparameters, int], Method]
METHODS: dict[str, Maker] = {
    "surface": lambda server, hyper, seed: SurfaceMethod(server, hyper, seed=seed),
    "random pairs": lambda server, hyper, seed: SurfaceMethod(
        server, hyper, chooses=False, seed=seed
    ),
    "prior": lambda server, hyper, seed: SurfaceMethod(server, hyper, learns=False),
    "grid": lambda server, hyper, seed: GridMethod(server, seed),
    "generic": lambda server, hyper, seed: SurfaceMethod(
        server, hyper.wider(6.0), seed=seed,
        prior=generic_prior(
            server.serving.capture_sizes, server.max_positions,
            tuple(m for m in server.modules if m is not Module.MODEL),
        ),
    ),
}  # fmt: skip


def print_scores(console: Console, scores: Sequence[Score]) -> None:
    """A row for each method, group of servers and moment."""
    table = Table(title="answers against recorded truth, families left out in turn")
    for column in (
        "method", "servers", "after", "pairs", "boundaries near", "below the limit",
        "interval holds", "error t(N)/t(1) median, p90", "interval holds t(N)/t(1)",
        "drafts within 2 %", "worst",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    groups: dict[str, Callable[[Score], bool]] = {
        "all": lambda _: True,
        "recorded steps": lambda s: not s.composed,
        "composed, prior fitted on them": lambda s: s.composed and s.family in REFERENCE,
        "composed, others": lambda s: s.composed and s.family not in REFERENCE,
    }
    for method in dict.fromkeys(s.method for s in scores):
        for group, belongs in groups.items():
            for moment in MOMENTS:
                some = [
                    s for s in scores
                    if s.method == method and s.seconds == moment and belongs(s)
                ]  # fmt: skip
                if some:
                    table.add_row(method, group, *_row(some, moment))
    console.print(table)


def print_modules(console: Console, scores: Sequence[Score]) -> None:
    """How often the intervals of t(N) / t(1) hold, by module."""
    for method in dict.fromkeys(s.method for s in scores):
        for moment in MOMENTS:
            some = [s for s in scores if s.method == method and s.seconds == moment]
            shares = []
            for module in Module:
                counts = [s.by_module.get(str(module), (0, 0)) for s in some]
                points = sum(points for points, _ in counts)
                if points:
                    shares.append(f"{module} {sum(c for _, c in counts) / points:.1%}")
            console.print(f"{method}, {moment:.0f} s, intervals hold: {', '.join(shares)}")


def _row(some: Sequence[Score], moment: float) -> list[str]:
    def total(name: str) -> int:
        return sum(getattr(s, name) for s in some)

    errors = np.array([e for s in some for e in s.errors])
    middle, high = np.quantile(errors, (0.5, 0.9)) if len(errors) else (np.nan, np.nan)
    return [
        f"{moment:.0f} s",
        f"{total('pairs') / len(some):.0f}",
        f"{total('near') / max(1, total('boundaries')):.1%}",
        f"{total('near_inside') / max(1, total('inside')):.1%}",
        f"{total('boundary_covered') / max(1, total('answered')):.1%}",
        f"{middle:.2%}, {high:.2%}",
        f"{total('covered') / max(1, total('points')):.1%}",
        f"{total('good_drafts') / max(1, total('drafts')):.1%}",
        f"{min(s.worst_draft for s in some):.3f}",
    ]


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--only", default="", help="Families or servers, separated by commas.")
@click.option("--method", "methods", default="surface,prior,grid", help="Of " + ", ".join(METHODS))
@click.option("--waiting", default=WAITING, help="Share of steps with a sign that requests wait.")
@click.option("--startup", default=STARTUP_SECONDS, help="Seconds of the scan at the start.")
@click.option("--seeds", default=1, help="Repetitions with other noise.")
def main(
    results: Path,
    out: Path | None,
    only: str,
    methods: str,
    waiting: float,
    startup: float,
    seeds: int,
) -> None:
    """Replay; see the module's text."""
    kept = results / "2026-11-27-surface-replay"
    sets: dict[str, Any] = json.loads((kept / "hyperparameters.json").read_text())
    wanted = set(only.split(",")) if only else None
    scores: list[Score] = []
    for server in all_servers(results):
        if wanted is not None and not wanted & {server.name, server.family}:
            continue
        hyper = hyperparameters_from(sets[server.family])
        for name in methods.split(","):
            for seed in range(seeds):
                method = METHODS[name](server, hyper, seed)
                scores += replay(server, name, method, waiting, seed, startup)
    console = Console(width=200)
    print_scores(console, scores)
    print_modules(console, scores)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(s), "errors": [round(e, 5) for e in s.errors]} for s in scores]
        (out / "replay.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
