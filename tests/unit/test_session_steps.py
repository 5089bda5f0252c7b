"""Which steps a session looks at, what it does with the others, and who has the last word."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from sessions import serving, session_of, wait_for

from vllm_nfp import give_way
from vllm_nfp.adapter.lost_device import device_is_lost
from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.live.reporter import Reporter
from vllm_nfp.results.control import ControlSnapshot, ControlState, read_control
from vllm_nfp.results.profile import Profile
from vllm_nfp.results.snapshot import Snapshot, read_snapshot
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session import output as output_module
from vllm_nfp.session import sample_log
from vllm_nfp.session.output import LONGEST_WRITE_SECONDS, Measured, Output
from vllm_nfp.session.session import GOES_ON, GPU_IS_LOST, Session
from vllm_nfp.timing import HostClock, StepTimer
from vllm_nfp.types import EngineStep, PairResult, Shape, State, Timing

PAIR = PairResult(
    *(Timing(Shape(1, 32, positions), 0.001, 0.0, {}, (), "none") for positions in (2, 1)),
    baseline_first=True,
    cost_seconds=0.002,
)


class Prober:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.timer = StepTimer(HostClock())
        self.looked: list[int] = []
        self.unlooked = 0
        self.cut: list[tuple[int | None, int]] = []

    def before_step(self, step: Any, stands_for: int) -> None:
        self.looked.append(stands_for)

    def trimmed(self, step: EngineStep, stands_for: int) -> None:
        self.cut.append((step.tokens, stands_for))

    def counters(self, graph_bytes: int) -> Counters:
        return Counters()

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
def prober() -> Prober:
    return Prober()


@pytest.fixture
def session(prober: Prober) -> Session:
    """One that has looked at all of its first steps, and is asked of later ones."""
    return serving(prober, tokens=2048)


def test_few_steps_are_looked_at_and_timed_and_stand_for_all(
    session: Session, prober: Prober
) -> None:
    for _ in range(4000):
        session.before_step(output(4, 4))
        session.after_step()
    assert len(prober.looked) == pytest.approx(500, rel=0.1)
    assert prober.unlooked == 4000 - len(prober.looked)
    assert 4000 - 16 <= sum(prober.looked) <= 4000
    assert prober.timer._pending == min(len(prober.looked), 256), "only those are timed"


def test_the_background_is_told_of_steps_that_read_prompts(session: Session) -> None:
    prompt, begins, decode = output(2, 34), output(2, 2), output(2, 2)
    begins.scheduled_new_reqs = [SimpleNamespace()]
    told = []
    for step in (prompt, decode, begins, decode):
        session.before_step(step)
        told.append(give_way.serving.host_bound)
        session.after_step()
        assert not give_way.serving.host_bound
    assert told == [True, False, True, False]
    session.before_step(prompt)
    session.before_step(decode)
    assert not give_way.serving.host_bound, "some ranks are told of no end of a step"
    session.before_step(prompt)
    session.disable("a test")
    assert not give_way.serving.host_bound, "no step ends any more"


@pytest.mark.parametrize("pressed", [output(4, 2048), output(4, 4, ("a",))])
def test_a_sign_that_requests_wait_is_never_missed(
    session: Session, prober: Prober, pressed: Any
) -> None:
    for _ in range(200):
        before = len(prober.looked)
        session.before_step(pressed)
        assert len(prober.looked) == before + 1
        assert prober.looked[-1] == 1, "it stands for the others as well"
        session.before_step(output(4, 4))
    assert 400 - 14 <= sum(prober.looked) <= 400
    assert max(prober.looked) > 1, "the others have no look of their own"


def test_what_vllm_cuts_is_told_of_the_steps_that_are_looked_at_alone(
    session: Session, prober: Prober
) -> None:
    for _ in range(400):
        session.before_step(output(4, 4))
        session.trimmed(3)
        session.after_step()
    assert prober.cut == [(3, stands_for) for stands_for in prober.looked]


def test_a_step_that_runs_nothing_is_no_step(session: Session, prober: Prober) -> None:
    nothing = SimpleNamespace(num_scheduled_tokens={}, total_num_scheduled_tokens=0)
    for _ in range(100):
        session.before_step(nothing)
    assert prober.looked == []
    assert prober.timer._open is None


def named(
    run_dir: Path, show: Callable[[Snapshot], None] = lambda _: None, **settings: Any
) -> Session:
    """A session that has not started."""
    return session_of(ProbeConfig(run_dir=str(run_dir), **settings), show=show)


WARMING = Snapshot("m", "0", State.WARMING)


def opened(run_dir: Path, folder: Path, profile: Profile) -> Output:
    """An output whose log of raw samples has begun."""
    config = ProbeConfig(run_dir=str(run_dir), output_dir=str(folder))
    output = Output(config)
    output.open("0", Measured(profile.environment, profile.model, config))
    return output


def write_under_way(
    tmp_path: Path,
) -> tuple[Session, Snapshot, threading.Thread, threading.Event]:
    """A session, a thread in the middle of writing that it probes, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        begun.set()
        go_on.wait(300.0)

    session = named(tmp_path, hold)
    probing = replace(session._identity, state=State.PROBING)
    writer = threading.Thread(target=session._output.write, args=(probing,), daemon=True)
    writer.start()
    assert begun.wait(60.0)
    return session, probing, writer, go_on


