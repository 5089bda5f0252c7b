"""The two budgets under the load of a whole server: who is delayed, how often, and who is not.

A scheduler like vLLM's gives steps to requests that arrive at random: decoding sequences first, then
prompts in chunks, then waiting requests as long as tokens, sequences and the KV cache allow.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from vllm_nfp.adapter.steps import StepLimits
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.session.looks import Looks
from vllm_nfp.timing import Sampler

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
        self.looks = Looks(Sampler(first=1), limits, view)
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
