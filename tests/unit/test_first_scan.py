"""A first scan that waits until real steps have filled the KV cache of a model with experts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from test_lockstep import in_parallel

pytest.importorskip("vllm")

from sessions import lead_of
from test_ranks_start import Team, run, with_lockstep

from vllm_nfp.adapter import first_scan as across_workers
from vllm_nfp.adapter import switch_on
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ConfigError, ProbeConfig
from vllm_nfp.session import first_scan
from vllm_nfp.types import Shape, State


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Team]]:
    """Starts two ranks."""
    with_lockstep(monkeypatch)
    teams: list[Team] = []

    def start(**settings: bool) -> Team:
        teams.append(Team(**settings))
        teams[-1].start()
        return teams[-1]

    yield start
    for team in teams:
        team.end()


def scan(team: Team, note: str = "") -> None:
    def on(rank: int) -> None:
        threading.current_thread().name = f"rank {rank}"
        team.sessions[rank].scan(note)

    assert in_parallel(lambda: on(0), lambda: on(1)) == [None, None]


def test_ranks_wait_note_each_step_and_scan_together(
    started: Callable[..., Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Any]] = []
    for name in ("keep_prompts", "note_blocks"):
        monkeypatch.setattr(
            f"vllm_nfp.session.session.{name}",
            lambda engine, step, name=name: seen.append((name, engine)),
        )
    team = started(experts=True, fill_first=True)
    assert team.active == [True, True]
    assert [session.to_fill for session in team.sessions] == [Shape(1, 64, 2), None]
    assert [(told.state, told.reason) for told in team.told] == [
        (State.WARMING, first_scan.FILLING)
    ]
    for session in team.sessions:
        run(session)
        assert session.idle() > 1.0
    for engine in team.engines:
        assert [name for name, of in seen if of is engine] == ["keep_prompts", "note_blocks"]
    assert team.launched() == [[], []]

    scan(team)
    first, second = team.launched()
    assert first == second and len(first) == 12, "six pairs of one point"
    assert (team.told[-1].state, team.told[-1].reason) == (State.STEADY, "")
    assert [session.to_fill for session in team.sessions] == [None, None]
    scan(team)
    assert len(first) == 12, "there is one first scan"
    for session in team.sessions:
        run(session)
    assert team.active == [True, True]
    assert len(seen) == 4, "steps after it are the ranks' own"


def test_what_has_to_be_said_of_the_scan_stays_in_the_results(
    started: Callable[..., Team],
) -> None:
    team = started(experts=True, fill_first=True)
    scan(team, "the cache is empty")
    assert (team.told[-1].state, team.told[-1].reason) == (State.STEADY, "the cache is empty")
    lead_of(team.sessions[0]).publisher._publish()
    assert team.told[-1].reason == "the cache is empty"


@pytest.mark.parametrize(("experts", "fill_first"), [(False, True), (True, False)])
def test_others_scan_as_they_start(
    started: Callable[..., Team], experts: bool, fill_first: bool
) -> None:
    team = started(experts=experts, fill_first=fill_first)
    assert [session.to_fill for session in team.sessions] == [None, None]
    assert [len(launched) for launched in team.launched()] == [12, 12]
    assert first_scan.FILLING not in {told.reason for told in team.told}


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_in_the_scan_that_has_waited_ends_both(
    started: Callable[..., Team], monkeypatch: pytest.MonkeyPatch, faulty: int
) -> None:
    team = started(experts=True, fill_first=True)

    def maybe_fail(at: str) -> None:
        if threading.current_thread().name == f"rank {faulty}":
            raise RuntimeError("a bug")

    monkeypatch.setattr(first_scan, "maybe_fail", maybe_fail)
    scan(team)
    assert team.active == [False, False]
    assert all(engine is not None and engine.closed for engine in team.engines)
    assert team.told[-1].state is State.DISABLED
    reason = "a bug" if faulty == 0 else "fault on rank 1 of 2"
    assert reason in team.told[-1].reason


def test_a_fault_while_the_cache_is_filled_ends_the_probe(
    started: Callable[..., Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    team = started(experts=True, fill_first=True)

    def keep(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("vllm_nfp.session.session.keep_prompts", keep)
    for session in team.sessions:
        run(session)
    scan(team)
    assert team.active == [False, False]
    assert team.told[-1].state is State.DISABLED


def test_a_program_reaches_the_observer_of_each_worker_until_its_hooks_are_undone() -> None:
    notes: list[str] = []
    observer: Any = SimpleNamespace(to_fill=Shape(8, 1024, 4), scan=notes.append)
    patches = PatchSet()
    assert across_workers.to_fill("worker") is None
    across_workers.install(patches, observer)
    assert across_workers.to_fill("worker") == Shape(8, 1024, 4)
    across_workers.scan("worker", "a note")
    assert notes == ["a note"]
    patches.restore()
    assert across_workers.to_fill("worker") is None
    across_workers.scan("worker", "another")
    assert notes == ["a note"]


def test_a_server_refuses_a_scan_that_nothing_would_begin() -> None:
    with pytest.raises(ConfigError, match=r"must not hold 'fill_first' here.*leave it out"):
        switch_on.publish_settings(ProbeConfig(fill_first=True))