@pytest.mark.parametrize("lost", [False, True])
def test_a_fault_says_whether_it_has_cost_the_server_its_gpu(
    session: Session,
    prober: Prober,
    lost: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only a fault asks: a reason that is known at the start has touched no GPU."""
    asked: list[bool] = []

    def memory(*_: Any) -> tuple[int, int]:
        asked.append(True)
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 1, 2

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(prober, "before_step", lambda *_: 1 / 0)
    while session.active:
        session.before_step(output(4, 4))
        session.after_step()
    assert asked
    assert (GPU_IS_LOST in caplog.text, GOES_ON in caplog.text) == (lost, not lost)
    asked.clear()
    session.disable("a setting", expected=True)
    assert not asked


def test_without_a_gpu_none_is_lost() -> None:
    assert not torch.cuda.is_initialized()
    assert not device_is_lost()


def test_news_of_the_end_are_not_overwritten_by_a_write_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        output_module, "LONGEST_WRITE_SECONDS", 60.0
    )  # a busy machine's timers are late
    session, probing, writer, go_on = write_under_way(tmp_path)
    threading.Timer(0.2, go_on.set).start()
    session.disable("the test is over")
    writer.join(60.0)
    session._output.write(probing)  # and not by one that begins later
    assert read_snapshot(tmp_path / "engine-0.json").state is State.DISABLED


def test_a_write_that_hangs_holds_nobody_up_for_long(tmp_path: Path) -> None:
    session, _, writer, go_on = write_under_way(tmp_path)
    before = time.monotonic()
    session.disable("the test is over")
    assert LONGEST_WRITE_SECONDS <= time.monotonic() - before < 100.0
    assert writer.is_alive(), "it has waited for the write"
    assert not (tmp_path / "engine-0.json").exists()
    go_on.set()
    writer.join(60.0)
    assert state_within(tmp_path, 60.0) is State.DISABLED, "the end gets out all the same"


def test_results_are_back_once_their_folder_can_be_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    session = named(folder)
    probing = replace(session._identity, state=State.PROBING)
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        session._output.write(probing)
        shutil.rmtree(folder)
        for _ in range(3):
            session._output.write(probing)
        folder.mkdir()
        for _ in range(3):
            session._output.write(probing)
    assert read_snapshot(folder / "engine-0.json").state is State.PROBING
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    assert "results cannot be written for now" in lines[0]
    assert f"results are written to {folder} again" in lines[1]


@pytest.mark.parametrize("removed", ["", "samples-0.jsonl"])
def test_an_output_folder_that_is_removed_is_filled_again(
    tmp_path: Path, removed: str, caplog: pytest.LogCaptureFixture, dense_profile: Profile
) -> None:
    folder = tmp_path / "out"
    output = opened(tmp_path, folder, dense_profile)
    output.record(PAIR)
    gone = folder / removed
    if removed:
        gone.unlink()
    else:
        shutil.rmtree(gone)
    for _ in range(3):
        output.record(PAIR)
        output.write(WARMING)
    assert len((folder / "samples-0.jsonl").read_text().splitlines()) == 3
    assert json.loads((folder / "environment-0.json").read_text())["vllm"]
    assert read_snapshot(folder / "engine-0.json").state is State.WARMING
    assert caplog.text.count("was removed; it has been begun again") == 1


def test_a_disk_that_is_full_at_the_start_costs_the_raw_samples_alone(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    dense_profile: Profile,
) -> None:
    """A folder that is proved to be writable may still have no room for a line."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(sample_log, "write_whole", full)
        output = opened(tmp_path, tmp_path / "out", dense_profile)
    output.record(PAIR)
    output.write(WARMING)
    assert caplog.text.count("no raw samples are written: [Errno 28]") == 1
    assert not (tmp_path / "out" / "samples-0.jsonl").exists()
    assert read_snapshot(tmp_path / "out" / "engine-0.json").state is State.WARMING


def test_a_control_file_comes_back_and_the_log_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    reporter = Reporter(ProbeConfig(run_dir=str(folder)), "0")
    snapshot = ControlSnapshot("m", "0", ControlState.LEARNING)
    shutil.rmtree(folder)
    for _ in range(3):
        reporter.put(snapshot)
        wait_for(lambda: reporter._wake.empty() and "cannot report" in caplog.text)
    folder.mkdir()
    reporter.end(snapshot)
    reporter._thread.join(120.0)
    assert read_control(folder / "control-0.json") == snapshot
    assert caplog.text.count("cannot report for now") == 1


def test_a_profile_that_could_not_be_kept_is_kept_once_there_is_room(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dense_profile: Profile,
) -> None:
    output = opened(tmp_path, tmp_path, dense_profile)
    kept: list[str] = []
    full = [True]

    def save(path: Path, profile: str) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        kept.append(profile)

    monkeypatch.setattr(output_module, "profile_of", lambda *_: "profile")
    monkeypatch.setattr(output_module, "save_profile", save)
    for _ in range(3):
        output.keep(WARMING)
    assert caplog.text.count("No space left on device") == 1, "the log is flooded"
    full[0] = False
    output.keep(WARMING)
    assert kept == ["profile"]
    full[0] = True
    output.keep(WARMING)
    assert caplog.text.count("No space left on device") == 2


def state_within(folder: Path, seconds: float) -> State | None:
    """The state in the hand-over file, once there is one and nobody writes any more."""
    deadline = time.monotonic() + seconds
    while any(thread.name == "nfp-end" for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)
    return read_snapshot(folder / "engine-0.json").state


def test_the_last_write_may_hang_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, disk = named(tmp_path), threading.Event()
    write = output_module.write_snapshot

    def hang(*args: Any) -> None:
        assert disk.wait(30.0)
        write(*args)

    monkeypatch.setattr(output_module, "write_snapshot", hang)
    done = threading.Thread(target=session.disable, args=("the test is over",), daemon=True)
    done.start()
    done.join(LONGEST_WRITE_SECONDS + 5.0)
    hangs = done.is_alive()
    disk.set()
    assert not hangs, "the serving thread waits for a dead disk"
    assert state_within(tmp_path, 60.0) is State.DISABLED
