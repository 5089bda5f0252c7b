from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from vllm_nfp.config import ProbeConfig
from vllm_nfp.schedule import Agenda, Budget, Prober, Queue
from vllm_nfp.schedule.consent import OwnConsent
from vllm_nfp.schedule.flights import DeviceStuckError, Flights
from vllm_nfp.schedule.scan import scan
from vllm_nfp.timing import Mark, StepTimer
from vllm_nfp.timing.steps import RING_SLOTS
from vllm_nfp.types import (
    EngineStep,
    Module,
    PairResult,
    RefusedForNowError,
    Shape,
    ShapeRefusedError,
    Timing,
)

TWO, FOUR = Shape(1, 64, 2), Shape(1, 64, 4)


@dataclass
class FakeClock:
    """A device whose time the test moves on; marks are ready once it has passed them."""

    now: float = 0.0
    done: float = 0.0
    held: int = 0

    def mark(self, external: bool = False) -> Mark:
        self.held += 1
        return Mark(self.now, external)

    def renew(self, mark: Mark) -> None:
        mark.value = self.now

    def ready(self, mark: Mark) -> bool:
        return bool(mark.value <= self.done)

    def reached(self, mark: Mark) -> bool:
        return self.ready(mark)

    def seconds(self, start: Mark, end: Mark) -> float:
        return float(end.value - start.value)

    def release(self, mark: Mark) -> None:
        self.held -= 1


@dataclass
class FakeEngine:
    clock: FakeClock
    refused: set[int] = field(default_factory=set)
    launched: list[Shape] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    cold: set[int] = field(default_factory=set)
    """Position counts that are not ready yet."""
    prepared: list[int] = field(default_factory=list)
    late: set[int] = field(default_factory=set)
    """Position counts whose runs wait for their launch."""
    uncompiled: set[int] = field(default_factory=set)
    """Position counts whose first run compiles a kernel."""
    _serves: bool = False

    def refusal(self, batch_size: int, context: int) -> str | None:
        return None

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        return (1, 2, 4)

    def ready(self, shape: Shape) -> bool:
        return shape.positions not in self.cold

    def ready_keys(self) -> frozenset[tuple[int, int]]:
        return frozenset((1, n) for n in (1, 2, 4) if n not in self.cold)

    def written_contexts(self) -> None:
        return None

    @contextmanager
    def serving(self) -> Iterator[None]:
        self._serves = True
        try:
            yield
        finally:
            self._serves = False

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        positions = next(s.positions for s in shapes if s.positions in self.cold)
        if positions in self.uncompiled:
            if self._serves:
                raise RefusedForNowError("a kernel would have to be compiled")
            self.uncompiled.discard(positions)
        self.cold.discard(positions)
        self.prepared.append(positions)
        self.clock.now += 0.02

    def launch(self, shape: Shape, draw: int = 0) -> tuple[Shape, float]:
        if shape.positions in self.refused:
            raise ShapeRefusedError("no memory")
        self.launched.append(shape)
        self.draws.append(draw)
        self.clock.now += 0.001 * shape.positions
        return shape, self.clock.now

    def can_launch(self, shape: Shape) -> bool:
        return shape.positions not in self.refused

    def discard(self, ticket: tuple[Shape, float]) -> None:
        raise AssertionError("every run is read")

    def poll(self, ticket: tuple[Shape, float]) -> Timing | None:
        shape, end = ticket
        if end > self.clock.done:
            return None
        seconds = 0.001 * shape.positions
        waited, modules = shape.positions in self.late, {Module.ATTENTION: seconds}
        return Timing(shape, seconds, 0.0, modules, (), "none", waited)


class Thread:
    """The background thread: makes an agenda of the points with the fewest pairs.

    Each object is an agenda of its own, so that the prober begins anew.
    """

    def __init__(self, *shapes: Shape, wanted: int = 2) -> None:
        self.shapes, self.wanted = shapes, wanted
        self.results: list[PairResult] = []
        self.agenda = Agenda(shapes)
        self.made = 0

    def make(self) -> None:
        measured = [result.many.shape for result in self.results]
        missing = [s for s in self.shapes if measured.count(s) < self.wanted]
        self.agenda = Agenda(tuple(missing) or self.shapes, settled=not missing)
        self.made += 1


