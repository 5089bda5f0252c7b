from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_nfp.schedule.feedback import feedback_of
from vllm_nfp.schedule.plan import NOTHING_KNOWN, bucket, cell_of

from vllm_nfp.config import ProbeConfig
from vllm_nfp.results import layer_times
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule import Budget, Feedback, Planner, Prober
from vllm_nfp.schedule.consent import OwnConsent
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.schedule.flights import DeviceStuckError, Flights
from vllm_nfp.schedule.scan import scan
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.timing import Mark, StepTimer, StepTimes
from vllm_nfp.timing.steps import RING_SLOTS
from vllm_nfp.types import (
    EngineStep,
    LayerTime,
    Module,
    PairResult,
    RefusedForNowError,
    Shape,
    ShapeRefusedError,
    State,
    Timing,
)

GRIDS = {(1, 64): (2, 4, 8), (4, 64): (2, 4)}


def test_a_step_that_stands_for_others_earns_and_forgets_for_all_of_them() -> None:
    one_by_one, at_once = Budget(0.01, 0.01), Budget(0.01, 0.01)
    for budget, looks, stands_for in ((one_by_one, 24, 1), (at_once, 3, 8)):
        budget.observe(0.5, reads_prompt=False, waiting=True)
        for _ in range(looks):
            budget.observe(0.5, reads_prompt=False, waiting=False, stands_for=stands_for)
    assert one_by_one.steps == at_once.steps == 25
    assert one_by_one.slack == at_once.slack == 0.0, "requests wait for 128 steps"
    for budget, looks, stands_for in ((one_by_one, 160, 1), (at_once, 20, 8)):
        for _ in range(looks):
            budget.observe(0.5, reads_prompt=False, waiting=False, stands_for=stands_for)
    assert one_by_one.slack == at_once.slack == 0.5
    at_once.observe(0.5, reads_prompt=True, waiting=False, stands_for=64)
    assert at_once.slack == 0.0, "all of the last 64 steps read a prompt, as far as is known"


def test_every_point_gets_its_samples_in_turn() -> None:
    planner = Planner(GRIDS, min_samples=3)
    seen: Counter[Shape] = Counter()
    while not planner.complete():
        target = planner.next()
        assert target is not None
        seen[target] += 1
        planner.record(target)
    assert set(seen.values()) == {3}
    assert len(seen) == 5


def test_live_traffic_comes_first_half_of_the_time() -> None:
    grids = {(b, 64): (2, 4, 8) for b in range(1, 11)}
    planner = Planner(grids, min_samples=1000)
    cells: Counter[tuple[int, int]] = Counter()
    for _ in range(1000):
        target = planner.next(live=(7, 64))
        assert target is not None
        cells[cell_of(target)] += 1
        planner.record(target)
    assert 450 < cells[7, 64] < 650
    assert min(cells.values()) > 20


def test_points_far_over_every_line_do_not_hold_the_scan_up() -> None:
    planner = Planner({(1, 64): (2, 4, 8, 16)}, min_samples=2)
    feedback = Feedback(far_over={(1, 64): 4})
    targets: Counter[int] = Counter()
    while not planner.complete(feedback):
        target = planner.next(feedback=feedback)
        assert target is not None
        targets[target.positions] += 1
        planner.record(target)
    assert targets == {2: 2, 4: 2}


def test_uncertain_points_are_sampled_again() -> None:
    planner = Planner({(1, 64): (2, 4, 8)}, min_samples=1)
    while not planner.complete():
        planner.record(planner.next() or pytest.fail("no target"))
    feedback = Feedback(uncertain=frozenset({Shape(1, 64, 4)}))
    again: Counter[int] = Counter()
    for _ in range(300):
        target = planner.next(feedback=feedback)
        assert target is not None
        again[target.positions] += 1
        planner.record(target)
    assert again[4] > 200
    assert min(again[2], again[8]) > 10, "old points are never refreshed"


def test_a_dropped_target_never_comes_back() -> None:
    planner = Planner({(1, 64): (2, 4)}, min_samples=1)
    planner.drop(Shape(1, 64, 2))
    assert {planner.next() for _ in range(20)} == {Shape(1, 64, 4)}
    planner.drop(Shape(1, 64, 4))
    assert planner.next() is None
    assert planner.cells == ()


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (2, 8), (8, 8), (33, None)])
def test_a_live_value_is_filed_under_the_next_larger_bound(
    value: int, expected: int | None
) -> None:
    assert bucket(value, (1, 8, 32)) == expected


