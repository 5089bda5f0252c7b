"""Ranks that probe in lockstep: all launch the same pairs before the same steps, or none does."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.config import ProbeConfig
from vllm_nfp.schedule import Agenda, Budget, Prober, Queue
from vllm_nfp.schedule.consent import RanksConsent
from vllm_nfp.schedule.flights import Flights
from vllm_nfp.schedule.follow import can_launch, follow, follow_scan
from vllm_nfp.schedule.lockstep import DivergedError, Lockstep, PeerFaultError, WireError
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.scan import scan
from vllm_nfp.timing import HostClock, StepTimer
from vllm_nfp.types import EngineStep, Module, Shape, Timing

PAIR = Pair(Shape(8, 1024, 4), True)


class Hub:
    """Exchanges between ranks in this process; finishing one that lacks a rank's part fails."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: list[list[Sequence[int]]] = [[] for _ in range(size)]
        self.longest_wait = 0
        self.condition = threading.Condition()

    def wire(self, rank: int, patience: float = 0.0) -> HubWire:
        return HubWire(self, rank, patience)


@dataclass
class HubWire:
    hub: Hub
    rank: int
    patience: float

    @property
    def size(self) -> int:
        return self.hub.size

    def begin(self, values: Sequence[int]) -> int:
        with self.hub.condition:
            self.hub.parts[self.rank].append(tuple(values))
            self.hub.condition.notify_all()
            return len(self.hub.parts[self.rank]) - 1

    def finish(self, handle: int) -> Sequence[int]:
        with self.hub.condition:
            there = self.hub.condition.wait_for(
                lambda: all(len(parts) > handle for parts in self.hub.parts), self.patience
            )
            assert there, f"rank {self.rank} would wait for ever"
            return [
                max(column) for column in zip(*(p[handle] for p in self.hub.parts), strict=True)
            ]


@dataclass
class Rank:
    """One rank's serving loop, without vLLM."""

    lockstep: Lockstep
    wants: list[Pair] = field(default_factory=list)
    can: Callable[[Pair], bool] = lambda pair: True
    refused: list[Pair] = field(default_factory=list)
    launched: list[tuple[int, Pair]] = field(default_factory=list)
    ended: tuple[int, str] | None = None
    steps: int = 0

    def step(self, plan: int = 1) -> None:
        if self.ended is not None:
            return
        self.steps += 1
        try:
            pair = advance(
                self.lockstep,
                plan,
                lambda: self.wants.pop(0) if self.wants else None,
                self.can,
                self.refused.append,
            )
        except (PeerFaultError, DivergedError) as error:
            self.ended = (self.steps, str(error))
            return
        if pair is not None:
            self.launched.append((self.steps, pair))


def advance(lockstep: Lockstep, step: int, *given: Any) -> Pair | None:
    """One step of a session."""
    return lockstep.exchange(*given) if lockstep.count(step) else None


def ranks(count: int = 2, every: int = 4, **settings: Any) -> list[Rank]:
    hub = Hub(count)
    return [Rank(Lockstep(hub.wire(r), steps_per_exchange=every), **settings) for r in range(count)]


def run(team: list[Rank], steps: int) -> None:
    for _ in range(steps):
        for rank in team:
            rank.step()


def test_a_pair_is_launched_by_all_before_the_same_step() -> None:
    team = ranks(3)
    team[0].wants = [PAIR, Pair(Shape(1, 64, 2), False)]
    run(team, 40)
    # Proposed at step 4, checked at 8, committed at 12; then the next one.
    assert team[0].launched == [(12, PAIR), (24, Pair(Shape(1, 64, 2), False))]
    assert all(rank.launched == team[0].launched for rank in team)


def test_only_the_leader_is_asked_for_pairs() -> None:
    team = ranks()
    team[1].wants = [PAIR]
    run(team, 40)
    assert team[0].launched == team[1].launched == []
    assert team[1].wants == [PAIR]


