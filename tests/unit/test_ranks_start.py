"""Two ranks from their start to the end of the probe, without vLLM: both probe, or none does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_agreement import STEP
from test_lockstep import Engine as Launches
from test_lockstep import Hub, in_parallel

pytest.importorskip("vllm")

from sessions import lead_of, session_of, started_of, vllm_config

from vllm_nfp.adapter.dispatch import NO_GRAPHS
from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule import Prober
from vllm_nfp.schedule.lockstep import Lockstep
from vllm_nfp.session import first_scan, publication, start_probing
from vllm_nfp.session import start as module
from vllm_nfp.session.session import Session
from vllm_nfp.types import Module, Shape, State

PATIENCE = 20.0
"""Seconds until a rank that waits for another is taken to wait for ever."""


class Engine(Launches):
    """A probe engine whose proofs and graphs cost nothing."""

    graph_bytes, timed_layers, num_layers, shares_graph_memory = 0, 0, 1, False
    on_gpu = False
    modules, rules, written = (Module.ATTENTION,), NO_GRAPHS, None
    counts: tuple[int, ...] = (1, 2)
    made: dict[int, Engine]

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.ranks = arguments[-1]
        self.closed = False
        self.made[threading.get_ident()] = self

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        return self.counts

    def check_kv_cache_untouched(self) -> None:
        assert self.ranks.all(True, "proof")

    def prepare(self, time_is_up: Callable[[], bool]) -> None:
        pass

    def give_back_cache(self) -> None:
        pass

    def check_proofs(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Team:
    """Two sessions of one engine, each in a thread of its own while they start.

    Args:
        experts: the model has routed experts.
        fill_first: the setting.
    """

    def __init__(self, experts: bool = False, fill_first: bool = False) -> None:
        self.told: list[Snapshot] = []
        config = ProbeConfig(
            batch_sizes=(1,), contexts=(64,), wanted_samples=6, overhead_budget=0.5, step_share=1.0,
            startup_seconds=5.0, publish_seconds=60.0, fill_first=fill_first,
        )  # fmt: skip
        configs = [vllm_config(rank, 2) for rank in range(2)]
        for made in configs:
            made.model_config.is_moe = experts
        self.sessions = [session_of(config, made, show=self.told.append) for made in configs]
        self.engines: list[Engine | None] = [None, None]

    def start(self) -> None:
        def start(rank: int) -> None:
            threading.current_thread().name = f"rank {rank}"
            self.sessions[rank].after_warm_up(None)
            self.engines[rank] = Engine.made.get(threading.get_ident())

        assert in_parallel(lambda: start(0), lambda: start(1)) == [None, None]

    @property
    def active(self) -> list[bool]:
        return [session.active for session in self.sessions]

    def launched(self) -> list[list[Shape]]:
        return [engine.launched for engine in self.engines if engine is not None]

    def end(self) -> None:
        for session in self.sessions:
            if session.active:
                session.disable("the test is over", expected=True)


def with_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sessions start on a runner and an engine of the tests' own."""
    runner = SimpleNamespace(kv_cache_config=SimpleNamespace(kv_cache_groups=()))
    view = SimpleNamespace(device=torch.device("cpu"), name="v1", runner=runner, decode_positions=1)
    monkeypatch.setattr(module, "view_of", lambda _: view)
    monkeypatch.setattr(module.support, "refusal", lambda *_: None)
    monkeypatch.setattr(module.bindings, "is_known", lambda _: True)
    monkeypatch.setattr(start_probing, "ProbeEngine", Engine)
    monkeypatch.setattr(start_probing, "_warn_of_fusion", lambda *_: None)
    monkeypatch.setattr(publication, "predictions_of", lambda *_: ())
    monkeypatch.setattr(Engine, "made", {}, raising=False)


def rank_of_thread() -> int:
    """Of the rank that starts in this thread, by the thread's name."""
    return int(threading.current_thread().name.removeprefix("rank "))


def with_lockstep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two sessions start as the ranks of one engine."""
    hub = Hub(2)

    def join(config: ProbeConfig) -> Lockstep:
        return Lockstep(hub.wire(rank_of_thread(), PATIENCE), steps_per_exchange=2)

    with_stand_ins(monkeypatch)
    monkeypatch.setattr(module, "join", join)


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    with_lockstep(monkeypatch)
    made = Team()
    yield made
    made.end()


def run(session: Session) -> None:
    session.before_step(STEP)
    session.after_step()


def test_both_scan_and_probe_between_steps_and_the_first_publishes(team: Team) -> None:
    team.start()
    assert team.active == [True, True]
    first, second = team.launched()
    assert first == second and len(first) == 12, "six pairs of one point"
    assert [started_of(session).lead is not None for session in team.sessions] == [True, False]
    assert (team.told[0].state, team.told[-1].state) == (State.WARMING, State.STEADY)
    prober = lead_of(team.sessions[0]).watcher
    assert isinstance(prober, Prober)
    prober.budget.earn(100.0)
    for _ in range(40):
        for session in team.sessions:
            run(session)
    prober.settle()
    assert prober.outcomes["startup"] == 6
    assert prober.outcomes["measured"] > 2
    assert first == second and len(first) == 12 + 2 * prober.outcomes["measured"]
    assert team.active == [True, True]


def test_without_a_cell_to_probe_the_first_times_its_steps_and_none_waits(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "counts", (1,))
    team.start()
    assert team.active == [True, False]
    assert all(engine is not None and engine.closed for engine in team.engines)
    assert team.told[-1].state is State.PASSIVE
    assert team.told[-1].reason == "no cell can be probed: no shape has a CUDA graph"
    for _ in range(10):
        run(team.sessions[0])


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("stage", ["attach", "startup_scan"])
def test_a_fault_of_one_rank_at_the_start_keeps_both_off(
    team: Team, monkeypatch: pytest.MonkeyPatch, stage: str, faulty: int
) -> None:
    def maybe_fail(at: str) -> None:
        if at == stage and threading.current_thread().name == f"rank {faulty}":
            raise RuntimeError("a bug")

    for at in (start_probing, first_scan):
        monkeypatch.setattr(at, "maybe_fail", maybe_fail)
    team.start()
    assert team.active == [False, False]
    assert team.told[-1].state is State.DISABLED
    reason = "a bug" if faulty == 0 else "fault on rank 1 of 2"
    assert reason in team.told[-1].reason