@settings(max_examples=200)
@given(
    st.floats(0.001, 0.5),
    st.lists(st.tuples(st.floats(1e-4, 0.1), st.floats(1e-4, 1.0)), min_size=1, max_size=200),
)
def test_the_share_holds_by_measurement(share: float, steps: list[tuple[float, float]]) -> None:
    """Whatever probes really cost, the share is overdrawn by one probe at most."""
    budget = Budget(share)
    largest = spent = 0.0
    for step_seconds, cost in steps:
        budget.earn(step_seconds)
        if budget.affords(step_seconds):
            budget.spend(cost)
            largest = max(largest, cost)
            spent += cost
    # By the times themselves, whatever the budget has counted.
    total = sum(seconds for seconds, _ in steps) + spent
    assert spent <= share * total + largest * (1 + 1e-9)
    assert budget.overhead_ratio == pytest.approx(spent / total)
    assert budget.real_seconds + budget.probe_seconds == pytest.approx(total)


def test_no_budget_means_no_probe() -> None:
    budget = Budget(0.0)
    for _ in range(1000):
        budget.earn(1.0)
    assert not budget.affords(1e-9)


def test_a_quiet_hour_does_not_end_in_a_burst() -> None:
    budget = Budget(0.01)
    budget.affords(0.02)
    for _ in range(100_000):
        budget.earn(0.01)
    started = 0
    while budget.affords(0.02):
        budget.spend(0.02)
        started += 1
    assert started <= 3


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

    def refusal(self, batch_size: int, context: int) -> str | None:
        return None

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        return (1, 2, 4)

    def ready(self, shape: Shape) -> bool:
        return shape.positions not in self.cold

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        positions = next(s.positions for s in shapes if s.positions in self.cold)
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
        return Timing(shape, seconds, 0.0, {Module.ATTENTION: seconds}, (), "none")


def make(
    share: float = 0.1, step_share: float = 1.0, idle_share: float = 0.05, **engine: set[int]
) -> tuple[Prober, FakeClock, list[PairResult]]:
    clock = FakeClock()
    results: list[PairResult] = []
    config = ProbeConfig(batch_sizes=(1, 4), contexts=(64,), min_samples=2, idle_share=idle_share)
    budget = Budget(share, step_share)
    prober = Prober(
        Flights(FakeEngine(clock, **engine), clock, lambda: clock.now),
        OwnConsent(),
        StepTimer(clock, budget.earn),
        Planner({(1, 64): (2, 4)}, 2),
        budget,
        results.append,
        config,
        now=lambda: clock.now,
    )
    return prober, clock, results


def scan_all(prober: Prober, clock: FakeClock, *report: Callable[[], Feedback]) -> None:
    def device_catches_up(_seconds: float) -> None:
        clock.done = clock.now

    scan(prober, 60.0, *report, now=lambda: clock.now, sleep=device_catches_up)


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
        {"waiting": True},
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


def test_prompts_that_keep_coming_shrink_the_budget() -> None:
    prober, clock, results = make(share=0.1)
    for _ in range(500):
        run_step(prober, clock)
    alone = len(results)
    for _ in range(500):
        run_step(prober, clock)
        for _ in range(3):
            run_step(prober, clock, PREFILL)
    # Three of four steps read prompts: a quarter of the budget, of four times the time.
    assert alone * 0.5 < len(results) - alone < alone * 1.6


def test_idle_time_is_used_up_to_its_share_and_given_back_at_once() -> None:
    prober, clock, results = make(share=0.1)
    begun = clock.now
    first = prober.idle()
    assert first == pytest.approx(0.05), "a probe follows a request at once"
    while not prober.planner.complete():
        clock.now += prober.idle()
        clock.done = clock.now
    spent = prober.counters().idle_probe_seconds
    assert len(results) == prober.outcomes["idle"] == 4
    assert spent <= 0.05 * (clock.now - begun) + max(r.cost_seconds for r in results)
    assert prober.budget.probe_seconds == 0.0, "idle time is charged to the budget"
    since, done = clock.now, len(results)
    for _ in range(200):
        clock.now += prober.idle()
        clock.done = clock.now
    assert 0 < len(results) - done <= (clock.now - since) / 5.0 + 1, "no end of refreshing"
    prober.before_step(DECODE)
    assert prober.idle() >= 0.05


def test_no_idle_probe_where_the_share_is_zero() -> None:
    prober, clock, results = make(share=0.1, idle_share=0.0)
    for _ in range(100):
        clock.now += prober.idle()
        clock.done = clock.now
    assert results == []
    assert launched_seconds(prober) == 0.0


def test_shapes_that_are_ready_are_kept_to() -> None:
    planner = Planner({(1, 64): (2, 4, 8), (1, 256): (2, 4, 8)}, min_samples=6)
    ready: set[int] = set()
    changes = 0
    for _ in range(36):
        target = planner.next(ready=lambda t, now=ready: t.positions in now)
        assert target is not None
        if target.positions not in ready:
            ready = {target.positions}
            planner.changed()
            changes += 1
        planner.record(target)
    assert planner.complete()
    assert changes <= 6, "shapes are made ready again and again"