def make(
    share: float = 0.1,
    step_share: float = 1.0,
    idle_share: float = 0.05,
    thread: Thread | None = None,
    **engine: set[int],
) -> tuple[Prober, FakeClock, list[PairResult]]:
    clock, thread = FakeClock(), thread or Thread(TWO, FOUR)
    results = thread.results
    config = ProbeConfig(batch_sizes=(1, 4), contexts=(64,), idle_share=idle_share)
    budget = Budget(share, step_share)
    prober = Prober(
        Flights(FakeEngine(clock, **engine), clock, lambda: clock.now),
        OwnConsent(),
        StepTimer(clock, budget.earn, lambda: clock.now),
        Queue(lambda: thread.agenda),
        budget,
        results.append,
        config,
        now=lambda: clock.now,
    )
    return prober, clock, results


def scan_all(prober: Prober, clock: FakeClock, report: Callable[[], None] = lambda: None) -> None:
    def device_catches_up(_seconds: float) -> None:
        clock.done = clock.now

    scan(prober, 60.0, report, now=lambda: clock.now, sleep=device_catches_up)


DECODE = EngineStep(batch_size=1, context=50, positions=1, decode=True)
PREFILL = EngineStep(batch_size=1, context=0, positions=40, decode=False)


def run_step(prober: Prober, clock: FakeClock, step: EngineStep = DECODE) -> None:
    prober.before_step(step)
    prober.timer.begin()
    clock.now += 0.010
    prober.timer.end()
    clock.done = clock.now


def engine_of(prober: Prober) -> FakeEngine:
    engine = prober._flights._engine
    assert isinstance(engine, FakeEngine)
    return engine


def launched_seconds(prober: Prober) -> float:
    """What the device really ran for probes, see :class:`FakeEngine`."""
    engine = engine_of(prober)
    return sum(0.001 * shape.positions for shape in engine.launched)


def test_the_pairs_of_each_count_run_on_the_same_tokens_one_by_one() -> None:
    prober, clock, _results = make(share=0.1)
    for _ in range(500):
        run_step(prober, clock)
    prober.settle()
    engine = engine_of(prober)
    draws: dict[int, list[int]] = {}
    runs = list(zip(engine.launched, engine.draws, strict=True))
    for (one, draw), (other, again) in zip(runs[::2], runs[1::2], strict=True):
        assert draw == again, "both runs of a pair have the same tokens"
        draws.setdefault(max(one.positions, other.positions), []).append(draw)
    assert set(draws) == {2, 4}
    assert all(found == list(range(len(found))) for found in draws.values())


def test_pairs_run_between_decode_steps_within_the_budget() -> None:
    prober, clock, results = make(share=0.1)
    for _ in range(500):
        run_step(prober, clock)
    prober.settle()
    assert len(results) > 20
    assert launched_seconds(prober) <= (0.1 + 0.01) * clock.now
    assert prober.budget.overhead_ratio == pytest.approx(launched_seconds(prober) / clock.now)
    assert all(r.one.shape.positions == 1 < r.many.shape.positions for r in results)
    assert {r.baseline_first for r in results} == {True, False}
    assert prober.outcomes["measured"] == len(results)
    assert clock.held == 2 * RING_SLOTS, "marks are lost"


def test_pairs_that_wait_for_a_launch_are_counted_apart() -> None:
    prober, clock, results = make(late={4})
    for _ in range(500):
        run_step(prober, clock)
    waited = [r for r in results if r.waited]
    assert {r.many.shape.positions for r in waited} == {4} and len(waited) < len(results)
    assert prober.outcomes["waited"] == len(waited)
    assert prober.outcomes["measured"] == len(results) - len(waited)


@pytest.mark.parametrize("late", [1, 3])
def test_no_period_of_a_real_step_holds_a_probe(late: int) -> None:
    """A pair takes 3 or 5 ms here, a step 10; the device may be steps late with it."""
    prober, clock, results = make(share=0.1)
    for step in range(1000):
        prober.timer.periods.step(1, 1, ())
        prober.before_step(DECODE)
        prober.timer.begin()
        clock.now += 0.015 if prober.busy else 0.010
        prober.timer.end()
        if step % late == 0:
            clock.done = clock.now
        if step % 100 == 99:
            prober.idle()
    series = prober.timer.times.of(1, 50, 1)
    assert series is not None and series.periods_timed > 100 and len(results) > 20
    assert min(series.periods) == pytest.approx(0.01) == max(series.periods)