def test_a_pair_that_one_rank_cannot_launch_is_launched_by_none() -> None:
    team = ranks()
    team[0].wants = [PAIR, Pair(Shape(1, 64, 2), False)]
    team[1].can = lambda pair: pair != PAIR
    run(team, 40)
    assert team[0].refused == [PAIR]
    assert [pair for _, pair in team[0].launched] == [Pair(Shape(1, 64, 2), False)]
    assert team[0].launched == team[1].launched


@given(seed=st.integers(0, 1 << 30), faulty=st.integers(0, 2), at=st.integers(1, 60))
def test_a_fault_ends_all_ranks_at_the_same_step(seed: int, faulty: int, at: int) -> None:
    team = ranks(3)
    rng = random.Random(seed)
    team[0].wants = [Pair(Shape(1, 64, n), rng.random() < 0.5) for n in range(2, 30)]
    for step in range(1, 90):
        if step == at:
            team[faulty].lockstep.fail()
        for rank in rng.sample(team, 3):  # host threads in any order within a step
            rank.step()
    assert len({rank.ended for rank in team}) == 1
    assert team[0].ended is not None
    assert f"rank {faulty}" in team[0].ended[1]
    assert at <= team[0].ended[0] <= at + 8
    assert all(rank.launched == team[0].launched for rank in team)


def test_a_rank_whose_check_fails_still_puts_in_its_part() -> None:
    team = ranks()
    team[0].wants = [PAIR]

    def broken(pair: Pair) -> bool:
        raise ValueError("no such shape")

    team[1].can = broken
    run(team, 7)
    team[0].step()
    with pytest.raises(ValueError, match="no such shape"):
        team[1].step()
    run(team, 8)
    assert [rank.ended is not None for rank in team] == [True, True]
    assert team[0].ended == team[1].ended
    assert team[0].launched == team[1].launched == []


def test_ranks_may_be_some_steps_apart() -> None:
    team = ranks(every=4)
    team[0].wants = [PAIR]
    # The leader is up to 3 steps ahead: it never waits for what the other has not put in.
    run(team, 1)
    for _ in range(3):
        team[0].step()
    for _ in range(60):
        team[0].step()
        team[1].step()
    assert team[0].launched == [(12, PAIR)]
    assert team[1].launched == [(12, PAIR)]


def test_a_rank_that_has_missed_a_step_is_found_out() -> None:
    team = ranks()
    run(team, 5)
    team[0].step()
    team[0].step()
    team[1].step(plan=2)  # one step instead of two
    run(team, 12)
    assert all(rank.ended is not None for rank in team)
    assert all("steps" in (rank.ended or (0, ""))[1] for rank in team)


def test_ranks_with_other_settings_are_found_out() -> None:
    hub = Hub(2)
    first = Lockstep(hub.wire(0, 5.0), digest=1)
    second = Lockstep(hub.wire(1, 5.0), digest=2)
    assert _meet(first, second) == [DivergedError, DivergedError]


def test_ranks_at_different_questions_are_found_out() -> None:
    hub = Hub(2)
    one, two = (Lockstep(hub.wire(r, 5.0)) for r in range(2))
    found = in_parallel(
        lambda: one.agree(True, "is the graph captured"), lambda: two.agree(True, "does it fit")
    )
    assert found == [DivergedError, DivergedError]


def test_an_exchange_of_unequal_number_is_found_out() -> None:
    hub = Hub(2)
    one, two = (Lockstep(hub.wire(r, 5.0)) for r in range(2))
    two._number += 1
    assert _meet(one, two) == [DivergedError, DivergedError]


def test_a_fault_at_the_start_meets_the_question_that_the_others_ask() -> None:
    hub = Hub(2)
    one, two = (Lockstep(hub.wire(r, 5.0)) for r in range(2))
    assert in_parallel(lambda: one.agree(True, "anything"), two.fail_now) == [PeerFaultError, None]


