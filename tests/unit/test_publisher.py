"""What the publisher keeps and shows, and who reads it meanwhile."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from sessions import made_results

from vllm_nfp.config import ProbeConfig
from vllm_nfp.results import layer_times
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session import new_pairs
from vllm_nfp.session import output as output_module
from vllm_nfp.session.output import KeptProfile
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import LayerTime, Module, PairResult, Shape, State, Timing

CONFIG = ProbeConfig(
    batch_sizes=(1,), contexts=(64,), positions=(1, 2), max_positions=2, layer_histograms=True
)


def result(positions: int, seconds: float) -> PairResult:
    def timing(n: int, factor: float) -> Timing:
        layers = (LayerTime(3, Module.ATTENTION, seconds * factor),)
        modules = {Module.ATTENTION: seconds, Module.DENSE_FFN: seconds}
        return Timing(Shape(1, 64, n), 0.01, 0.0, modules, layers, "full")

    return PairResult(timing(positions, 2.0), timing(1, 1.0), True, 0.02)


def test_layer_times_are_medians_of_the_recent_runs_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_times, "MOST_ROWS", 2)
    results = made_results(CONFIG)
    for seconds in (9.0, *[1.0] * 8, *[3.0] * 7):
        results.add(result(2, seconds), 0.0)
    results.add(result(4, 1.0), 0.0)
    found = {row.positions: row for row in results.layer_times()}
    assert set(found) == {1, 2}, "a third point was kept"
    assert (found[2].layer, found[2].module, found[2].samples) == (3, "attention", 15)
    assert found[2].median_seconds == 2.0
    assert found[1].median_seconds == 1.0


class Kept:
    """An output directory and /metrics that note what they are given."""

    keeps = True

    def __init__(self) -> None:
        self.written: list[Snapshot] = []
        self.kept: list[Snapshot] = []
        self.write, self.keep = self.written.append, self.kept.append

    def record(self, result: PairResult) -> None:
        pass


def publisher_of(output: Kept) -> Publisher:
    identity = Snapshot("m", "0", State.WARMING)
    to: Any = output
    return Publisher(CONFIG, identity, StepTimes(), made_results(CONFIG), to)


def test_a_profile_is_kept_now_and_then_and_the_metrics_each_time() -> None:
    output = Kept()
    written, kept = output.written, output.kept
    publisher = publisher_of(output)
    publisher.count(Counters({"measured": 1}))
    publisher.put(result(2, 1.0))
    for _ in range(3):
        publisher._publish()
    assert len(written) == 3
    assert len(kept) == 1
    assert [len(snapshot.layer_times) for snapshot in (written[0], kept[0])] == [0, 2]


def test_a_profile_is_kept_again_when_the_state_changes_and_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(output_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    output: Any = Kept()
    profile = KeptProfile(output, tuple)
    for state, now, times in (
        (State.PROBING, 100.0, 1),
        (State.PROBING, 114.9, 1),
        (State.STEADY, 114.9, 2),
        (State.STEADY, 129.8, 2),
        (State.STEADY, 129.9, 3),
    ):
        clock.now = now
        profile.keep_sometimes(Snapshot("m", "0", state))
        assert len(output.kept) == times, (state, now)
    output.keeps = False
    profile.keep_sometimes(Snapshot("m", "0", State.PASSIVE))
    assert len(output.kept) == 3, "there is no directory for it"


def test_pairs_are_dropped_while_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_pairs, "MOST_QUEUED", 3)
    publisher = publisher_of(Kept())
    for _ in range(5):
        publisher.put(result(2, 1.0))
    publisher.process()
    assert {row.samples for row in publisher.snapshot().curves} == {3}
    publisher.put(result(2, 1.0))
    publisher.process()
    assert {row.samples for row in publisher.snapshot().curves} == {4}


def test_rows_wait_for_the_share_of_a_core_and_counters_do_not() -> None:
    output = Kept()
    publisher = publisher_of(output)
    publisher.put(result(2, 1.0))
    publisher._work(100.0, publish=True)
    publisher._pace.spent(0.05, 100.0)  # five seconds of its share
    for turn, now in enumerate((102.0, 104.0, 110.0)):
        publisher.put(result(2, 1.0))
        publisher.count(Counters({"measured": turn}))
        publisher._work(now, publish=True)
    samples = [{row.samples for row in shown.curves} for shown in output.written]
    assert samples == [{1}, {1}, {1}, {4}]
    assert [shown.probes for shown in output.written[1:]] == [{"measured": n} for n in range(3)]


def test_a_choice_alone_makes_no_rows() -> None:
    publisher = publisher_of(Kept())
    publisher._work(100.0, publish=True)
    before, agenda = publisher.snapshot().curves, publisher.agenda
    publisher.put(result(2, 1.0))
    publisher._work(200.0, publish=False)
    assert publisher.snapshot().curves is before and publisher.agenda is not agenda
    publisher._work(201.0, publish=True)
    assert {row.samples for row in publisher.snapshot().curves} == {1}


def test_a_scan_publishes_now_and_then_and_chooses_each_time() -> None:
    output = Kept()
    publisher = publisher_of(output)
    agendas = []
    for seconds in (1.0, 1.1, 1.2):
        publisher.put(result(2, seconds))
        publisher.report_progress()
        agendas.append(publisher.agenda)
    assert len(output.written) == 1
    assert len(set(map(id, agendas))) == 3


def test_who_reads_in_the_middle_of_an_update_gets_all_of_the_last_one_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The serving thread reads when it disables the probe, whatever the publisher is at."""
    publisher = publisher_of(Kept())
    publisher.put(result(2, 1.0))
    publisher.put(result(2, 2.0))
    publisher.process()
    before = publisher.full_snapshot()
    assert {row.samples for row in before.curves} == {2}
    assert before.boundaries and before.layers
    seen: list[Snapshot] = []

    def read_from_another_thread() -> None:
        reader = threading.Thread(target=lambda: seen.append(publisher.full_snapshot()))
        reader.start()
        reader.join(5.0)
        assert not reader.is_alive(), "the reader waits for the update"

    monkeypatch.setattr("vllm_nfp.session.new_pairs.give_way", read_from_another_thread)
    monkeypatch.setattr("vllm_nfp.results.gather.give_way", read_from_another_thread)
    publisher.put(result(2, 3.0))
    publisher.process()
    assert len(seen) == 5, "after the pair, after the answers, and after each of three modules"
    for found in seen:
        assert (found.boundaries, found.curves) == (before.boundaries, before.curves)
        assert found.layers == before.layers
    after = publisher.full_snapshot()
    assert {row.samples for row in after.curves} == {3}