def test_a_prompt_is_never_delayed() -> None:
    prober, clock, results = make(share=0.5)
    for _ in range(200):
        run_step(prober, clock, PREFILL)
    assert results == []
    assert launched_seconds(prober) == 0.0


def test_nothing_is_launched_while_a_pair_is_on_the_device() -> None:
    prober, clock, _ = make(share=0.5)
    for _ in range(5):
        run_step(prober, clock)
    launched = len(engine_of(prober).launched)
    for _ in range(50):  # the device is slow
        prober.before_step(DECODE)
        prober.timer.begin()
        clock.now += 0.010
        prober.timer.end()
    assert len(engine_of(prober).launched) <= launched + 2


def test_a_stuck_device_keeps_no_more_than_so_many_marks() -> None:
    prober, clock, _ = make()
    for _ in range(5000):
        prober.timer.begin()
        prober.timer.end()
        clock.now += 1.0
    assert clock.held == 2 * RING_SLOTS
    clock.done = clock.now
    prober.settle()
    prober.timer.begin()
    clock.now += 0.5
    prober.timer.end()
    clock.done = clock.now
    prober.settle()
    assert prober.timer.last_seconds == 0.5, "steps are no longer timed"


def test_a_device_that_hangs_ends_the_probe() -> None:
    prober, clock, _ = make(share=0.5)
    while not prober.busy:
        run_step(prober, clock)
        clock.done = -1.0  # nothing is passed any more
        prober.budget.earn(1.0)
    with pytest.raises(DeviceStuckError, match="has not finished within 60 s"):
        for _ in range(100):
            clock.now += 1.0
            prober.before_step(DECODE)


def test_few_steps_are_delayed_however_cheap_a_pair_is() -> None:
    prober, clock, results = make(share=0.5, step_share=0.01)
    for _ in range(2000):
        run_step(prober, clock)
    prober.settle()
    assert 15 <= len(results) <= 20
    assert prober.budget.step_ratio <= 0.01


def test_what_a_pair_lacks_is_made_piece_by_piece_and_charged() -> None:
    prober, clock, results = make(share=0.1, cold={1, 2, 4})
    for _ in range(2000):
        run_step(prober, clock)
    prober.settle()
    assert sorted(engine_of(prober).prepared) == [1, 2, 4]
    assert prober.outcomes["prepared"] == 3
    spent = 3 * 0.02 + sum(r.cost_seconds for r in results)
    assert prober.budget.probe_seconds == pytest.approx(spent)
    assert prober.budget.overhead_ratio <= 0.1 + 0.01


@pytest.mark.parametrize(
    "load",
    [
        {"fullness": 1.0},
        {"full": True},
        {"preempted": True},
    ],
)
def test_requests_that_wait_leave_no_budget(load: dict[str, Any]) -> None:
    prober, clock, results = make(share=0.5)
    for _ in range(300):
        run_step(prober, clock, replace(DECODE, **load))
    assert results == []
    assert launched_seconds(prober) == 0.0


def test_the_budget_shrinks_with_the_load() -> None:
    counts = []
    for fullness in (0.0, 0.5, 0.9):
        prober, clock, results = make(share=0.1)
        for _ in range(3000):
            run_step(prober, clock, replace(DECODE, fullness=fullness))
        counts.append(len(results))
        assert launched_seconds(prober) <= (0.1 * (1 - fullness) + 0.002) * clock.now
    assert counts[0] > 1.8 * counts[1] > 1.8 * 3 * counts[2] > 0


def test_prompts_that_keep_coming_buy_no_delays_of_decode_steps() -> None:
    prober, clock, results = make(share=0.1, step_share=0.05)
    for _ in range(500):
        run_step(prober, clock)
    alone = len(results)
    for _ in range(500):
        run_step(prober, clock)
        for _ in range(3):
            run_step(prober, clock, PREFILL)
    assert len(results) - alone == pytest.approx(alone, abs=2)
    assert prober.budget.step_ratio <= 0.05


