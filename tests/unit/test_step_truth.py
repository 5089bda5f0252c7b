"""What is told of all steps against what all steps were, where prompts are mixed in.

Few steps are looked at, so that what is told has an error of sampling. Its size is known: a look
stands for x steps, uniform from 1 to 2m - 1, and of n such steps with independent values of
variance v the error of the sum has the variance 4/3 (m - 1) n v.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from sessions import lead_of, serving

from vllm_nfp.config import ProbeConfig
from vllm_nfp.schedule import Budget, Prober, Queue
from vllm_nfp.schedule.agenda import NO_AGENDA
from vllm_nfp.schedule.consent import OwnConsent
from vllm_nfp.schedule.flights import Flights
from vllm_nfp.schedule.lockstep import STEPS_PER_EXCHANGE
from vllm_nfp.session.agreement import Alone
from vllm_nfp.session.in_lockstep import InLockstep
from vllm_nfp.session.session import Session
from vllm_nfp.session.started import Agreement
from vllm_nfp.session.timing_only import TimingOnly
from vllm_nfp.timing import HostClock, StepTimer
from vllm_nfp.timing.sampling import LOOKED_ONE_IN

MOST_TOKENS = 256
"""--max-num-batched-tokens: a prompt of 300 tokens takes a full step, and one for the rest."""
SIGMAS = 4.0
MOST_OPEN = 2 * LOOKED_ONE_IN - 2
"""Steps since the last look, which no look stands for yet."""

WITHOUT_IDS = SimpleNamespace(prompt_token_ids=None, prompt_is_token_ids=None)
"""A prompt."""


def bound(values: Sequence[float]) -> float:
    """Largest error of the sum of the steps that are sampled, by chance and at the end."""
    variance = 4.0 / 3.0 * (LOOKED_ONE_IN - 1) * len(values) * statistics.pvariance(values)
    return SIGMAS * math.sqrt(variance) + MOST_OPEN * max(values, default=0.0)


@dataclass
class Truth:
    """What the steps were."""

    seconds: list[float] = field(default_factory=list)
    decodes: int = 0
    not_full: list[tuple[float, bool]] = field(default_factory=list)
    """Seconds of the steps that were not full of tokens, and whether each was a decode step."""

    def add(self, seconds: float, decode: bool, full: bool) -> None:
        self.seconds.append(seconds)
        self.decodes += decode
        if not full:
            self.not_full.append((seconds, decode))


class Now:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def output(sequences: int, tokens: int, new: bool = False) -> Any:
    counts = {str(i): 1 for i in range(sequences)}
    counts["0"] += tokens - sequences
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=tokens,
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=[100] * sequences),
        scheduled_new_reqs=[SimpleNamespace(prompt_token_ids=None, prompt_is_token_ids=None)]
        if new
        else [],
        scheduled_encoder_inputs={},
        preempted_req_ids=None,
    )


class NoExchange:
    """Counts steps as the ranks' lockstep does, and decides nothing."""

    steps = rank = 0
    leads = True

    def agree(self, possible: bool, topic: str = "") -> bool:
        return possible

    def least(self, value: int, topic: str = "") -> int:
        return value

    def count(self, step: int) -> bool:
        self.steps += 1
        return self.steps % STEPS_PER_EXCHANGE == 0

    def exchange(self, *_: Any) -> None:
        pass


def in_lockstep() -> InLockstep:
    lockstep: Any = NoExchange()
    return InLockstep(lockstep)


Kind = Callable[[], Agreement]


def session_of(now: Callable[[], float], kind: Kind = Alone, probes: bool = True) -> Session:
    """A session past its first steps, with nothing to probe."""
    clock, budget = HostClock(now), Budget(0.01, 0.0025)
    timer = StepTimer(clock, budget.earn, now)
    engine: Any = SimpleNamespace(ready_keys=frozenset, written_contexts=tuple)
    prober = Prober(
        Flights(engine, clock, now),
        OwnConsent(),
        timer,
        Queue(lambda: NO_AGENDA),
        budget,
        lambda _: None,
        ProbeConfig(),
        now,
    )
    return serving(prober if probes else TimingOnly(timer), MOST_TOKENS, kind())


def prober_of(session: Session) -> Prober:
    watcher = lead_of(session).watcher
    assert isinstance(watcher, Prober)
    return watcher


def run(session: Session, now: Now, planned: Any, seconds: float, truth: Truth) -> None:
    session.before_step(planned)
    now.seconds += seconds
    session.after_step()
    tokens = planned.total_num_scheduled_tokens
    truth.add(seconds, tokens == len(planned.num_scheduled_tokens), tokens == MOST_TOKENS)


def serve(session: Session, now: Now, prompts: float, steps: int, prompt_seconds: float) -> Truth:
    """Steps of which some, as many as ``prompts`` says, begin a prompt of 300 tokens."""
    truth, rng = Truth(), random.Random(3)
    full, rest, decode = output(8, MOST_TOKENS, new=True), output(8, 8 + 44), output(8, 8)
    while len(truth.seconds) < steps:
        if rng.random() < prompts:
            run(session, now, full, prompt_seconds * rng.uniform(0.9, 1.1), truth)
            run(session, now, rest, 0.3 * prompt_seconds, truth)
        run(session, now, decode, 0.01 * rng.uniform(0.8, 1.2), truth)
    lead_of(session).watcher.timer.settle()
    return truth


