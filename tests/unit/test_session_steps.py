"""Which steps a session looks at, what it does with the others, and who has the last word."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm_nfp.config import ProbeConfig
from vllm_nfp.engine import session as module
from vllm_nfp.engine.runners import StepLimits
from vllm_nfp.engine.session import LONGEST_WRITE_SECONDS, Session
from vllm_nfp.metrics import Snapshot, State, read_snapshot
from vllm_nfp.timing import HostClock, Sampler, StepTimer


class Prober:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.planner = SimpleNamespace(feedback=None)
        self.looked: list[int] = []
        self.unlooked = 0

    def before_step(self, step: Any, stands_for: int) -> None:
        self.looked.append(stands_for)

    def serving(self) -> None:
        self.unlooked += 1


def output(sequences: int, tokens: int, preempted: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens={str(i): tokens // sequences for i in range(sequences)},
        total_num_scheduled_tokens=tokens,
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=[7] * sequences),
        scheduled_new_reqs=[],
        scheduled_encoder_inputs={},
        preempted_req_ids=preempted,
    )


@pytest.fixture
def session() -> Session:
    """One that has looked at all of its first steps, and is asked of later ones."""
    made = Session.__new__(Session)
    made._sampler, made._limits = Sampler(first=1), StepLimits(sequences=64, tokens=2048)
    made._view = SimpleNamespace(decode_positions=1)  # type: ignore[assignment]
    made._publisher = SimpleNamespace(fault=None, feedback=None)  # type: ignore[assignment]
    made._timer, made._engine = StepTimer(HostClock()), None
    made._prober = Prober()  # type: ignore[assignment]
    made._looking = False
    return made


def test_few_steps_are_looked_at_and_timed_and_stand_for_all(session: Session) -> None:
    prober: Any = session._prober
    for _ in range(4000):
        session.step(output(4, 4))
        session.mark(begin=True)
        session.mark(begin=False)
    assert len(prober.looked) == pytest.approx(500, rel=0.1)
    assert prober.unlooked == 4000 - len(prober.looked)
    assert 4000 - 16 <= sum(prober.looked) <= 4000
    assert session._timer is not None
    assert session._timer._pending == min(len(prober.looked), 256), "only those are timed"


@pytest.mark.parametrize("pressed", [output(4, 2048), output(4, 4, ("a",))])
def test_a_sign_that_requests_wait_is_never_missed(session: Session, pressed: Any) -> None:
    prober: Any = session._prober
    for _ in range(200):
        before = len(prober.looked)
        session.step(pressed)
        assert len(prober.looked) == before + 1
        session.step(output(4, 4))


def test_a_step_that_runs_nothing_is_no_step(session: Session) -> None:
    prober: Any = session._prober
    nothing = SimpleNamespace(num_scheduled_tokens={}, total_num_scheduled_tokens=0)
    for _ in range(100):
        session.step(nothing)
        session.mark(begin=True)
    assert prober.looked == []
    assert session._timer is not None
    assert session._timer._open is None


def named(run_dir: Path) -> Session:
    """A session that nothing was attached to."""
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(model="m", served_model_name="m"),
        parallel_config=SimpleNamespace(data_parallel_index=0),
    )
    return Session(ProbeConfig(run_dir=str(run_dir)), vllm_config)


def write_under_way(
    session: Session, snapshot: Snapshot
) -> tuple[threading.Thread, threading.Event]:
    """A thread in the middle of a write, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        begun.set()
        go_on.wait(300.0)

    session.on_snapshot = hold
    writer = threading.Thread(target=session._write, args=(snapshot,), daemon=True)
    writer.start()
    assert begun.wait(60.0)
    return writer, go_on


def test_news_of_the_end_are_not_overwritten_by_a_write_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WRITE_SECONDS", 60.0)  # a busy machine's timers are late
    session = named(tmp_path)
    probing = replace(session._identity, state=State.PROBING)
    writer, go_on = write_under_way(session, probing)
    threading.Timer(0.2, go_on.set).start()
    session.disable("the test is over")
    writer.join(60.0)
    session._write(probing)  # and not by one that begins later
    assert read_snapshot(tmp_path / "engine-0.json").state is State.DISABLED


def test_a_write_that_hangs_holds_nobody_up_for_long(tmp_path: Path) -> None:
    session = named(tmp_path)
    writer, go_on = write_under_way(session, session._identity)
    before = time.monotonic()
    session.disable("the test is over")
    assert LONGEST_WRITE_SECONDS <= time.monotonic() - before < 100.0
    assert writer.is_alive(), "it has waited for the write"
    assert not (tmp_path / "engine-0.json").exists()
    go_on.set()
    writer.join(60.0)
