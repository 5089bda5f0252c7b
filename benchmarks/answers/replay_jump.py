"""What a change of the machine does to the answers, and how soon they follow it.

    python -m benchmarks.answers.replay_jump benchmarks/results --only qwen3-14b,qwen2.5-7b

Serves five minutes as in ``replay.py``, then changes the machine: ``clock`` makes FFNs of more than
96 tokens slower by 1.3, ``neighbour`` all that reads weights (FFNs of up to 96 tokens) or the cache
(attention) by 1.4. It scores the answers against the changed times, with the watch for changes and
without it. ``nothing`` changes nothing: any jump is a false alarm.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.answers.replay import METHODS, STARTUP_SECONDS, Simulation
from benchmarks.answers.replay_fit import hyperparameters_for
from benchmarks.answers.replay_methods import SurfaceMethod
from benchmarks.answers.replay_recorded import Server, all_servers
from benchmarks.answers.replay_score import Score, score
from vllm_nfp.surface import drift
from vllm_nfp.types import Module

BEFORE = 300.0
AFTER = (0.0, 60.0, 120.0, 300.0)
"""Seconds after the change at which answers are scored."""
KNEE = 96
CHANGES = ("clock", "neighbour", "nothing")


def changed(server: Server, change: str) -> Server:
    """The server after the change."""
    seconds = dict(server.seconds)
    for cell in server.cells:
        few = cell[0] * np.array(server.positions[cell]) <= KNEE
        for module in server.modules:
            if module is Module.MODEL:
                continue
            before = np.array(seconds[module, *cell])
            after = before * _factor(module, few, change)
            seconds[module, *cell] = tuple(after.tolist())
            more = np.nan_to_num(server.layers(module) * (after - before))
            step = np.array(seconds[Module.MODEL, *cell]) + more
            seconds[Module.MODEL, *cell] = tuple(step.tolist())
    return replace(server, seconds=seconds)


def _factor(module: Module, few: np.ndarray, change: str) -> np.ndarray:
    ffn = module in (Module.DENSE_FFN, Module.MOE_FFN)
    if change == "clock" and ffn:
        return np.where(few, 1.0, 1.3)
    if change == "neighbour" and module is not Module.COMMUNICATION:
        return np.where(few | (module is Module.ATTENTION), 1.4, 1.0)
    return np.ones(len(few))


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    with mock.patch.object(drift, "CONTRADICTS", math.inf):
        yield


def scenario(
    server: Server, method: SurfaceMethod, change: str
) -> Iterator[tuple[Score, int, int]]:
    """Scores after the change, pairs since it, and jumps."""
    simulation = Simulation(server, method, 0.0, 0)
    simulation.start(STARTUP_SECONDS)
    simulation.serve(0.0, BEFORE)
    other = changed(server, change)
    simulation.become(other)
    first, now = simulation.pairs, BEFORE
    for seconds in AFTER:
        simulation.serve(now, BEFORE + seconds)
        now = BEFORE + seconds
        empty = Score(change, server.name, server.family, server.composed, seconds, first)
        found = score(method.answers(now), other, empty)
        yield found, simulation.pairs - first, method.surface.jumps


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sets", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--only", default="qwen3-14b,qwen2.5-7b", help="Families or servers, by commas.")
def main(results: Path, sets: Path, only: str) -> None:
    """Print a row for each change, with the watch and without, and moment."""
    known = json.loads(sets.read_text())
    wanted = set(only.split(","))
    servers = [s for s in all_servers(results) if wanted & {s.name, s.family}]
    table = Table(title=f"{len(servers)} servers: {only}")
    for column in (
        "change", "watched", "after", "pairs since", "jumps", "boundaries near",
        "error t(N)/t(1) median, p90", "interval holds", "drafts within 2 %",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for change in CHANGES:
        for watched in (True, False):
            rows: dict[float, list[tuple[Score, int, int]]] = {}
            with contextlib.nullcontext() if watched else _unwatched():
                for server in servers:
                    method = METHODS["surface"](server, hyperparameters_for(server, known), 0)
                    assert isinstance(method, SurfaceMethod)
                    for found in scenario(server, method, change):
                        rows.setdefault(found[0].seconds, []).append(found)
            for seconds, some in rows.items():
                table.add_row(change, "yes" if watched else "no", f"{seconds:.0f} s", *_cells(some))
    Console(width=150).print(table)


def _cells(some: list[tuple[Score, int, int]]) -> list[str]:
    scores = [one for one, _, _ in some]

    def share(part: str, whole: str) -> str:
        return (
            f"{sum(getattr(s, part) for s in scores) / sum(getattr(s, whole) for s in scores):.1%}"
        )

    errors = np.array([e for s in scores for e in s.errors])
    return [
        f"{np.mean([pairs for _, pairs, _ in some]):.0f}",
        " ".join(str(jumps) for _, _, jumps in some),
        share("near", "boundaries"),
        f"{np.median(errors):.2%}, {np.quantile(errors, 0.9):.2%}",
        share("covered", "points"),
        share("good_drafts", "drafts"),
    ]


if __name__ == "__main__":
    main()