def test_at_the_end_pairs_that_are_queued_count(caplog: pytest.LogCaptureFixture) -> None:
    publisher = publisher_of(Kept())
    publisher.put(result(2, 1.0))
    publisher.process()
    publisher.put(result(2, 2.0))
    assert {row.samples for row in publisher.full_snapshot().curves} == {1}
    assert {row.samples for row in publisher.last_snapshot().curves} == {2}
    assert not caplog.text


def test_at_the_end_an_update_that_hangs_or_fails_leaves_what_was_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm_nfp.session import publisher as module

    monkeypatch.setattr(module, "LAST_UPDATE_SECONDS", 0.01)
    publisher = publisher_of(Kept())
    publisher.put(result(2, 1.0))
    publisher.process()
    publisher.put(result(2, 2.0))
    with publisher._processing:
        assert {row.samples for row in publisher.last_snapshot().curves} == {1}

    def fail(*_: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(publisher._results, "add", fail)
    assert {row.samples for row in publisher.last_snapshot().curves} == {1}
    assert "the last pairs are not counted: ValueError('no room')" in caplog.text


def test_the_first_result_is_announced_once_with_the_command_that_shows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    publisher = publisher_of(Kept())
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        publisher._publish()
        assert "first results" not in caplog.text
        publisher.put(result(2, 1.0))
        for _ in range(3):
            publisher._publish()
    assert caplog.text.count("vllm-nfp: first results:") == 1
    assert "free positions per sequence at B=1, L=64 within 10 %" in caplog.text
    assert caplog.text.count("vllm-nfp recommend http://HOST:PORT") == 1
