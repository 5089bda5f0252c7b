"""What the surface costs a background thread: CPU time of a publish, and whom it holds up.

    OMP_NUM_THREADS=1 python -m benchmarks.answers.replay_cost

A publish adds a pair, takes the posterior, answers for every module in 36 cells (batch sizes 1 to
256 by powers of two, contexts 256, 1024, 4096, 16384) at 15 positions, and takes boundaries at
three tolerances and t(1) in seconds. The chooser then names the next four pairs.

Pieces: CPU time between two pauses of ``give_way``, over all repetitions. The longest pieces hold
numpy calls, which may release the interpreter. Held up: a second thread, in the
place of the serving one, sleeps for 0.1 ms again and again and notes by how much each sleep was too
long while the first one works. What it notes without the first one is the machine's own.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import numpy as np

from benchmarks.answers.replay_methods import EPSILONS
from benchmarks.serving.shapes import SHAPES
from vllm_nfp import give_way
from vllm_nfp.give_way import in_pieces
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.session.agenda_maker import decisions_at
from vllm_nfp.surface import (
    RECORDED,
    Candidate,
    Concern,
    CostSurface,
    Prior,
    boundary,
    predicted_prior,
)
from vllm_nfp.types import Module, PairResult, Shape, Timing

BATCH_SIZES = tuple(2**i for i in range(9))
CONTEXTS = (256, 1024, 4096, 16384)
CELLS = tuple((b, c) for b in BATCH_SIZES for c in CONTEXTS)
POSITIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 16, 24, 32, 48, 64)
DECISIONS = decisions_at(POSITIONS, EPSILONS)
REPETITIONS = 15
SLEEP = 1e-4


def pairs_of(prior: Prior, shapes: int, seed: int = 0) -> Iterator[PairResult]:
    """Pairs of so many shapes, over and over, that take what the prior says, with some noise."""
    draw = np.random.default_rng(seed)
    every = [Shape(*cell, n) for cell in CELLS for n in POSITIONS[1:] if cell[0] * n <= 1024]
    chosen = [every[i] for i in draw.permutation(len(every))[:shapes]]
    while True:
        for shape in chosen:
            cell = prior(shape.batch_size, shape.context)
            runs = []
            for n in (shape.positions, 1):
                seconds = {
                    m: float(np.exp(cell.log_seconds(m)[n - 1] + 0.002 * draw.standard_normal()))
                    for m in cell.modules
                }
                at = Shape(shape.batch_size, shape.context, n)
                step = seconds.pop(Module.MODEL)
                runs.append(Timing(at, step, 0.0, seconds, (), "full"))
            yield PairResult(runs[0], runs[1], True, 0.01)


def publish(surface: CostSurface, now: float) -> None:
    """All that a publish asks."""
    surface.update(now)
    found = surface.answers(CELLS, POSITIONS)
    for answer in in_pieces(list({id(a): a for a in found.values()}.values()), 4):
        for epsilon in EPSILONS:
            boundary(answer, epsilon)
    for key in in_pieces(list(found), 64):
        surface.seconds_at_one(*key)


def choose(surface: CostSurface) -> None:
    """The next eight pairs, for traffic in two cells and the reported ones."""
    concerns = [Concern(*cell, 0.3 if i < 2 else 0.05) for i, cell in enumerate(CELLS[4::4])]
    shapes = [Shape(c.batch_size, c.context, n) for c in concerns for n in POSITIONS[1:]]
    surface.choose([Candidate(s, 0.05) for s in shapes], concerns, DECISIONS, 8)


class Bystander:
    """Another thread, which notes by how many seconds each of its short sleeps was too long."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            before = time.perf_counter()
            time.sleep(SLEEP)
            self.late.append(time.perf_counter() - before - SLEEP)


def _marks_of(work: Callable[[], None]) -> list[float]:
    """This thread's CPU seconds at begin and end, and at each pause in between."""
    sleep = time.sleep
    marks = [time.thread_time()]

    def pause(seconds: float) -> None:
        if seconds == give_way.PAUSE_SECONDS:
            marks.append(time.thread_time())
        sleep(seconds)

    with mock.patch("vllm_nfp.give_way.time.sleep", pause):
        work()
    return [*marks, time.thread_time()]


def measured(prior: Prior, shapes: int, work: Callable[[CostSurface, float], None]) -> str:
    """CPU time of the work at the median and at best, and what a bystander felt."""
    surface = CostSurface(prior, RECORDED)
    pairs = pairs_of(prior, shapes)
    for _ in range(shapes):
        surface.add_pair(next(pairs), 0.0)
    surface.update(0.0)
    times: list[float] = []
    pieces: list[float] = []

    def run() -> None:
        for turn in range(REPETITIONS + 2):
            surface.add_pair(next(pairs), float(turn))
            marks = _marks_of(partial(work, surface, float(turn)))
            if turn >= 2:  # questions are kept from the first on
                times.append(marks[-1] - marks[0])
                pieces.extend(np.diff(marks).tolist())

    with Bystander() as bystander:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    late = np.array(bystander.late) * 1e3
    return (
        f"CPU {np.median(times) * 1e3:.1f} ms ({min(times) * 1e3:.1f} at best), "
        f"{len(pieces)} pieces, {np.mean(np.array(pieces) > 1e-3):.2%} over 1 ms, "
        f"{np.quantile(pieces, 0.999) * 1e3:.1f} ms (99.9 %), {max(pieces) * 1e3:.1f} ms at most, "
        f"held up by {np.quantile(late, 0.99):.2f} ms (99 %), {late.max():.2f} ms at most"
    )


def main() -> None:
    """Print a row for each number of shapes; see the module's text."""
    sys.setswitchinterval(0.005)
    prior = predicted_prior(
        shape_from_config(SHAPES["qwen3-14b"]), target_of("H100-SXM"), Serving(), POSITIONS[-1]
    )
    with Bystander() as alone:
        time.sleep(1.0)
    late = np.array(alone.late) * 1e3
    print(f"nothing else: {np.quantile(late, 0.99):.2f} ms (99 %), {late.max():.2f} ms at most")
    for shapes in (10, 20, 40, 80):
        print(f"{shapes} shapes, publish: {measured(prior, shapes, publish)}")
        print(f"{shapes} shapes, choose: {measured(prior, shapes, lambda s, _: choose(s))}")


if __name__ == "__main__":
    main()
