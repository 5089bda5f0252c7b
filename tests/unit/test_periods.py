"""From the begin of one decode step to that of the next: what counts, and what does not."""

from __future__ import annotations

import random
import time
import timeit
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from vllm_nfp.timing import HostClock, Periods, StepTimer
from vllm_nfp.timing.series import ENOUGH_PERIODS, SAMPLES_KEPT, Series
from vllm_nfp.types import EngineStep

NONE: tuple[str, ...] = ()


class Now:
    """A clock that the test moves on."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Steps:
    """Steps of 10 ms of four sequences, each of which is looked at unless told otherwise."""

    def __init__(self) -> None:
        self.now = Now()
        self.series = Series()
        self.periods = Periods(self.now)

    def run(
        self,
        count: int = 1,
        sequences: int = 4,
        tokens: int | None = None,
        new: Sequence[str] = NONE,
        seconds: float = 0.01,
        looked: bool = True,
    ) -> None:
        for _ in range(count):
            self.periods.step(sequences, sequences if tokens is None else tokens, new)
            if looked:
                self.periods.open(self.series)
            self.now.seconds += seconds

    @property
    def filed(self) -> list[float]:
        """The mean periods, in ms."""
        return [round(1e3 * s, 6) for s in self.series.periods[: self.series.periods_timed]]

    @property
    def steps(self) -> list[int]:
        return list(self.series.in_period[: self.series.periods_timed])


@pytest.fixture
def steps() -> Steps:
    return Steps()


def test_a_step_whose_neighbours_are_like_it_has_a_period(steps: Steps) -> None:
    steps.run(2)
    assert steps.filed == [], "the period of the second has not ended"
    steps.run()
    assert steps.filed == [10.0]
    steps.run(3)
    assert steps.filed == [10.0] * 4


def test_an_interval_goes_on_over_steps_that_are_not_looked_at(steps: Steps) -> None:
    steps.run(3, looked=False)
    steps.run()
    steps.run(6, seconds=0.02, looked=False)
    steps.run()
    assert (steps.filed, steps.steps) == ([round((10 + 6 * 20) / 7, 6)], [7])


@pytest.mark.parametrize("looked", [True, False])
def test_a_step_that_reads_a_prompt_is_in_no_period(steps: Steps, looked: bool) -> None:
    """Nor is the step after it: with async scheduling its begin waits for the prompt's end."""
    steps.run(4)
    steps.run(sequences=5, tokens=4 + 300, new=["a"], seconds=0.5, looked=looked)
    steps.run(sequences=5, tokens=4 + 200, seconds=0.4, looked=looked)  # the prompt's second chunk
    steps.run(sequences=5, seconds=0.3)
    assert set(steps.filed) == {10.0}
    steps.run(3, sequences=5)
    assert set(steps.filed) == {10.0} and len(steps.filed) == 4


def test_a_request_of_one_token_is_a_prompt_as_well(steps: Steps) -> None:
    """Another one has ended: sequences and tokens stay the same."""
    steps.run(4)
    steps.run(new=["a"], seconds=0.5)
    steps.run(seconds=0.3)
    steps.run(3)
    assert set(steps.filed) == {10.0}


def test_an_idle_time_is_in_no_period(steps: Steps) -> None:
    steps.run(4, sequences=1)
    steps.now.seconds += 60.0
    steps.run(sequences=1, new=["b"])
    steps.run(3, sequences=1)
    assert set(steps.filed) == {10.0}


def test_a_step_that_runs_nothing_ends_an_interval(steps: Steps) -> None:
    steps.run(4)
    steps.periods.interrupt()
    steps.now.seconds += 60.0
    steps.run(4)
    assert steps.filed == [10.0] * 4, "two of each four"


def test_another_batch_size_ends_an_interval_at_the_last_begin_before(steps: Steps) -> None:
    steps.run(3, looked=False)
    steps.run()
    steps.run(4, looked=False)
    steps.run(sequences=3, seconds=0.9)
    assert (steps.filed, steps.steps) == ([10.0], [4])
    steps.run(3, sequences=3)
    assert set(steps.filed) == {10.0}


def test_as_many_tokens_of_fewer_sequences_are_another_step(steps: Steps) -> None:
    steps.run(3, sequences=8, tokens=8)
    steps.run(3, sequences=8, tokens=8, looked=False)
    steps.run(5, sequences=2, tokens=8, seconds=0.03, looked=False)
    steps.run(2, sequences=2, tokens=8, seconds=0.03)
    assert (steps.filed, steps.steps) == ([10.0, 10.0, 30.0], [1, 3, 1])


def test_drafts_that_are_found_or_not_are_other_steps(steps: Steps) -> None:
    for _ in range(10):
        steps.run(3, tokens=4)
        steps.run(3, tokens=16, seconds=0.03)
    assert set(steps.filed) == {10.0, 30.0}, "no period is of both"


