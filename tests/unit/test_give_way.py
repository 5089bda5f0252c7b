"""What the background of an engine core's process does, it does in pieces that give way.

The number of pauses is looked at, not the time: each piece stands for well under a millisecond on
any machine.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from sessions import made_results, wait_for

from vllm_nfp import give_way as module
from vllm_nfp.config import ProbeConfig
from vllm_nfp.give_way import in_pieces
from vllm_nfp.metrics.families import families_of
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import plain_table
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.agenda_maker import AgendaMaker
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.timing.steps import BATCH_BOUNDS, CONTEXT_BOUNDS, StepTimes
from vllm_nfp.types import (
    CurvePoint,
    LayerTime,
    Module,
    PairResult,
    Shape,
    State,
    StepLatency,
    Timing,
)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (1024, 2048, 4096, 8192)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, int]]:
    """Runs a function in a background thread: what it returns, and how often it paused."""

    def run(work: Callable[[], Any]) -> tuple[Any, int]:
        slept: list[float] = []
        results: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(module.time, "sleep", slept.append)
            patch.setattr(module, "LEAST_SECONDS", 0.0)
            thread = threading.Thread(target=lambda: results.append(work()))
            thread.start()
            thread.join()
        (result,) = results
        return result, len(slept)

    return run


Pauses = Callable[[Callable[[], Any]], tuple[Any, int]]


def timing(shape: Shape, layers: int) -> Timing:
    parts = tuple(LayerTime(n, Module.ATTENTION, 1e-4) for n in reversed(range(layers)))
    return Timing(shape, 1e-3, 1e-4, {Module.ATTENTION: 1e-4}, parts, "full")


def pair(batch_size: int, context: int, positions: int, layers: int = 2) -> PairResult:
    many, one = Shape(batch_size, context, positions), Shape(batch_size, context, 1)
    return PairResult(timing(many, layers), timing(one, layers), True, 1e-3)


def test_pieces_are_the_same_items(pauses: Pauses) -> None:
    assert pauses(lambda: list(in_pieces(range(10), 3))) == (list(range(10)), 3)
    assert pauses(lambda: list(in_pieces([], 3))) == ([], 0)


class Working:
    """A background thread that works in pieces, and counts them."""

    def __init__(self, patience: float) -> None:
        self.pieces = 0
        self._end = False
        self._thread = threading.Thread(target=self._run, args=(patience,))

    def __enter__(self) -> Working:
        self._thread.start()
        wait_for(lambda: self.pieces > 3)
        return self

    def __exit__(self, *_: object) -> None:
        self._end = True
        module.serving.end()
        self._thread.join(10.0)
        assert not self._thread.is_alive()

    def _run(self, patience: float) -> None:
        module.be_patient(patience)
        while not self._end:
            time.sleep(2 * module.LEAST_SECONDS)
            module.give_way()
            self.pieces += 1


def test_the_background_waits_until_a_host_bound_step_is_launched() -> None:
    with Working(patience=60.0) as working:
        module.serving.begin(True)
        wait_for(lambda: settled(working))
        before = working.pieces
        time.sleep(0.1)
        assert working.pieces == before
        module.serving.end()
        wait_for(lambda: working.pieces > before + 3)


def test_a_step_that_is_not_host_bound_ends_the_wait_for_the_one_before() -> None:
    with Working(patience=60.0) as working:
        module.serving.begin(True)
        wait_for(lambda: settled(working))
        before = working.pieces
        module.serving.begin(False)  # a rank that is not told that the one before was launched
        wait_for(lambda: working.pieces > before + 3)


def settled(working: Working) -> bool:
    before = working.pieces
    time.sleep(0.02)
    return working.pieces == before


def test_patience_ends_and_the_work_goes_on() -> None:
    with Working(patience=0.05) as working:
        module.serving.begin(True)
        before = working.pieces
        wait_for(lambda: working.pieces > before + 10)


def test_times_of_layers_come_in_order_and_in_pieces(pauses: Pauses) -> None:
    results = made_results(ProbeConfig().for_server(8, 4096))
    cells = [(b, c) for b in BATCH_SIZES for c in CONTEXTS]
    random.Random(1).shuffle(cells)
    for cell in cells:
        for positions in (8, 2, 32):
            results.add(pair(*cell, positions, layers=20), 0.0)
    rows, paused = pauses(results.layer_times)
    assert len(rows) == 32 * 4 * 20
    assert paused >= len(rows) // 64
    keys = [(r.batch_size, r.context, r.positions, r.layer, r.module) for r in rows]
    assert keys == sorted(keys)


def test_kinds_of_steps_come_in_order_and_in_pieces(pauses: Pauses) -> None:
    times = StepTimes()
    for batch_size in BATCH_BOUNDS[::-1]:
        for context in CONTEXT_BOUNDS[:2]:
            for positions in range(10, 0, -1):
                series = times.of(batch_size, context, positions)
                assert series is not None
                series.count += 1
                series.add(1e-3)
    rows, paused = pauses(times.latencies)
    assert len(rows) == 440
    assert paused >= 2 * (len(rows) // 64)
    keys = [(row.batch_size, row.context, row.positions) for row in rows]
    assert keys == sorted(keys)


def test_rows_are_made_in_pieces(pauses: Pauses) -> None:
    config = ProbeConfig(batch_sizes=BATCH_SIZES, contexts=CONTEXTS)
    table = plain_table(BATCH_SIZES, CONTEXTS, config.grid, 1 << 15, 1 << 13, lambda *_: "none")
    results = made_results(config, table)
    results.add(pair(8, 1024, 4), 0.0)
    _, paused = pauses(lambda: results.update(0.0))
    answers = len(results.findings.boundaries) / len(config.epsilons)
    assert answers >= 2 * len(BATCH_SIZES) * len(CONTEXTS)
    assert paused >= answers, "each is some 0.2 ms of work"
    counters = Counters()
    _, paused = pauses(lambda: AgendaMaker(config, results).make(counters, {}))
    assert paused >= 10


def snapshot(seconds: float = 1e-3) -> Snapshot:
    curves = tuple(
        CurvePoint(m, b, c, n, 6, seconds, 1.0, 0.9, None, "full")
        for m in ("model", "attention", "dense_ffn")
        for b in BATCH_SIZES
        for c in CONTEXTS
        for n in ProbeConfig().grid
    )
    steps = tuple(StepLatency(b, 1024, n, 5, 1e-3) for b in BATCH_SIZES for n in range(1, 17))
    return Snapshot("m", "0", State.STEADY, curves=curves, steps=steps)


def test_metrics_are_made_in_pieces(pauses: Pauses) -> None:
    made, paused = pauses(
        lambda: [sample for f in families_of([snapshot()]) for sample in f.samples]
    )
    samples = 3 * sum(point.positions > 1 for point in snapshot().curves)
    assert len(made) >= samples
    assert paused >= samples // 3 // 24


class Writer:
    """Says when a snapshot is written."""

    keeps = False

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self.write = write

    def record(self, result: PairResult) -> None:
        pass


def test_curves_are_sent_when_they_have_changed_and_before_a_write_may_hang() -> None:
    happened: list[str] = []
    answers = [False, True, True]

    def send(rows: Any) -> bool:
        found = list(rows)
        assert {(row.module, row.batch_size) for row in found} == {("model", 4)}
        happened.append(f"{len(found)} curve rows")
        return answers.pop(0)

    output: Any = Writer(lambda _: happened.append("written"))
    sender: Any = SimpleNamespace(send=send)
    identity = Snapshot("m", "0", State.WARMING)
    config = ProbeConfig(batch_sizes=(4,), contexts=(1024,), positions=(1, 2, 8))
    one = Publisher(config, identity, StepTimes(), made_results(config), output, sender)
    one.put(pair(4, 1024, 2))
    for _ in range(3):
        one._publish()
    # Once more as the first was not done; then nothing has changed.
    assert happened == ["3 curve rows", "written", "3 curve rows", "written", "written"]
    one.put(pair(4, 1024, 8))
    one._publish()
    assert happened[5:] == ["3 curve rows", "written"]