def test_idle_time_is_used_up_to_its_share_and_given_back_at_once() -> None:
    thread = Thread(TWO, FOUR)
    prober, clock, results = make(share=0.1, thread=thread)
    begun = clock.now
    first = prober.idle()
    assert first == pytest.approx(0.05), "a probe follows a request at once"
    while not thread.agenda.settled:
        clock.now += prober.idle()
        clock.done = clock.now
        if prober.wants_agenda:
            thread.make()
    spent = prober.counters().idle_probe_seconds
    assert len(results) == prober.outcomes["idle"] == 4
    assert spent <= 0.05 * (clock.now - begun) + max(r.cost_seconds for r in results)
    assert prober.budget.probe_seconds == 0.0, "idle time is charged to the budget"
    since, done = clock.now, len(results)
    for _ in range(200):
        clock.now += prober.idle()
        clock.done = clock.now
    assert 0 < len(results) - done <= (clock.now - since) / 5.0 + 1, "no end of refreshing"
    clock.done = clock.now = clock.now + 1.0
    prober.before_step(DECODE)
    assert prober.idle() >= 0.05


def test_no_idle_probe_where_the_share_is_zero() -> None:
    prober, clock, results = make(share=0.1, idle_share=0.0)
    for _ in range(100):
        clock.now += prober.idle()
        clock.done = clock.now
    assert results == []
    assert launched_seconds(prober) == 0.0


def test_a_refused_shape_is_left_out_and_counted() -> None:
    prober, clock, results = make(share=0.5, refused={4})
    before = clock.held
    for _ in range(500):
        run_step(prober, clock)
    assert prober.outcomes["refused"] == 1
    assert {r.many.shape.positions for r in results} == {2}
    prober.settle()
    assert clock.held == before, "the marks of the refused pair are lost"


def test_a_kernel_is_compiled_while_no_request_is_there_and_never_between_steps() -> None:
    prober, clock, results = make(share=0.5, cold={4}, uncompiled={4})
    for _ in range(200):
        run_step(prober, clock)
    assert {r.many.shape.positions for r in results} == {2}
    assert prober.outcomes["refused"] >= 1 and FOUR in prober.queue.put_off
    clock.now = clock.done = clock.now + 1000.0  # it is tried again later
    for _ in range(2000):
        clock.now += prober.idle()
        clock.done = clock.now
    assert 4 in {r.many.shape.positions for r in results}


def test_the_first_scan_ends_when_the_agenda_is_settled() -> None:
    thread = Thread(TWO, FOUR)
    prober, clock, results = make(thread=thread)

    scan_all(prober, clock, thread.make)
    assert len(results) == 4
    assert thread.made == 2, "asked for while the last was not used up"
    assert prober.budget.probe_seconds == 0.0


def test_a_scan_ends_when_nothing_of_a_new_agenda_can_run() -> None:
    prober, clock, results = make(refused={2, 4})
    scan_all(prober, clock)
    assert results == []
    assert prober.counters().refused == {TWO, FOUR}
    empty = Thread()
    prober, clock, results = make(thread=empty)
    scan_all(prober, clock, empty.make)
    assert empty.made == 1


def test_a_scan_without_news_goes_on_until_its_time_is_over() -> None:
    prober, clock, results = make()
    scan_all(prober, clock)
    assert 60.0 <= clock.now < 60.1
    assert {r.many.shape.positions for r in results} == {2, 4}


def test_a_quiet_server_is_not_short_of_an_agenda_for_long() -> None:
    """The background thread is asked as soon as one is used up, and looked for soon after."""
    thread = Thread()
    prober, clock, results = make(thread=thread)
    prober.idle()
    clock.now += 1.0
    assert prober.counters().wants_agenda
    assert prober.idle() <= 0.2
    thread.shapes = (TWO, FOUR)
    thread.make()
    while not prober.counters().wants_agenda:
        assert clock.now < 10.0
        clock.now += prober.idle()
        clock.done = clock.now
    assert [r.many.shape for r in results] == [TWO, FOUR], "before all results are there"


def test_an_agenda_that_comes_while_pieces_are_made_stops_none_of_them() -> None:
    thread = Thread(FOUR)
    prober, clock, results = make(share=0.5, thread=thread, cold={1, 4})
    while not engine_of(prober).prepared:
        run_step(prober, clock)
    thread.agenda = Agenda((TWO,))
    while not results:
        run_step(prober, clock)
    assert engine_of(prober).prepared == [1, 4]
    assert results[0].many.shape == FOUR
    found = prober.counters()
    assert found.ready == {(1, 1), (1, 2), (1, 4)}
    assert found.piece_seconds == pytest.approx(0.02)