def counted(session: Session) -> int:
    return sum(row.samples for row in lead_of(session).watcher.timer.times.latencies())


def assert_true(session: Session, truth: Truth) -> None:
    assert counted(session) == pytest.approx(
        truth.decodes, abs=bound([float(decode) for _, decode in truth.not_full])
    )
    assert prober_of(session).budget.real_seconds == pytest.approx(
        sum(truth.seconds), abs=bound([seconds for seconds, _ in truth.not_full])
    )
    budget = prober_of(session).budget
    assert budget.steps == pytest.approx(len(truth.seconds), abs=MOST_OPEN)
    assert budget.decode_steps == counted(session)


@pytest.mark.parametrize("kind", [Alone, in_lockstep])
@pytest.mark.parametrize("prompt_seconds", [0.02, 0.5])
@pytest.mark.parametrize("prompts", [0.0, 0.02, 0.1, 0.3])
def test_steps_and_seconds_are_those_of_all_steps_whatever_is_mixed_in(
    prompts: float, prompt_seconds: float, kind: Kind
) -> None:
    now = Now()
    session = session_of(now, kind)
    truth = serve(session, now, prompts, 20_000, prompt_seconds)
    assert min(truth.decodes, len(truth.seconds) - truth.decodes) > 700 or not prompts
    assert_true(session, truth)


def test_without_probes_the_steps_are_counted_as_truly() -> None:
    now = Now()
    session = session_of(now, probes=False)
    truth = serve(session, now, 0.1, 20_000, 0.5)
    assert counted(session) == pytest.approx(
        truth.decodes, abs=bound([float(decode) for _, decode in truth.not_full])
    )


@pytest.mark.parametrize("place", range(STEPS_PER_EXCHANGE))
def test_a_rhythm_of_the_load_does_not_meet_that_of_the_ranks(place: int) -> None:
    """At every eighth step the ranks exchange; here a prompt is read at every eighth as well."""
    now, truth = Now(), Truth()
    session = session_of(now, in_lockstep)
    for number in range(20_000):
        reads = number % STEPS_PER_EXCHANGE == place
        run(session, now, output(8, 60) if reads else output(8, 8), 0.1 if reads else 0.01, truth)
    lead_of(session).watcher.timer.settle()
    # Values are not independent here. A look is off by at most the range of the values for each
    # of the x - 1 others that it stands for, whatever the rhythm.
    squares = [(x - 1) ** 2 for x in range(1, 2 * LOOKED_ONE_IN)]
    most = SIGMAS * math.sqrt(statistics.mean(squares) * len(truth.seconds) / LOOKED_ONE_IN)
    assert counted(session) == pytest.approx(truth.decodes, abs=most + MOST_OPEN)
    assert prober_of(session).budget.real_seconds == pytest.approx(
        sum(truth.seconds), abs=0.09 * most + 0.1 * MOST_OPEN
    )


HOST_SECONDS = 0.002
NOTHING = SimpleNamespace(num_scheduled_tokens={}, total_num_scheduled_tokens=0)


@pytest.mark.parametrize(("kind", "probes"), [(Alone, True), (Alone, False), (in_lockstep, True)])
@pytest.mark.parametrize("prompts", [0.0, 0.3])
def test_the_period_of_a_step_holds_its_host_time_and_no_prompt(
    prompts: float, kind: Kind, probes: bool
) -> None:
    now, truth, rng = Now(), Truth(), random.Random(3)
    session = session_of(now, kind, probes)
    full, rest, decode = output(8, MOST_TOKENS, new=True), output(8, 8 + 44), output(8, 8)
    for _ in range(5000):
        if rng.random() < prompts:
            run(session, now, full, 0.5, truth)
            run(session, now, rest, 0.2, truth)
        if rng.random() < 0.1:  # nothing runs for a while, such as while a KV cache is fetched
            session.before_step(NOTHING)
            now.seconds += 60.0
        run(session, now, decode, 0.01, truth)
        now.seconds += HOST_SECONDS
    timer = lead_of(session).watcher.timer
    timer.settle()
    (row,) = timer.times.latencies()
    assert row.median_seconds == pytest.approx(0.01)
    assert row.period_seconds == pytest.approx(0.01 + HOST_SECONDS)
    series = timer.times.of(8, 100, 1)
    assert series is not None
    assert max(series.periods) == pytest.approx(0.01 + HOST_SECONDS), "none holds a prompt"


def test_steps_that_vllm_cuts_have_no_period_whether_they_are_looked_at_or_not() -> None:
    now, truth = Now(), Truth()
    session = session_of(now)
    for _ in range(2000):
        session.before_step(output(8, 8))
        session.trimmed(8)
        now.seconds += 0.01
        session.after_step()
    series = lead_of(session).watcher.timer.times.of(8, 100, 1)
    assert series is not None and series.periods_timed > 100, "all was run"
    before = series.periods_timed
    for _ in range(500):
        run(session, now, output(8, 8), 0.01, truth)
        session.before_step(output(8, 8))
        session.trimmed(6)
        now.seconds += 0.005
        session.after_step()
    assert series.periods_timed <= before + 1
