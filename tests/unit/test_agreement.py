"""Who ends the probe after a fault: one rank at once, or all ranks before the same step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from test_lockstep import Hub

pytest.importorskip("vllm")

from sessions import lead_of, serving, wait_for

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.probe.written_blocks import WrittenBlocks
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.schedule.lockstep import Lockstep
from vllm_nfp.session.agreement import MOST_PROMPT_TOKENS, Alone, keep_prompts
from vllm_nfp.session.in_lockstep import InLockstep
from vllm_nfp.session.in_waves import InWaves
from vllm_nfp.session.session import Session
from vllm_nfp.timing import HostClock, StepTimer
from vllm_nfp.types import State


class Watcher:
    """Fails at one of the steps that it is shown."""

    def __init__(self, fails_at: int = -1) -> None:
        self.timer = StepTimer(HostClock())
        self.fails_at = fails_at
        self.seen = 0

    def serving(self) -> None:
        pass

    def before_step(self, *_: object) -> None:
        self.seen += 1
        if self.seen == self.fails_at:
            raise ValueError("a bug")

    def counters(self, *_: object) -> Counters:
        return Counters()


class Engine:
    """Has nothing to launch."""

    graph_bytes = 0
    written = None

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.closed = False

    def check_proofs(self) -> None:
        if self.fails:
            raise ValueError("a bug")

    def close(self) -> None:
        self.closed = True


STEP = SimpleNamespace(
    num_scheduled_tokens={"a": 1, "b": 1},
    total_num_scheduled_tokens=2,
    scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=[7, 7]),
    scheduled_new_reqs=[],
    scheduled_encoder_inputs={},
    preempted_req_ids=(),
)


FULL = 2
"""Tokens that a step may hold: each is full, and looked at."""


def run(session: Session) -> None:
    session.before_step(STEP)
    session.after_step()


def test_alone_a_fault_ends_the_probe_at_once() -> None:
    told: list[Snapshot] = []
    session = serving(Watcher(fails_at=3), FULL, show=told.append)
    for _ in range(2):
        run(session)
    assert session.active
    run(session)
    assert not session.active
    assert told[-1].state is State.DISABLED
    assert told[-1].reason == "fault in stage probe: ValueError('a bug')"


def test_alone_a_fault_of_the_publisher_ends_the_probe_by_its_own_reason() -> None:
    told: list[Snapshot] = []
    session = serving(Watcher(), FULL, show=told.append)
    lead_of(session).publisher._fault = "publishing failed: a bug"
    run(session)
    assert not session.active
    assert told[-1].reason == "publishing failed: a bug"


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_of_one_rank_ends_the_probe_of_all_before_the_same_step(faulty: int) -> None:
    hub, told = Hub(2), list[Snapshot]()
    engines: list[Any] = [Engine(), Engine(fails=faulty == 1)]
    agreements = [InLockstep(Lockstep(hub.wire(rank), steps_per_exchange=2)) for rank in range(2)]
    watcher = Watcher(fails_at=3 if faulty == 0 else -1)
    team = [
        serving(watcher, FULL, agreements[0], told.append, engines[0]),
        serving(None, FULL, agreements[1], engine=engines[1]),
    ]
    active = []
    for _ in range(12):
        for session in team:
            run(session)
        active.append([session.active for session in team])
    assert active[2] == [True, True], "a rank that has left would be waited for"
    assert all(first == second for first, second in active)
    assert active[-1] == [False, False]
    assert all(engine.closed for engine in engines)
    # The session waits for 1 s at most until it is written.
    wait_for(lambda: bool(told))
    assert f"fault on rank {faulty} of 2" in told[-1].reason
    assert ("stage probe: ValueError('a bug')" in told[-1].reason) is (faulty == 0)


GROUP = AttentionGroup(builder=None, layer_names=("a",), block_tokens=16, num_blocks=500)


class Noting(Engine):
    """Has experts, and launches nothing."""

    tokens = SimpleNamespace(add=lambda _: None)

    def __init__(self) -> None:
        super().__init__()
        self.written = WrittenBlocks([GROUP])

    @property
    def noted(self) -> list[int]:
        return sorted(int(n) for one in self.written._kept(GROUP.kv_cache_group) for n in one)


def beginning(number: int) -> Any:
    """A step that begins a request, which fills a block of this number."""
    request = SimpleNamespace(
        req_id="new", block_ids=([number],), num_computed_tokens=0, prompt_token_ids=None,
        prompt_is_token_ids=None, mm_features=[],
    )  # fmt: skip
    return SimpleNamespace(
        num_scheduled_tokens={"a": 1, "new": 16},
        total_num_scheduled_tokens=17,
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=[7]),
        scheduled_new_reqs=[request],
        scheduled_encoder_inputs={},
        preempted_req_ids=(),
    )


def test_alone_the_blocks_of_every_step_are_noted_whether_it_is_looked_at_or_not() -> None:
    engine, watcher = Noting(), Watcher()
    session = serving(watcher, 2048, engine=engine)
    for number in range(1, 400):
        session.before_step(beginning(number))
        session.after_step()
    assert session.active
    assert watcher.seen < 399
    assert engine.noted == list(range(1, 400))


def test_ranks_note_the_same_blocks_whether_they_lead_or_follow() -> None:
    hub, engines = Hub(2), [Noting(), Noting()]
    agreements = [InLockstep(Lockstep(hub.wire(rank), steps_per_exchange=8)) for rank in range(2)]
    team = [
        serving(Watcher(), 2048, agreements[0], engine=engines[0]),
        serving(None, 2048, agreements[1], engine=engines[1]),
    ]
    for number in range(1, 30):
        for session in team:
            session.before_step(beginning(number))
            session.after_step()
        assert engines[0].noted == engines[1].noted == list(range(1, number + 1))


@pytest.mark.parametrize("agreement", [Alone, InLockstep, InWaves])
def test_a_probe_ahead_of_a_step_does_not_count_what_that_step_writes(agreement: Any) -> None:
    engine, seen = Noting(), list[list[int]]()

    class Looking(Watcher):
        def before_step(self, *_: object) -> None:
            seen.append(engine.noted)

    class Exchange:
        """One rank's, which launches at every step."""

        rank, leads = 0, True
        agree = least = staticmethod(lambda value, _="": value)

        def count(self, _: int) -> bool:
            return True

        def exchange(self, *_: object) -> None:
            seen.append(engine.noted)

        def check(self) -> None:
            pass

    with_others: Any = Exchange()
    made = {
        Alone: Alone,
        InLockstep: lambda: InLockstep(with_others),
        InWaves: lambda: InWaves(with_others, with_others, leads=True),
    }[agreement]()
    session = serving(Looking(), FULL, made, engine=engine)
    session.before_step(beginning(5))
    assert seen
    assert all(noted == [] for noted in seen)
    assert engine.noted == [5]


def test_the_first_prompts_of_a_step_are_kept_and_those_without_text_are_not() -> None:
    def new(ids: list[int]) -> SimpleNamespace:
        return SimpleNamespace(prompt_token_ids=ids, prompt_is_token_ids=None, mm_features=[])

    kept: list[list[int]] = []
    engine: Any = SimpleNamespace(tokens=SimpleNamespace(add=kept.append))
    prompts = [[], list(range(MOST_PROMPT_TOKENS + 9)), [], [5], [6], [7]]
    keep_prompts(engine, SimpleNamespace(scheduled_new_reqs=[new(ids) for ids in prompts]))
    assert kept == [list(range(MOST_PROMPT_TOKENS)), [5]]
    keep_prompts(engine, SimpleNamespace(scheduled_new_reqs=[]))
    keep_prompts(None, SimpleNamespace(scheduled_new_reqs=[new([5])]))
    assert len(kept) == 2