def test_a_scan_tells_its_progress_and_takes_the_new_agenda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm_nfp.schedule import scan as module

    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)
    thread = Thread(FOUR)
    prober, clock, results = make(thread=thread)
    told: list[int] = []

    def report() -> None:
        told.append(len(results))
        if results:
            thread.agenda = Agenda((TWO,), settled=len(results) == 4)

    scan_all(prober, clock, report)
    assert told == [0, 1, 2, 3, 4]
    assert [r.many.shape for r in results] == [FOUR, TWO, TWO, TWO]


def test_what_a_start_makes_ready_is_not_counted_as_made_in_serving() -> None:
    thread = Thread(TWO)
    prober, clock, _ = make(share=0.5, thread=thread, cold={1, 2})

    scan_all(prober, clock, thread.make)
    thread.agenda = Agenda((TWO, FOUR))
    assert prober.outcomes["startup_prepared"] == 2
    assert prober.outcomes["prepared"] == 0
    engine = engine_of(prober)
    engine.cold.add(4)
    for _ in range(500):
        run_step(prober, clock)
    assert prober.outcomes["prepared"] == 1
    assert prober.outcomes["startup_prepared"] == 2


def test_what_was_refused_is_not_counted_as_made_ready() -> None:
    prober, clock, results = make(share=0.5, refused={1})
    for _ in range(500):
        run_step(prober, clock)
    prober.settle()
    assert results == []
    assert prober.outcomes == {"measured": 0, "idle": 0, "prepared": 0, "refused": 2}
    assert prober.budget.probe_seconds > 0.0, "one run of the pair was launched, and is charged"


def test_a_run_that_has_been_read_is_not_read_again_while_the_other_is_awaited() -> None:
    """Reading a run gives its marks back: read twice, two later runs would share a mark."""
    prober, clock, results = make(share=0.5)
    engine = engine_of(prober)
    poll, read, late = engine.poll, list[float](), set[float]()

    def poll_late(ticket: tuple[Shape, float]) -> Timing | None:
        """The second of a pair's runs is not there when it is asked for the first time."""
        if len(read) % 2 and ticket[1] not in late:
            late.add(ticket[1])
            return None
        read.append(ticket[1])
        return poll(ticket)

    engine.poll = poll_late  # type: ignore[method-assign]
    for _ in range(200):
        run_step(prober, clock)
    prober.settle()
    prober.settle()
    assert len(late) > 10
    assert len(read) == len(set(read)) == 2 * len(results)


@pytest.mark.parametrize("lacks_it_when", ["launched", "made ready"])
def test_what_cannot_run_for_a_moment_is_tried_again_and_less_and_less_often(
    lacks_it_when: str,
) -> None:
    prober, clock, results = make(share=0.5, cold={4} if lacks_it_when == "made ready" else set())
    engine = engine_of(prober)
    tried: list[float] = []

    def short_of_memory(_: object) -> None:
        tried.append(clock.now)
        raise RefusedForNowError("out of memory")

    launch, make_ready = engine.launch, engine.make_ready

    def try_launch(shape: Shape, draw: int = 0) -> tuple[Shape, float]:
        if shape.positions == 4:
            short_of_memory(shape)
        return launch(shape, draw)

    if lacks_it_when == "launched":
        engine.launch = try_launch  # type: ignore[method-assign]
    else:
        engine.make_ready = short_of_memory  # type: ignore[method-assign]
    while clock.now < 400.0:
        run_step(prober, clock)
    assert {r.many.shape.positions for r in results} == {2}, "the others do not go on"
    waits = [after - before for before, after in itertools.pairwise(tried)]
    assert waits == pytest.approx([10.0, 20.0, 40.0, 80.0, 160.0], abs=1.0)
    assert prober.outcomes["refused"] == len(tried) == 6
    assert prober.counters().put_off == {FOUR}
    assert prober.counters().refused == frozenset()
    engine.launch, engine.make_ready = launch, make_ready  # type: ignore[method-assign]
    while clock.now < 700.0:
        run_step(prober, clock)
    assert {r.many.shape.positions for r in results} == {2, 4}, "once without memory is for ever"