def test_a_refused_shape_is_left_out_and_counted() -> None:
    prober, clock, results = make(share=0.5, refused={4})
    before = clock.held
    for _ in range(500):
        run_step(prober, clock)
    assert prober.outcomes["refused"] == 1
    assert {r.many.shape.positions for r in results} == {2}
    prober.settle()
    assert clock.held == before, "the marks of the refused pair are lost"


def test_the_first_scan_ends_when_every_point_has_its_samples() -> None:
    prober, clock, results = make()

    scan_all(prober, clock)
    assert len(results) == 4
    assert prober.planner.complete()
    assert prober.budget.probe_seconds == 0.0


def test_a_scan_tells_its_progress_and_takes_the_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_nfp.schedule import scan as module

    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)
    prober, clock, results = make()
    missing: list[int] = []

    given = [NOTHING_KNOWN]

    def report() -> Feedback:
        missing.append(prober.planner.missing_pairs(given[-1]))
        given.append(Feedback(far_over={(1, 64): 2}))
        return given[-1]

    assert prober.planner.missing_pairs() == 4
    scan_all(prober, clock, report)
    assert missing[0] == 3
    assert missing[-1] == 0
    assert missing == sorted(missing, reverse=True)
    assert {r.many.shape.positions for r in results[1:]} == {2}, "points far over were not left out"


def result(positions: int, seconds: float) -> PairResult:
    def timing(n: int, factor: float) -> Timing:
        layers = (LayerTime(3, Module.ATTENTION, seconds * factor),)
        return Timing(Shape(1, 64, n), 0.01, 0.0, {Module.ATTENTION: seconds}, layers, "full")

    return PairResult(timing(positions, 2.0), timing(1, 1.0), True, 0.02)


def test_layer_times_are_medians_of_the_recent_runs_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_times, "MOST_ROWS", 2)
    results = Results(ProbeConfig())
    for seconds in (9.0, *[1.0] * 8, *[3.0] * 7):
        results.add(result(2, seconds))
    results.add(result(4, 1.0))
    found = {row.positions: row for row in results.layer_times()}
    assert set(found) == {1, 2}, "a third point was kept"
    assert (found[2].layer, found[2].module, found[2].samples) == (3, "attention", 15)
    assert found[2].median_seconds == 2.0
    assert found[1].median_seconds == 1.0


def test_what_is_sampled_again_depends_on_no_time_of_the_point_itself() -> None:
    def pair(positions: int, ratio: float) -> PairResult:
        one, many = Shape(1, 64, 1), Shape(1, 64, positions)
        return PairResult(
            Timing(many, 0.01 * ratio, 0.0, {}, (), "full"),
            Timing(one, 0.01, 0.0, {}, (), "full"),
            True,
            0.02,
        )

    def told(ratio: float, scatter: float, samples: int) -> Feedback:
        """What is told of N = 4, beside N = 2 with a full ring, 8 far over all lines and 16."""
        results = Results(ProbeConfig())
        for at in range(32):
            results.add(pair(2, 1.1 + 0.01 * (-1) ** at))
        for at in range(samples):
            results.add(pair(4, ratio + scatter * (-1) ** at))
        for _ in range(10):
            results.add(pair(8, 3.0))
            results.add(pair(16, 3.0))
        results.update()
        return feedback_of(results.estimates.values(), ProbeConfig())

    open_points = {Shape(1, 64, 4), Shape(1, 64, 8)}
    for ratio, scatter in ((1.0, 0.001), (1.1, 0.01), (1.07, 0.001), (1.3, 0.001), (1.2, 0.3)):
        assert told(ratio, scatter, 12) == Feedback(open_points, {(1, 64): 8})
        # A ring that is full holds no more: further pairs only take the place of old ones.
        assert told(ratio, scatter, 40) == Feedback({Shape(1, 64, 8)}, {(1, 64): 8})


class Kept:
    """An output folder and /metrics that note what they are given."""

    keeps = True

    def __init__(self) -> None:
        self.written: list[Snapshot] = []
        self.kept: list[Snapshot] = []
        self.write, self.keep = self.written.append, self.kept.append

    def record(self, result: PairResult) -> None:
        pass


def publisher_of(config: ProbeConfig, output: Kept) -> Publisher:
    identity = Snapshot("m", "0", State.WARMING)
    return Publisher(config, identity, StepTimes(), output)  # type: ignore[arg-type]


