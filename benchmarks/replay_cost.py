"""What the surface costs a background thread: CPU time of a publish, and its longest piece.

    OMP_NUM_THREADS=1 python -m benchmarks.replay_cost benchmarks/results

A publish compresses the observations, conditions the posterior, answers for three modules in 24
cells of 11 positions, and takes boundaries at three tolerances. A piece is what runs between two
pauses of ``give_way``. The longest pieces are single numpy calls, which release the interpreter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
import numpy as np

from benchmarks.replay import METHODS, Simulation
from benchmarks.replay_methods import EPSILONS, SurfaceMethod, grid_of
from benchmarks.replay_recorded import POSITIONS, Server, all_servers
from vllm_nfp import give_way
from vllm_nfp.config import DEFAULT_POSITIONS
from vllm_nfp.surface import RECORDED, answers, boundary, condition, questions
from vllm_nfp.types import Shape

REPETITIONS = 9
ANSWERS_AT_A_TIME = 4


def measured(server: Server, pairs: int) -> SurfaceMethod:
    """A surface after some pairs at random shapes."""
    method = METHODS["surface"](server, RECORDED, 0)
    assert isinstance(method, SurfaceMethod)
    simulation = Simulation(server, method, 0.0, 0)
    draw = np.random.default_rng(0)
    for _ in range(pairs):
        cell = server.cells[draw.integers(len(server.cells))]
        counts = grid_of(server, cell)
        simulation.run_pair(Shape(*cell, counts[draw.integers(1, len(counts))]), 0.0)
    return method


def _marks_of(work: Callable[[], object]) -> list[float]:
    """This thread's CPU seconds at begin and end, and at each pause in between."""
    marks = [time.thread_time()]
    with mock.patch("vllm_nfp.give_way.time.sleep", lambda _: marks.append(time.thread_time())):
        work()
    return [*marks, time.thread_time()]


def publish_times(server: Server, pairs: int) -> tuple[int, float, float]:
    """Rows of the posterior; CPU milliseconds of a publish and of its longest piece, at best."""
    method = measured(server, pairs)
    positions = [n for n in DEFAULT_POSITIONS if n <= POSITIONS[-1]]
    wanted = [(m, *c) for m in server.modules for c in server.cells]
    asked = questions(server.prior, RECORDED, wanted, positions)
    totals: list[float] = []
    pieces: list[list[float]] = []

    def publish() -> int:
        posterior = condition(server.prior, RECORDED, method.pool.compressed(0.0))
        found = answers(posterior, asked)
        for cell in give_way.in_pieces(found.values(), ANSWERS_AT_A_TIME):
            for epsilon in EPSILONS:
                boundary(cell, epsilon)
        return len(posterior.rows)

    def work() -> None:
        for _ in range(REPETITIONS):
            marks = _marks_of(publish)
            totals.append(marks[-1] - marks[0])
            pieces.append(np.diff(marks).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    shared = min(len(one) for one in pieces)
    longest = np.array([one[:shared] for one in pieces]).min(axis=0).max()
    return publish(), 1e3 * min(totals), 1e3 * float(longest)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(results: Path) -> None:
    """Print a row for each number of pairs; see the module's text."""
    [server] = [s for s in all_servers(results) if s.name == "qwen3-14b"]
    for pairs in (10, 20, 40, 60, 80, 120):
        rows, total, longest = publish_times(server, pairs)
        print(f"{pairs} pairs, {rows} rows: {total:.1f} ms, longest piece {longest:.1f} ms")


if __name__ == "__main__":
    main()