def test_all_must_agree() -> None:
    hub = Hub(2)
    one, two = (Lockstep(hub.wire(r, 5.0)) for r in range(2))
    assert in_parallel(lambda: one.agree(True), lambda: two.agree(True)) == [True, True]
    assert in_parallel(lambda: one.agree(True), lambda: two.agree(False)) == [False, False]
    assert in_parallel(lambda: one.decide(PAIR), lambda: two.decide(None)) == [PAIR, PAIR]
    assert in_parallel(lambda: one.decide(None), lambda: two.decide(PAIR)) == [None, None]


def _meet(one: Lockstep, two: Lockstep) -> list[Any]:
    return in_parallel(lambda: one.agree(True), lambda: two.agree(True))


def in_parallel(*calls: Callable[[], Any]) -> list[Any]:
    """What each call returns, or the class of what it raises."""
    results: list[Any] = [None] * len(calls)

    def work(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = type(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a rank hangs"
    return results


class Engine:
    """Notes what is launched; each run takes a millisecond."""

    def __init__(self, refuses: Shape | None = None) -> None:
        self.launched: list[Shape] = []
        self.draws: list[int] = []
        self.checked: list[Shape] = []
        self.open = 0
        self.refuses = refuses

    def refusal(self, batch_size: int, context: int) -> str | None:
        return None

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        return (1, 2, 4)

    def can_launch(self, shape: Shape) -> bool:
        self.checked.append(shape)
        return shape != self.refuses

    def ready(self, shape: Shape) -> bool:
        return True

    def ready_keys(self) -> frozenset[tuple[int, int]]:
        return frozenset({(1, 1), (1, 2), (1, 4)})

    def written_contexts(self) -> None:
        return None

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    waiting = serving

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        raise AssertionError("between steps no rank makes anything")

    def launch(self, shape: Shape, draw: int = 0) -> Shape:
        assert shape != self.refuses
        self.launched.append(shape)
        self.draws.append(draw)
        self.open += 1
        return shape

    def discard(self, ticket: Shape) -> None:
        self.open -= 1

    def poll(self, ticket: Shape) -> Timing:
        self.open -= 1
        return Timing(ticket, 1e-3, 1e-4, {Module.ATTENTION: 1e-4}, (), "full")


class Leader:
    """The rank that leads: chooses pairs, and runs those that all ranks have agreed on."""

    def __init__(
        self, engine: Engine, lockstep: Lockstep, now: Callable[[], float] = time.monotonic
    ) -> None:
        ticks = itertools.count()
        config = ProbeConfig(batch_sizes=(1,), contexts=(64,), overhead_budget=0.5)
        self.agenda = Agenda((Shape(1, 64, 2), Shape(1, 64, 4)))
        queue, budget = Queue(lambda: self.agenda), Budget(0.5)
        clock = HostClock(lambda: next(ticks) * 1e-3)
        self.found: list[Any] = []
        self.engine, self.lockstep = engine, lockstep
        self.consent = RanksConsent(lockstep, lambda pair: can_launch(engine, pair))
        self.prober = Prober(
            Flights(engine, clock, now),
            self.consent,
            StepTimer(clock, budget.earn),
            queue,
            budget,
            self.found.append,
            config,
            now,
        )

    def scan(self) -> None:
        scan(self.prober, 20.0, self.report, sleep=lambda _: None)
        self.lockstep.decide(None)

    def report(self) -> None:
        """The next agenda: settled after two pairs of each shape that could run."""
        put_off = self.prober.counters().put_off
        shapes = tuple(shape for shape in self.agenda.shapes if shape not in put_off)
        found = [result.many.shape for result in self.found]
        self.agenda = Agenda(shapes, settled=all(found.count(shape) >= 2 for shape in shapes))

    def refused(self, pair: Pair) -> None:
        self.consent.answered()
        self.prober.put_off(pair.target)

    def step(self) -> Pair | None:
        """One real step; the pair that all ranks are to launch before it."""
        self.prober.before_step(EngineStep(1, 60, 1, decode=True))
        pair = advance(
            self.lockstep,
            1,
            self.consent.take_proposal,
            lambda checked: can_launch(self.engine, checked),
            self.refused,
        )
        if pair is not None:
            self.consent.answered()
            self.prober.launch_agreed(pair)
        self.prober.timer.begin()
        self.prober.timer.end()
        return pair


def follow_step(engine: Engine, lockstep: Lockstep) -> Pair | None:
    """The same step on another rank."""
    pair = advance(lockstep, 1, lambda: None, lambda p: can_launch(engine, p), lambda p: None)
    if pair is not None:
        follow(engine, pair)
    return pair


def test_a_scan_launches_the_same_on_all_ranks() -> None:
    hub = Hub(2)
    engines = [Engine(), Engine(refuses=Shape(1, 64, 4))]
    one, two = (Lockstep(hub.wire(r, 10.0)) for r in range(2))
    leader = Leader(engines[0], one)
    outcome = in_parallel(
        leader.scan, lambda: follow_scan(engines[1], two, lambda pair: follow(engines[1], pair))
    )
    assert outcome == [None, None]
    assert engines[0].launched == engines[1].launched
    assert engines[0].draws == engines[1].draws == [0, 0, 1, 1]
    assert [pair.many.shape.positions for pair in leader.found] == [2, 2]
    outcomes = leader.prober.outcomes
    assert (outcomes["startup"], outcomes["refused"]) == (2, 1)
    assert leader.prober.counters().put_off == {Shape(1, 64, 4)}
    assert leader.prober.counters().refused == frozenset(), "another rank may have room later"
    assert engines[0].open == engines[1].open == 0, "a ticket was kept"


def test_serving_launches_the_same_on_all_ranks() -> None:
    hub = Hub(2)
    engines = [Engine(), Engine()]
    lockstep, other = (Lockstep(hub.wire(r), steps_per_exchange=2) for r in range(2))
    leader = Leader(engines[0], lockstep)
    for _ in range(60):
        pair = leader.step()
        assert follow_step(engines[1], other) == pair
    assert engines[0].launched == engines[1].launched
    assert engines[0].draws == engines[1].draws
    assert max(engines[0].draws) >= 1
    assert len(leader.found) >= 4
    assert {r.many.shape.positions for r in leader.found} == {2, 4}
    assert leader.prober.budget.probe_seconds > 0, "pairs between steps are charged"


def test_a_pair_that_one_rank_could_not_launch_for_a_moment_is_tried_again() -> None:
    hub = Hub(2)
    engines = [Engine(), Engine(refuses=Shape(1, 64, 4))]
    lockstep, other = (Lockstep(hub.wire(r), steps_per_exchange=2) for r in range(2))
    seconds = [0.0]
    leader = Leader(engines[0], lockstep, lambda: seconds[0])
    for _ in range(400):
        seconds[0] += 0.1
        if seconds[0] > 20.0:
            engines[1].refuses = None
        leader.step()
        follow_step(engines[1], other)
        if seconds[0] < 20.0:
            assert {r.many.shape.positions for r in leader.found} <= {2}
    assert engines[0].launched == engines[1].launched
    assert {r.many.shape.positions for r in leader.found} == {2, 4}, "once refused is for ever"
    assert leader.prober.outcomes["refused"] == 2, "at first, and 10 s later"


def test_a_wire_that_fails_is_named_as_such() -> None:
    class Broken:
        rank, size = 0, 2

        def begin(self, values: Sequence[int]) -> int:
            return 0

        def finish(self, handle: int) -> Sequence[int]:
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(WireError, match="cannot be reached: Connection closed by peer"):
        Lockstep(Broken()).agree(True)


@pytest.mark.parametrize("baseline_first", [True, False])
def test_the_leaders_coin_decides_the_order_on_all_ranks(baseline_first: bool) -> None:
    engine = Engine()
    follow(engine, Pair(Shape(1, 64, 4), baseline_first))
    counts = [shape.positions for shape in engine.launched]
    assert counts == ([1, 4] if baseline_first else [4, 1])
