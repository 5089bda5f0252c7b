"""Real steps, timed by marks that are read later."""

from __future__ import annotations

import queue
import threading
import time
import tracemalloc
from typing import Any

import pytest

from vllm_nfp.adapter.idle import asking
from vllm_nfp.timing import HostClock, Mark, Sampler, StepTimer, StepTimes
from vllm_nfp.timing.sampling import LOOKED_AT_FIRST, LOOKED_ONE_IN
from vllm_nfp.timing.series import SAMPLES_KEPT
from vllm_nfp.timing.steps import MOST_KINDS, RING_SLOTS
from vllm_nfp.types import EngineStep


class Now:
    """A clock that the test moves on."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run(timer: StepTimer, now: Now, seconds: float, *kind: Any, stands_for: int = 1) -> None:
    timer.settle()
    timer.describe(EngineStep(*kind), stands_for)
    timer.begin()
    now.seconds += seconds
    timer.end()


def test_decode_steps_are_filed_by_kind_and_prompts_only_counted() -> None:
    now, seen = Now(), list[float]()
    timer = StepTimer(HostClock(now), seen.append)
    for seconds in (0.010, 0.012, 0.011):
        run(timer, now, seconds, 5, 900, 1, True)
    run(timer, now, 0.5, 5, 900, 200, False)
    run(timer, now, 0.02, 5, 900, 4, True)
    timer.settle()
    assert seen == pytest.approx([0.010, 0.012, 0.011, 0.5, 0.02])
    rows = timer.times.latencies()
    assert [(r.batch_size, r.context, r.positions, r.samples) for r in rows] == [
        (6, 1024, 1, 3),
        (6, 1024, 4, 1),
    ]
    assert rows[0].median_seconds == pytest.approx(0.011)


def test_a_step_whose_drafts_are_cut_while_it_runs_is_filed_by_what_it_ran() -> None:
    now = Now()
    timer = StepTimer(HostClock(now))
    planned = EngineStep(16, 900, 8, True, tokens=128)
    for tokens in (40, 50):
        timer.settle()
        timer.describe(planned)
        timer.begin()
        timer.describe(planned.trimmed(tokens))
        now.seconds += 0.01
        timer.end()
    timer.settle()
    (kind,) = timer.times.kinds()
    assert (kind.shape.positions, kind.timed) == (3, 2), "40 and 50 of 16 are both nearest to 3"
    assert kind.mean_positions == pytest.approx(45 / 16)


def test_a_step_that_the_device_reached_while_it_was_launched_may_hold_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Device(HostClock):
        ahead = False

        def reached(self, mark: Mark) -> bool:
            return self.ahead

    now = Now()
    clock = Device(now)
    monkeypatch.setattr(time, "perf_counter", now)
    timer = StepTimer(clock)
    for ahead in (True, True, False):
        clock.ahead = ahead
        run(timer, now, 0.010, 5, 900, 1, True)
        run(timer, now, 0.020, 5, 900, 2, True)
        timer.settle()
        waits = {of.kind.positions: of.wait_seconds for of in timer.times.kinds()}
        assert waits == {1: pytest.approx(0.010), 2: pytest.approx(0.020)}
    for _ in range(3):
        run(timer, now, 0.010, 5, 900, 1, True)
    timer.settle()
    assert {of.wait_seconds for of in timer.times.kinds() if of.kind.positions == 1} == {0.0}


def test_a_step_that_ran_nothing_is_begun_again() -> None:
    now, seen = Now(), list[float]()
    timer = StepTimer(HostClock(now), seen.append)
    timer.describe(EngineStep(1, 10, 1, True))
    timer.begin()
    now.seconds += 100.0
    run(timer, now, 0.01, 1, 10, 1, True)
    timer.end()  # a second end tells nothing
    timer.settle()
    assert seen == pytest.approx([0.01])


def test_a_median_follows_the_recent_steps_in_bounded_memory() -> None:
    times = StepTimes()
    series = times.of(1, 10, 1)
    assert series is not None
    for _ in range(1000):
        series.add(9.0)
    for _ in range(SAMPLES_KEPT):
        series.add(1.0)
    (row,) = times.latencies()
    assert row.median_seconds == 1.0
    assert len(series.seconds) == SAMPLES_KEPT


def test_kinds_are_bounded_and_what_no_bucket_holds_is_left_out() -> None:
    times = StepTimes()
    for batch_size in range(1, 5000):
        for positions in range(66):
            series = times.of(batch_size, 100, positions)
            if series is not None:
                series.add(0.01)
    found = times.latencies()
    assert len(found) == MOST_KINDS
    assert max(kind.batch_size for kind in found) <= 4096
    assert {kind.positions for kind in found} <= set(range(1, 65))


def test_the_hot_path_keeps_no_new_object() -> None:
    timer = StepTimer(HostClock())

    def steps(count: int) -> None:
        for _ in range(count):
            timer.periods.step(4, 4, ())
            timer.settle()
            timer.describe(EngineStep(4, 100, 1, True))
            timer.begin()
            timer.end()

    steps(1000)
    tracemalloc.start()
    try:
        steps(300)
        before = tracemalloc.get_traced_memory()[0]
        steps(5000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2_000


def test_all_of_the_first_steps_are_looked_at_and_few_later_ones() -> None:
    sampler = Sampler()
    assert all(sampler.look() for _ in range(LOOKED_AT_FIRST))
    later = [sampler.stands_for for _ in range(80_000) if sampler.look()]
    assert len(later) == pytest.approx(80_000 / LOOKED_ONE_IN, rel=0.05)
    # Each stands for those before it, so that the budget earns of all of them.
    assert 80_000 - 2 * LOOKED_ONE_IN <= sum(later) <= 80_000
    assert len(set(later)) > LOOKED_ONE_IN, "the looks have a rhythm"


def test_a_median_counts_each_look_for_all_that_it_stands_for() -> None:
    now = Now()
    timer = StepTimer(HostClock(now))
    # Of 32 steps of the kind, the 8 that are full of tokens take longer. All of these are seen.
    for _ in range(8):
        run(timer, now, 0.030, 4, 100, 1, True)
    for stands_for in (15, 1, 8):
        run(timer, now, 0.010, 4, 100, 1, True, stands_for=stands_for)
    timer.settle()
    (row,) = timer.times.latencies()
    assert (row.samples, row.median_seconds) == (32, pytest.approx(0.010))


def test_a_generous_budget_looks_at_all_steps() -> None:
    sampler = Sampler(one_in=1)
    assert all(sampler.look() and sampler.stands_for == 1 for _ in range(3 * LOOKED_AT_FIRST))


def test_a_step_counts_and_earns_for_all_that_it_stands_for() -> None:
    now, seen = Now(), list[float]()
    timer = StepTimer(HostClock(now), seen.append)
    run(timer, now, 0.01, 4, 100, 1, True, stands_for=7)
    run(timer, now, 0.5, 4, 100, 200, False, stands_for=3)
    timer.settle()
    assert seen == pytest.approx([0.07, 1.5])
    (row,) = timer.times.latencies()
    assert (row.samples, row.median_seconds) == (7, pytest.approx(0.01))


def test_a_device_that_hangs_stops_the_count_once_the_ring_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = HostClock()
    timer = StepTimer(clock)
    monkeypatch.setattr(clock, "ready", lambda _: False)
    for _ in range(10 * RING_SLOTS):
        timer.settle()
        timer.describe(EngineStep(4, 100, 1, True))
        timer.begin()
        timer.end()
    series = timer.times.of(4, 100, 1)
    assert series is not None
    assert series.count == RING_SLOTS
    assert series.timed == 0
    assert timer.times.latencies() == ()


class Session:
    """Wants to be asked every so often, as long as it is active."""

    active = True

    def __init__(self, wait: float) -> None:
        self.wait = wait
        self.asked = 0

    def idle(self) -> float:
        self.asked += 1
        return self.wait


def test_an_idle_queue_asks_and_gives_a_request_at_once() -> None:
    requests: queue.Queue[int] = queue.Queue()
    session = Session(0.001)
    get = asking(requests.get, session)
    threading.Timer(0.1, requests.put, [7]).start()
    assert get(block=True) == 7
    assert session.asked > 5
    asked = session.asked
    requests.put(8)
    assert get(False) == 8
    with pytest.raises(queue.Empty):
        get(False)
    with pytest.raises(queue.Empty):
        get(True, 0.01)
    assert session.asked == asked, "only a wait without limit is idle time"


def test_a_session_that_has_ended_is_not_asked() -> None:
    requests: queue.Queue[int] = queue.Queue()
    session = Session(0.001)
    session.active = False
    threading.Timer(0.05, requests.put, [7]).start()
    assert asking(requests.get, session)() == 7
    assert session.asked == 0
