"""Engines that take their steps together, from their start to the end of the probe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_agreement import STEP
from test_lockstep import Hub, in_parallel
from test_ranks_start import PATIENCE, Engine, rank_of_thread, with_stand_ins

pytest.importorskip("vllm")

from sessions import lead_of, session_of, vllm_config, wait_for

from vllm_nfp.adapter import dummies, forward_context, targets
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule import Prober
from vllm_nfp.schedule.lockstep import Lockstep
from vllm_nfp.schedule.punctual import PunctualWire
from vllm_nfp.schedule.turns import InTurn
from vllm_nfp.session import first_scan, in_waves, start_probing
from vllm_nfp.types import State

NOTHING = SimpleNamespace(num_scheduled_tokens={}, total_num_scheduled_tokens=0)
"""A step of an engine that has nothing to run at the moment; a dummy batch follows."""


class Wave:
    """A session of each engine, all in one thread once they have started."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.told: list[list[Snapshot]] = [[] for _ in range(size)]
        config = ProbeConfig(
            batch_sizes=(1,), contexts=(64,), wanted_samples=6, overhead_budget=0.5, step_share=1.0,
            startup_seconds=5.0, publish_seconds=60.0, idle_share=0.0,
        )  # fmt: skip
        self.sessions = [
            session_of(config, engine_config(engine, size), show=self.told[engine].append)
            for engine in range(size)
        ]
        self.engines: list[Engine] = []

    def start(self) -> None:
        def start(rank: int) -> None:
            threading.current_thread().name = f"rank {rank}"
            self.sessions[rank].after_warm_up(None)
            made[rank] = Engine.made[threading.get_ident()]

        made: dict[int, Engine] = {}
        ranks = range(self.size)
        assert in_parallel(*(partial(start, rank) for rank in ranks)) == [None] * self.size
        self.engines = [made[rank] for rank in ranks]

    @property
    def active(self) -> list[bool]:
        return [session.active for session in self.sessions]

    def prober(self, engine: int) -> Prober:
        prober = lead_of(self.sessions[engine]).watcher
        assert isinstance(prober, Prober)
        return prober

    def passes(self, count: int, serving: tuple[int, ...]) -> None:
        """Forward passes: steps of the engines that serve, dummy batches of the others."""
        for _ in range(count):
            for engine, session in enumerate(self.sessions):
                if engine in serving:
                    session.before_step(STEP)
                    session.after_step()
                else:
                    session.before_step(NOTHING)
                    session.before_dummy()

    def end(self) -> None:
        for session in self.sessions:
            if session.active:
                session.disable("the test is over", expected=True)


def engine_config(engine: int, size: int) -> Any:
    made = vllm_config()
    made.parallel_config.data_parallel_size = size
    made.parallel_config.data_parallel_index = engine
    made.model_config.is_moe = True
    return made


@contextmanager
def wave_of(size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wave]:
    hub, made = Hub(size), Wave(size)

    def join(config: ProbeConfig) -> tuple[Lockstep, PunctualWire]:
        wire = PunctualWire(hub.wire(rank_of_thread(), PATIENCE))
        return Lockstep(wire, 0, in_waves.OFTEN, InTurn(size)), wire

    with_stand_ins(monkeypatch)
    monkeypatch.setattr(in_waves, "join", join)
    yield made
    made.end()


@pytest.fixture
def wave(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wave]:
    with wave_of(2, monkeypatch) as made:
        yield made


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wave]:
    with wave_of(4, monkeypatch) as made:
        yield made


def outcomes(wave: Wave) -> list[tuple[int, int]]:
    """Pairs of each engine: in serving, and without a request."""
    counted = [wave.prober(engine).outcomes for engine in range(wave.size)]
    return [(one["measured"], one["idle"]) for one in counted]


def test_every_engine_times_the_scan_and_publishes(wave: Wave) -> None:
    wave.start()
    assert wave.active == [True, True]
    first, second = (engine.launched for engine in wave.engines)
    assert first == second and len(first) == 12, "six pairs of one point"
    wait_for(lambda: all(wave.told))
    for engine in range(2):
        assert wave.prober(engine).outcomes["startup"] == 6
        assert wave.told[engine][-1].state is State.STEADY
        assert wave.told[engine][-1].engine == str(engine)


@pytest.mark.parametrize("serving", [0, 1])
def test_an_engine_without_requests_runs_what_the_other_plans(wave: Wave, serving: int) -> None:
    wave.start()
    wave.prober(serving).budget.earn(100.0)
    spent = wave.prober(1 - serving).budget.probe_seconds
    wave.passes(120, (serving,))
    for engine in range(2):
        wave.prober(engine).settle()
    first, second = (engine.launched for engine in wave.engines)
    assert first == second and len(first) > 12 + 4
    found = outcomes(wave)
    pairs = (len(first) - 12) // 2
    assert found[serving] == (pairs, 0)
    assert found[1 - serving] == (0, pairs), "nobody was delayed there"
    assert wave.prober(1 - serving).budget.probe_seconds == spent
    assert wave.active == [True, True]
    assert all(engine.open == 0 for engine in wave.engines), "a ticket was kept"