def test_a_profile_is_kept_now_and_then_and_the_metrics_each_time() -> None:
    output = Kept()
    written, kept = output.written, output.kept
    publisher = publisher_of(ProbeConfig(), output)
    publisher.count(Counters({"measured": 1}, missing_pairs=7))
    publisher.put(result(2, 1.0))
    for _ in range(3):
        publisher._publish()
    assert len(written) == 3
    assert len(kept) == 1
    assert [len(snapshot.layer_times) for snapshot in (written[0], kept[0])] == [0, 2]
    assert written[0].missing_pairs == 7


def test_a_sign_that_requests_wait_outlasts_what_the_next_look_stands_for() -> None:
    budget = Budget(0.01, 0.01)
    budget.observe(0.0, reads_prompt=False, waiting=True)
    # Most of these steps may have been before the sign.
    budget.observe(0.0, reads_prompt=False, waiting=False, stands_for=15)
    budget.observe(0.0, reads_prompt=False, waiting=False, stands_for=126)
    assert budget.slack == 0.0, "less than 128 steps have passed"
    budget.observe(0.0, reads_prompt=False, waiting=False, stands_for=8)
    assert budget.slack == 1.0


def test_what_a_start_makes_ready_is_not_counted_as_made_in_serving() -> None:
    prober, clock, _ = make(share=0.5, cold={1, 2})

    scan_all(prober, clock)
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
    assert prober.planner.complete()
    waits = [after - before for before, after in itertools.pairwise(tried)]
    assert waits == pytest.approx([10.0, 20.0, 40.0, 80.0, 160.0], abs=1.0)
    assert prober.outcomes["refused"] == len(tried) == 6
    engine.launch, engine.make_ready = launch, make_ready  # type: ignore[method-assign]
    while clock.now < 700.0:
        run_step(prober, clock)
    assert {r.many.shape.positions for r in results} == {2, 4}, "once without memory is for ever"


def test_a_target_that_is_put_off_keeps_its_samples() -> None:
    planner = Planner({(1, 64): (2, 4)}, min_samples=2)
    two, four = Shape(1, 64, 2), Shape(1, 64, 4)
    planner.record(four)
    for _ in range(2):
        planner.put_off(four)
        assert {planner.next() for _ in range(20)} == {two}
    assert planner.missing_pairs() == 2
    planner.put_off(two)
    assert planner.complete() and planner.next() is None
    for target in (four, four, two):
        planner.take_back(target)
    assert planner.missing_pairs() == 3
    planner.drop(four)
    planner.take_back(four)
    assert planner.missing_pairs() == 2


def test_what_is_missing_is_counted_anew_after_every_change() -> None:
    """Asked at each step that is looked at, the answer is kept as long as it holds."""
    planner = Planner({(b, 64): (2, 4) for b in (1, 2, 4)}, min_samples=2)
    two, four = Shape(1, 64, 2), Shape(1, 64, 4)
    far = Feedback(far_over={(2, 64): 2})
    expected = 12
    assert planner.missing_pairs() == expected
    for change, less in (
        (planner.record, 1), (planner.record, 1), (planner.record, 0),
        (planner.put_off, 0), (planner.take_back, 0),
    ):  # fmt: skip
        change(two)
        expected -= less
        assert planner.missing_pairs() == expected
        assert planner.missing_pairs(far) == expected - 2
    planner.put_off(four)
    assert planner.missing_pairs() == expected - 2
    planner.take_back(four)
    assert planner.missing_pairs() == expected
    planner.drop(four)
    assert (planner.missing_pairs(), planner.missing_pairs(far)) == (expected - 2, expected - 4)


def test_who_reads_in_the_middle_of_an_update_gets_all_of_the_last_one_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The serving thread reads when it disables the probe, whatever the publisher is at."""
    from vllm_nfp.session import publisher as module

    publisher = publisher_of(ProbeConfig(min_samples=2, layer_histograms=True), Kept())
    publisher.put(result(2, 1.0))
    publisher.put(result(2, 2.0))
    publisher.process()
    before = publisher.full_snapshot()
    assert {row.samples for row in before.curves} == {2}
    assert before.boundaries and before.layers
    seen: list[Snapshot] = []

    def read_from_another_thread() -> None:
        reader = threading.Thread(target=lambda: seen.append(publisher.full_snapshot()))
        reader.start()
        reader.join(5.0)
        assert not reader.is_alive(), "the reader waits for the update"

    monkeypatch.setattr(module, "give_way", read_from_another_thread)
    monkeypatch.setattr("vllm_nfp.results.gather.give_way", read_from_another_thread)
    publisher.put(result(2, 3.0))
    publisher.process()
    assert len(seen) == 3, "after the pair, and after each of two modules"
    for found in seen:
        assert (found.boundaries, found.curves) == (before.boundaries, before.curves)
        assert found.layers == before.layers
    after = publisher.full_snapshot()
    assert {row.samples for row in after.curves} == {3}
