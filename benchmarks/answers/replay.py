"""Claim: a minute of traffic at the defaults gives a true answer, with honest intervals.

    python -m benchmarks.answers.replay benchmarks/results --out DIR
    python -m benchmarks.answers.replay benchmarks/results --only qwen3-14b --method surface,prior

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from benchmarks.answers.replay_fit import hyperparameters_for
from benchmarks.answers.replay_methods import Method, SurfaceMethod, pair_seconds
from benchmarks.answers.replay_recorded import Cell, Server, all_servers
from benchmarks.answers.replay_score import MOMENTS, Score, print_modules, print_scores, score
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.noise import (
    NOISE_WITH_EXPERTS,
    NOISE_WITHOUT_GRAPH,
    USUAL_NOISE,
)
from vllm_nfp.surface.prior import generic_prior
from vllm_nfp.types import EngineStep, Module, PairResult, Shape, Timing

STARTUP_SECONDS = 2.0
SHARE, STEP_SHARE = 0.01, 0.0025
"""The budgets' defaults."""
MOST_SEQUENCES = 256
PHASES = ((1, 25.0), (8, 45.0), (32, 45.0), (128, 20.0))
"""Streams and seconds, over and over: as in benchmarks/results/2026-11-27-h200-at-defaults, and a
peak."""
READS_PROMPTS = 0.1
"""Share of steps that read a prompt."""
WAITING = 0.0
"""Share of steps that are full of tokens; ``--waiting`` changes it."""
DELAYED, DELAY = 0.005, 0.3
"""Share of runs that the host delays, and the mean delay as a share of their time: of the recorded
pairs in CUDA graphs 0.7 to 1.4 % are more than 5 % off, with two ranks 4 %."""
OFFSET = 0.15
"""log of a real step over a probed one: host, sampling."""


class Simulation:
    """A server under load, and a method that measures it."""

    def __init__(self, server: Server, method: Method, waiting: float, seed: int) -> None:
        self._server, self._method, self._waiting = server, method, waiting
        self._random = np.random.default_rng(seed)
        self._ready: set[Shape] = set()
        self._budget = Budget(SHARE, STEP_SHARE)
        self.pairs = 0
        self._cells = {streams: _cell_for(server, streams) for streams, _ in PHASES}

    def become(self, server: Server) -> None:
        """The machine changes."""
        self._server = server

    def start(self, seconds: float) -> None:
        """The scan before the first request."""
        left = seconds
        while True:
            shape = self._method.next(frozenset(self._ready), None)
            if shape is None or (left := left - self._cost(shape)) < 0.0:
                return
            self.run_pair(shape, 0.0)

    def serve(self, begin: float, end: float) -> None:
        """Traffic between two moments."""
        now = begin
        seen: dict[Cell, float] = {}
        base = {c: self._seconds(Module.MODEL, c, 1) for c in self._cells.values()}
        while now < end:
            cell = self._cell_at(now)
            seconds = base[cell]
            self._budget.observe(
                EngineStep(
                    *cell,
                    positions=1,
                    decode=self._random.random() >= READS_PROMPTS,
                    fullness=cell[0] / MOST_SEQUENCES,
                    full=self._random.random() < self._waiting,
                )
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
        self.run_pair(self._wanted, now)
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

    def run_pair(self, shape: Shape, now: float) -> None:
        """Run a pair and hand it to the method."""
        server, cell = self._server, (shape.batch_size, shape.context)
        inside = bool(server.prior(*cell).in_graph[shape.positions - 1])
        self._ready |= {shape, replace(shape, positions=1)}
        many, one = {}, {}
        for module in server.modules:
            at_n = self._seconds(module, cell, shape.positions)
            if not np.isfinite(at_n):
                continue
            routed = server.routed and module is Module.MODEL
            usual = NOISE_WITH_EXPERTS if routed else USUAL_NOISE[module]
            noise = usual if inside else NOISE_WITHOUT_GRAPH
            many[module] = at_n * self._noise(noise)
            one[module] = self._seconds(module, cell, 1) * self._noise(0.0)
        self.pairs += 1
        run = "full" if inside else "none"
        base = replace(shape, positions=1)
        result = PairResult(_timing(shape, many, run), _timing(base, one, "full"), True, 0.0)
        self._method.add(result, now)

    def _noise(self, deviation: float) -> float:
        delay = self._random.exponential(DELAY) if self._random.random() < DELAYED else 0.0
        return float(np.exp(deviation * self._random.standard_normal() + delay))

    def _seconds(self, module: Module, cell: Cell, positions: int) -> float:
        at = self._server.positions[cell].index(positions)
        return self._server.seconds[module, *cell][at]


def _timing(shape: Shape, seconds: dict[Module, float], run: str) -> Timing:
    return Timing(shape, seconds.pop(Module.MODEL), 0.0, seconds, (), run)


def _cell_for(server: Server, streams: int) -> Cell:
    """The cell with the nearest batch size; prompts of 8 streams are longer."""
    near = min({b for b, _ in server.cells}, key=lambda b: abs(np.log(b / streams)))
    contexts = sorted(c for b, c in server.cells if b == near)
    return near, contexts[min(len(contexts) - 1, streams == 8)]


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
    "without steps": lambda server, hyper, seed: SurfaceMethod(
        server, hyper, steps=False, seed=seed
    ),
    "generic": lambda server, hyper, seed: SurfaceMethod(
        server, hyper.wider(6.0), seed=seed,
        prior=generic_prior(
            server.serving.graphs, server.max_positions,
            tuple(m for m in server.modules if m is not Module.MODEL),
        ),
    ),
}  # fmt: skip


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--only", default="", help="Families or servers, separated by commas.")
@click.option("--method", "methods", default="surface,prior", help="Of " + ", ".join(METHODS))
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
    kept = results / "2026-11-27-cost-surface"
    sets: dict[str, Any] = json.loads((kept / "hyperparameters.json").read_text())
    wanted = set(only.split(",")) if only else None
    scores: list[Score] = []
    for server in all_servers(results):
        if wanted is not None and not wanted & {server.name, server.family}:
            continue
        hyper = hyperparameters_for(server, sets)
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