def test_both_engines_plan_and_both_pay(wave: Wave) -> None:
    wave.start()
    for engine in range(2):
        wave.prober(engine).budget.earn(100.0)
    wave.passes(160, (0, 1))
    for engine in range(2):
        wave.prober(engine).settle()
    first, second = (engine.launched for engine in wave.engines)
    assert first == second
    pairs = (len(first) - 12) // 2
    assert pairs > 4
    assert outcomes(wave) == [(pairs, 0), (pairs, 0)]


def test_an_engine_in_debt_keeps_the_others_from_probing(wave: Wave) -> None:
    wave.start()
    wave.prober(0).budget.earn(100.0)
    wave.prober(1).budget.spend(1e6)
    wave.passes(120, (0, 1))
    assert outcomes(wave) == [(0, 0), (0, 0)]
    wave.passes(60, (0,))
    assert outcomes(wave)[0][0] > 0, "an engine without requests holds nothing off"


@pytest.mark.parametrize("serving", [(2,), (1, 3), (0, 1, 2, 3)])
def test_four_engines_run_the_same_pairs_whichever_of_them_serve(
    four: Wave, serving: tuple[int, ...]
) -> None:
    four.start()
    first = four.engines[0].launched
    scanned = len(first)
    for engine in serving:
        four.prober(engine).budget.earn(100.0)
    four.passes(160, serving)
    for engine in range(4):
        four.prober(engine).settle()
    assert all(engine.launched == first for engine in four.engines)
    pairs = (len(first) - scanned) // 2
    assert pairs > 4
    assert outcomes(four) == [
        (pairs, 0) if engine in serving else (0, pairs) for engine in range(4)
    ]
    assert all(four.active)


@pytest.mark.parametrize("serving", [(0,), (1, 2)])
def test_a_fault_of_the_last_of_four_engines_ends_all_before_the_same_pass(
    four: Wave, monkeypatch: pytest.MonkeyPatch, serving: tuple[int, ...]
) -> None:
    four.start()
    four.passes(10, serving)

    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(four.engines[3], "check_proofs", broken)
    active = []
    for _ in range(12):
        four.passes(1, serving)
        active.append(four.active)
    assert all(len(set(one)) == 1 for one in active)
    assert active[0] == [True] * 4 and active[-1] == [False] * 4
    assert all("fault on rank 3 of 4" in told[-1].reason for told in four.told)


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("serving", [(0,), (1,), (0, 1)])
def test_a_fault_of_one_engine_ends_the_probe_of_both_before_the_same_pass(
    wave: Wave, monkeypatch: pytest.MonkeyPatch, serving: tuple[int, ...], faulty: int
) -> None:
    wave.start()
    wave.passes(10, serving)

    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(wave.engines[faulty], "check_proofs", broken)
    active = []
    for _ in range(12):
        wave.passes(1, serving)
        active.append(wave.active)
    assert all(first == second for first, second in active)
    assert active[0] == [True, True] and active[-1] == [False, False]
    for told in wave.told:
        assert told[-1].state is State.DISABLED
        assert f"fault on rank {faulty} of 2" in told[-1].reason
    assert all(engine.closed for engine in wave.engines)


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_of_one_engine_at_the_start_keeps_both_off(
    wave: Wave, monkeypatch: pytest.MonkeyPatch, faulty: int
) -> None:
    def maybe_fail(at: str) -> None:
        if at == "startup_scan" and threading.current_thread().name == f"rank {faulty}":
            raise RuntimeError("a bug")

    for at in (start_probing, first_scan):
        monkeypatch.setattr(at, "maybe_fail", maybe_fail)
    wave.start()
    assert wave.active == [False, False]
    assert [told[-1].state for told in wave.told] == [State.DISABLED] * 2


def test_a_period_holds_no_dummy_batch(wave: Wave) -> None:
    """An engine may run one between two steps alike, such as while a KV cache is fetched."""
    wave.start()
    series = wave.prober(0).timer.times.of(2, 7, 1)
    assert series is not None
    wave.passes(100, serving=(0,))
    before = series.periods_timed
    assert before > 10
    for _ in range(100):
        wave.passes(1, serving=(0,))
        for session in wave.sessions:
            session.before_dummy()
    assert series.periods_timed <= before + 1


def test_a_forward_pass_is_told_that_all_engines_run_as_many_tokens() -> None:
    of_one = SimpleNamespace(data_parallel_size=1)
    assert forward_context._tokens_across_engines(of_one, 24) is None
    of_three = SimpleNamespace(data_parallel_size=3)
    found = forward_context._tokens_across_engines(of_three, 24)
    assert found is not None
    assert (found.tolist(), found.dtype, found.device.type) == ([24] * 3, torch.int32, "cpu")


def test_the_dummy_batches_of_a_worker_are_told_before_they_run() -> None:
    order: list[str] = []
    worker = SimpleNamespace(execute_dummy_batch=lambda: order.append("batch"))
    observer = SimpleNamespace(before_dummy=lambda: order.append("told"))
    patches = PatchSet()
    dummies.install(patches, worker, observer)
    worker.execute_dummy_batch()
    patches.restore()
    worker.execute_dummy_batch()
    assert order == ["told", "batch", "batch"]
    assert targets.EXECUTE_DUMMY_BATCH.required