def test_a_probe_is_in_no_period(steps: Steps) -> None:
    for _ in range(5):
        steps.run(4)
        steps.periods.step(4, 4, NONE)
        steps.periods.interrupt()  # a pair is launched ahead of this step
        steps.periods.open(steps.series)
        steps.now.seconds += 0.5
        steps.run(seconds=0.3)  # the device is behind
    assert set(steps.filed) == {10.0}
    assert len(steps.filed) > 10


def test_a_step_whose_drafts_are_cut_is_in_no_period(steps: Steps) -> None:
    steps.run(4, tokens=16)
    steps.periods.cut(16)  # all are run
    steps.run(1, tokens=16)
    assert steps.filed == [10.0] * 3
    steps.periods.cut(9)
    steps.now.seconds -= 0.005
    steps.run(4, tokens=16)
    assert steps.filed == [10.0] * 5


def test_the_median_is_told_once_there_are_enough() -> None:
    series = Series()
    for _ in range(ENOUGH_PERIODS - 1):
        series.add_period(0.01, 1)
    assert series.median_period is None
    series.add_period(0.03, 1 + 2 * ENOUGH_PERIODS)
    assert series.median_period == 0.03, "each counts for its steps"
    for _ in range(SAMPLES_KEPT):
        series.add_period(0.02, 1)
    assert series.median_period == 0.02, "of the recent ones"


@dataclass
class Async:
    """An engine that begins a step while the one before runs, on a device that is always busy.

    A step begins once the step before the last has ended: at most two are on their way.
    """

    host: float = 0.0002
    """Seconds of the host between the end that it waits for and the begin."""
    now: Now = field(default_factory=Now)
    ends: list[float] = field(default_factory=lambda: [0.0, 0.0])
    timer: StepTimer = field(init=False)

    def __post_init__(self) -> None:
        self.timer = StepTimer(HostClock(self.now), now=self.now)

    def step(
        self, planned: EngineStep, work: float, new: Sequence[str] = NONE, probe: float = 0.0
    ) -> None:
        self.now.seconds = max(self.now.seconds, self.ends[-2]) + self.host
        tokens = planned.batch_size * planned.positions if planned.decode else 999
        self.timer.periods.step(planned.batch_size, tokens, new)
        self.timer.describe(planned)
        if probe or self.busy:
            self.timer.periods.interrupt()
        start = max(self.ends[-1], self.now.seconds)
        self.probed = start + probe if probe else 0.0
        self.timer.begin()
        self.timer.end()
        self.ends.append(start + probe + work)

    probed: float = 0.0
    """When the latest probe ends on the device."""

    @property
    def busy(self) -> bool:
        return self.probed > self.now.seconds


def test_with_async_scheduling_a_period_is_the_work_of_one_step() -> None:
    rng, engine = random.Random(5), Async()
    decode, prompt = EngineStep(8, 900, 1, True), EngineStep(8, 900, 40, False)
    for _ in range(2000):
        kind = rng.random()
        if kind < 0.2:
            engine.step(prompt, 0.2, new=["a"] if kind < 0.1 else NONE)
        else:
            engine.step(decode, 0.004, probe=0.05 if kind > 0.95 else 0.0)
    series = engine.timer.times.of(8, 900, 1)
    assert series is not None and series.periods_timed > 500
    filed = series.periods[:SAMPLES_KEPT]
    assert min(filed) > 0.004 - 1e-9
    assert max(filed) < 0.0045, "no prompt and no probe is in any of them"
    assert series.median_period == pytest.approx(0.004)


def test_a_host_that_the_device_waits_for_is_in_the_period() -> None:
    engine = Async(host=0.006)
    for _ in range(100):
        engine.step(EngineStep(1, 900, 1, True), 0.004)
    series = engine.timer.times.of(1, 900, 1)
    assert series is not None and series.median_period == pytest.approx(0.006)


def test_a_prompt_opens_no_interval() -> None:
    """Chunks of a long prompt have as many tokens as the ones before."""
    engine = Async()
    for _ in range(100):
        engine.step(EngineStep(1, 900, 999, False), 0.2)
    assert engine.timer.times.of(1, 900, 1).periods_timed == 0  # type: ignore[union-attr]


def test_a_step_costs_next_to_nothing() -> None:
    """Some 0.15 us; the bound leaves room for a busy machine, and none for a file or a lock."""
    periods, new = Periods(time.perf_counter), list[str]()
    periods.step(32, 32, new)
    periods.open(Series())
    least = min(timeit.repeat(lambda: periods.step(32, 32, new), number=2000, repeat=50))
    assert least / 2000 < 2e-6
