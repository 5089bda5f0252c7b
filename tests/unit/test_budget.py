"""The two budgets under the load of a whole server: who is delayed, how often, and who is not.

A scheduler like vLLM's serves requests that arrive at random: running sequences first, prompts in
chunks, then waiting requests as long as tokens, sequences and the KV cache allow.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nfp.adapter.steps import StepLimits, cached_tokens_of, step_of
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.idle import IdleTime
from vllm_nfp.session.looks import Looks
from vllm_nfp.timing import Periods, Sampler
from vllm_nfp.types import EngineStep

STEP_SECONDS, PAIR_SECONDS = 0.008, 0.025
TOKEN_SECONDS = 2e-5
"""A prompt of 8192 tokens takes 0.16 s, as an 8B model's on an H100."""
OUTPUT_TOKENS = 128
SHARE, STEP_SHARE = 0.01, 0.0025
"""The defaults."""


@dataclass
class Request:
    prompt: int
    arrived: float
    computed: int = 0
    written: int = 0

    @property
    def known(self) -> int:
        """Tokens whose keys are needed: the prompt, and what was written before a preemption."""
        return self.prompt + self.written


@dataclass
class Server:
    """A server under load; seconds are those of its device."""

    prompt: int
    streams: int
    tokens: int
    poisson: bool = True
    sequences: int = 256
    cached_tokens: float = 400_000.0
    now: float = 0.0
    running: list[Request] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)
    delayed: list[int] = field(default_factory=list)
    """At which decode step each pair ran."""
    decodes: int = 0
    first_tokens: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Seconds from one token to the next, of each sequence."""
    queued: int = 0
    """Pairs that ran while a request waited."""

    def __post_init__(self) -> None:
        self.random = random.Random(1)
        self.budget = Budget(SHARE, STEP_SHARE)
        limits = StepLimits(self.sequences, self.tokens, self.cached_tokens)
        view: Any = SimpleNamespace(decode_positions=1)
        self.looks = Looks(Sampler(first=1), limits, view, Periods())
        # As many requests as keep this many streams running, with steps a fifth longer by prompts.
        self.rate = self.streams / (OUTPUT_TOKENS * 1.2 * STEP_SECONDS)
        self.next_arrival = 0.0
        self.read = 0.0
        if not self.poisson:
            self.waiting.extend(Request(self.prompt, 0.0) for _ in range(self.streams))

    def serve(self, seconds: float) -> None:
        while self.now < seconds:
            self._arrive()
            planned = self._schedule()
            if planned is None:
                self.now = max(self.now, self.next_arrival)
                continue
            self._step(planned)

    def _arrive(self) -> None:
        while self.poisson and self.next_arrival <= self.now:
            self.waiting.append(Request(self.prompt, self.next_arrival))
            self.next_arrival += self.random.expovariate(self.rate)

    def _kept(self) -> int:
        return sum(request.computed for request in self.running)

    def _schedule(self) -> Any:
        left, counts, preempted = self.tokens, dict[int, int](), set[int]()
        while self._kept() + len(self.running) > self.cached_tokens:
            victim = self.running.pop()
            victim.computed = 0
            self.waiting.appendleft(victim)
            preempted.add(id(victim))
        for request in self.running:
            counts[id(request)] = min(max(1, request.known - request.computed), left)
            left -= counts[id(request)]
        new = []
        while self.waiting and left and not preempted and len(self.running) < self.sequences:
            request = self.waiting[0]
            held = sum(max(r.known, r.computed) for r in self.running)
            if held + request.known > self.cached_tokens:
                break
            self.running.append(self.waiting.popleft())
            new.append(request)
            counts[id(request)] = min(request.known, left)
            left -= counts[id(request)]
        self.running = [r for r in self.running if counts.get(id(r))] + [
            r for r in self.running if not counts.get(id(r))
        ]
        counts = {key: count for key, count in counts.items() if count}
        if not counts:
            return None
        cached = [r.computed for r in self.running if r not in new and counts.get(id(r))]
        return SimpleNamespace(
            num_scheduled_tokens=counts,
            total_num_scheduled_tokens=sum(counts.values()),
            scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=cached),
            scheduled_new_reqs=new,
            scheduled_encoder_inputs={},
            preempted_req_ids=preempted,
        )

    def _step(self, planned: Any) -> None:
        begun, stands_for = self.now, self.looks.at(planned)
        tokens = planned.total_num_scheduled_tokens
        decode = tokens == len(planned.num_scheduled_tokens) and not planned.scheduled_new_reqs
        if stands_for:
            self.budget.earn(self.read)
            step = self.looks.step(planned)
            assert step is not None and step.decode == decode
            self.budget.observe(step, stands_for)
            if decode and self.budget.affords(PAIR_SECONDS):
                self.budget.started()
                self.budget.spend(PAIR_SECONDS)
                self.delayed.append(self.decodes)
                self.queued += bool(self.waiting)
                self.now += PAIR_SECONDS
        seconds = STEP_SECONDS + TOKEN_SECONDS * (tokens - len(planned.num_scheduled_tokens))
        if stands_for:
            self.read = seconds * stands_for
        self.now += seconds
        self.decodes += decode
        self._write(planned.num_scheduled_tokens, self.now - begun)

    def _write(self, counts: dict[int, int], seconds: float) -> None:
        for request in list(self.running):
            if id(request) not in counts:
                continue
            decoded = request.written > 0
            request.computed += counts[id(request)]
            if request.computed < request.known:
                continue
            request.written += 1
            if decoded:
                self.gaps.append(seconds)
            else:
                self.first_tokens.append(self.now - request.arrived)
            if request.written == OUTPUT_TOKENS:
                self.running.remove(request)
                if not self.poisson:
                    self.waiting.append(Request(self.prompt, self.now))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def most_within(places: list[int], window: int) -> int:
    return max(sum(at <= other < at + window for other in places) for at in places)


@pytest.mark.parametrize("tokens", [2048, 8192])
@pytest.mark.parametrize(("streams", "prompt"), [(1, 800), (8, 3500), (32, 900)])
def test_a_busy_healthy_server_buys_pairs_and_delays_no_more_than_it_may(
    streams: int, prompt: int, tokens: int
) -> None:
    """As ``benchmarks/serving/user_traffic.py`` sends them, but at random moments."""
    server = Server(prompt, streams, tokens)
    server.serve(240.0)
    allowed = STEP_SHARE * server.decodes
    assert 0.65 * allowed < len(server.delayed) <= allowed
    assert len(server.delayed) * PAIR_SECONDS <= SHARE * server.now
    assert most_within(server.delayed, 1000) <= 1 + STEP_SHARE * 1000
    assert server.queued == 0, "a pair ran while a request waited"
    assert 0.5 < server.budget.slack <= 1.0


def test_full_speed_on_one_stream_buys_some_twenty_pairs_a_minute() -> None:
    server = Server(3500, 1, 2048, poisson=False)
    server.serve(60.0)
    assert 15 <= len(server.delayed) <= 20


def test_the_99th_percentile_between_tokens_stays_and_first_tokens_wait_for_a_pair_at_most() -> (
    None
):
    found = []
    for share in (0.0, SHARE):
        server = Server(900, 8, 8192)
        server.budget = Budget(share, STEP_SHARE)
        server.serve(240.0)
        found.append(server)
    without, probed = found
    assert len(probed.delayed) > 40 and not without.delayed
    assert percentile(probed.gaps, 0.98) == pytest.approx(percentile(without.gaps, 0.98), rel=0.02)
    assert percentile(probed.gaps, 0.99) == pytest.approx(percentile(without.gaps, 0.99), rel=0.02)
    # The same requests in the same order: each waits for the rest of one pair, and rarely.
    pairs = zip(probed.first_tokens, without.first_tokens, strict=False)
    later = [one - other for one, other in pairs]
    assert sum(later) / len(later) < 0.1 * PAIR_SECONDS


@pytest.mark.parametrize(
    "full",
    [
        {"sequences": 32},
        {"cached_tokens": 30_000.0},
        {"prompt": 3500, "streams": 32, "tokens": 2048, "poisson": True},
    ],
    ids=["sequences", "KV cache", "prompts"],
)
def test_nothing_is_probed_on_a_saturated_server(full: dict[str, Any]) -> None:
    server = Server(**{"prompt": 900, "streams": 64, "tokens": 8192, "poisson": False, **full})
    server.serve(5.0)  # all are taken up
    server.delayed.clear()
    server.serve(120.0)
    assert len(server.waiting) > 16, "not saturated"
    assert len(server.delayed) <= 1
    assert server.budget.slack < 0.1


DECODE = EngineStep(batch_size=1, context=50, positions=1, decode=True, fullness=0.5)
FULL = EngineStep(batch_size=1, context=50, positions=2048, decode=False, fullness=0.5, full=True)
PREEMPTED = EngineStep(1, 50, 1, decode=True, fullness=0.5, preempted=True)


def test_a_step_that_stands_for_others_counts_for_all_of_them() -> None:
    one_by_one, at_once = Budget(0.01, 0.02), Budget(0.01, 0.02)
    for budget, looks, stands_for in ((one_by_one, 24, 1), (at_once, 3, 8)):
        budget.observe(PREEMPTED)
        for _ in range(looks):
            budget.observe(DECODE, stands_for)
        budget.earn(100.0)
        assert not budget.affords(1e-9), "sequences that were preempted wait"
    assert one_by_one.steps == at_once.steps == 25
    assert one_by_one.slack == pytest.approx(at_once.slack, rel=0.01)
    for budget, looks, stands_for in ((one_by_one, 300, 1), (at_once, 38, 8)):
        for _ in range(looks):
            budget.observe(DECODE, stands_for)
        budget.earn(100.0)
        assert budget.affords(0.1)
    assert one_by_one.decode_steps == 325


def test_a_preemption_outlasts_what_the_next_look_stands_for() -> None:
    budget = Budget(0.01)
    budget.observe(PREEMPTED)
    # Most of these steps may have been before the preemption.
    for stands_for in (15, 126):
        budget.observe(DECODE, stands_for)
        budget.earn(100.0)
        assert not budget.affords(1e-9), "less than 128 steps have passed"
    budget.observe(DECODE, 8)
    budget.earn(100.0)
    assert budget.affords(1e-9)


def test_nothing_is_earned_or_spent_in_a_full_step_and_much_in_the_next() -> None:
    budget = Budget(0.01)
    budget.observe(FULL)
    budget.earn(100.0)
    assert not budget.affords(1e-9)
    budget.observe(DECODE)
    assert not budget.affords(1e-9), "the full step has earned"
    budget.earn(100.0)
    assert budget.affords(0.48)


def test_many_full_steps_take_the_budget_away_little_by_little() -> None:
    earned = []
    for full in (0, 8, 64, 256):
        budget = Budget(0.01)
        for _ in range(full):
            budget.observe(FULL)
        budget.observe(DECODE)
        budget.earn(100.0)
        earned.append(budget._saved)
    assert earned == sorted(earned, reverse=True)
    assert earned[1] > 0.8 * earned[0] > 2.0 * earned[2] > 10.0 * earned[3]


def test_the_slack_that_is_shown_is_not_that_of_the_last_step() -> None:
    budget = Budget(0.01)
    for _ in range(20):
        for _ in range(99):
            budget.observe(DECODE)
        budget.observe(FULL)
    assert budget.slack == pytest.approx(0.5, abs=0.03)


def test_what_the_kv_cache_holds_bounds_the_budget_as_the_sequences_do() -> None:
    def planned(computed: list[int]) -> Any:
        return SimpleNamespace(
            num_scheduled_tokens={str(i): 1 for i in range(len(computed))},
            total_num_scheduled_tokens=len(computed),
            scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=computed),
            scheduled_new_reqs=[],
            scheduled_encoder_inputs={},
            preempted_req_ids=None,
        )

    def fullness(computed: list[int]) -> float:
        step = step_of(planned(computed), 1, StepLimits(100, 2048, 10_000.0))
        assert step is not None
        return step.fullness

    assert fullness([99] * 10) == 0.1, "10 of 100 sequences, and a tenth of the KV cache"
    assert fullness([899] * 10) == 0.9
    assert fullness([1999] * 10) == 0.1, "they share prefixes, so that the sum says nothing"


class FullAttentionSpec:
    block_size = 16


class SlidingWindowSpec:
    block_size = 16


def test_layers_with_a_window_take_little_of_the_kv_cache() -> None:
    def config(*specs: Any) -> Any:
        groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs]
        return SimpleNamespace(num_blocks=1000, kv_cache_groups=groups)

    assert cached_tokens_of(config(FullAttentionSpec())) == 16_000
    assert cached_tokens_of(config(FullAttentionSpec(), SlidingWindowSpec())) == 16_000
    assert cached_tokens_of(config(FullAttentionSpec(), FullAttentionSpec())) == 8_000
    assert cached_tokens_of(config(SlidingWindowSpec())) == float("inf")


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


def test_a_probe_that_another_engine_plans_waits_for_debts_load_and_the_fraction_of_steps() -> None:
    budget = Budget(0.1, step_share=0.25)
    assert budget.in_debt, "no step has been run since which one may be delayed"
    for _ in range(8):
        budget.observe(DECODE)
    assert not budget.in_debt
    budget.spend(1.0)
    assert budget.in_debt
    budget.affords(20.0)
    budget.earn(100.0)
    assert not budget.in_debt
    budget.observe(FULL)
    assert budget.in_debt


def test_idle_time_pays_for_pairs_of_others_even_where_none_may_be_planned() -> None:
    idle = IdleTime(0.0)
    idle.spend(0.5, now=1.0, settled=False)
    assert idle.probe_seconds == 0.5
