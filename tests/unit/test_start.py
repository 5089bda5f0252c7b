"""How long the probe may hold up the start of a server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sessions import lead_of, session_of, started_of, vllm_config

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.dispatch import NO_GRAPHS
from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.snapshot import Snapshot, read_snapshot
from vllm_nfp.results.table import plain_table
from vllm_nfp.schedule import Prober
from vllm_nfp.session import first_scan, publication, start_probing, worker
from vllm_nfp.session import start as module
from vllm_nfp.session.agreement import Alone
from vllm_nfp.session.cells import log_skipped
from vllm_nfp.types import Module, State

PIECE_SECONDS = 0.25
"""A warm-up run or a capture, on a slow host."""


class Clock:
    """Moved on by whatever takes time."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def attach(
    monkeypatch: pytest.MonkeyPatch, check_seconds: float = 0.5, gpu: bool = False, **settings: Any
) -> tuple[float, float]:
    """Seconds that all took, and that the scan was given, where there is work without end."""
    now, given = Clock(), [0.0]

    class Engine:
        graph_bytes, timed_layers, num_layers, shares_graph_memory = 0, 0, 1, False
        on_gpu = gpu
        modules, rules = (Module.ATTENTION,), NO_GRAPHS

        def __init__(self, *_: object) -> None:
            pass

        def check_kv_cache_untouched(self) -> None:
            now.seconds += check_seconds

        def prepare(self, time_is_up: Callable[[], bool]) -> None:
            while not time_is_up():
                now.seconds += PIECE_SECONDS

        def refusal(self, batch_size: int, context: int) -> None:
            return None

        def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
            return (1, 2)

        def give_back_cache(self) -> None:
            pass

        def ready_keys(self) -> frozenset[tuple[int, int]]:
            return frozenset()

        def written_contexts(self) -> None:
            return None

    def scan(prober: Prober, seconds: float, *_: object) -> None:
        given[0] = seconds
        end = now.seconds + seconds
        while now.seconds < end:
            now.seconds += PIECE_SECONDS

    monkeypatch.setattr(start_probing, "ProbeEngine", Engine)
    monkeypatch.setattr(first_scan, "scan", scan)
    known_runner(monkeypatch)
    session = session_of(ProbeConfig(**settings), now=now)
    session.after_warm_up(None)
    assert session.active
    return now.seconds - 1000.0, given[0]


def known_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what is given for a runner that can be probed."""
    runner = SimpleNamespace(kv_cache_config=SimpleNamespace(kv_cache_groups=()))
    view = SimpleNamespace(device=torch.device("cpu"), name="v2", runner=runner)
    monkeypatch.setattr(module, "view_of", lambda _: view)
    monkeypatch.setattr(module.support, "refusal", lambda *_: None)
    monkeypatch.setattr(publication, "attention_backends", lambda _: ())


@pytest.mark.parametrize(("capture_seconds", "most"), [(2.0, 4.0), (20.0, 22.0)])
def test_the_start_takes_no_longer_than_its_two_settings(
    monkeypatch: pytest.MonkeyPatch, capture_seconds: float, most: float
) -> None:
    total, scan = attach(monkeypatch, capture_seconds=capture_seconds)
    assert total <= most + 2 * PIECE_SECONDS
    assert scan == pytest.approx(2.0)


@pytest.mark.parametrize("gpu", [True, False])
def test_the_log_speaks_of_a_gpu_where_there_is_one(
    gpu: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        attach(monkeypatch, gpu=gpu)
    (line,) = (text for text in caplog.messages if "probe active" in text)
    of = "GPU time" if gpu else "the serving time"
    assert f"at most 1 % of {of} and 0.25 % of steps" in line
    assert line.endswith("; 0 MiB of GPU memory") is gpu


def test_a_check_that_takes_long_shortens_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    total, scan = attach(monkeypatch, check_seconds=3.5, capture_seconds=2.0)
    assert total <= 4.0 + 2 * PIECE_SECONDS
    assert scan == pytest.approx(0.5)


def test_without_time_for_a_scan_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    total, scan = attach(monkeypatch, startup_seconds=0.0, capture_seconds=2.0)
    assert scan == 0.0
    assert total <= 2.0 + PIECE_SECONDS


def test_what_the_start_is_told_to_have_cost_holds_all_that_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here the predictions take 7 s, the first write 2 s, and imports took 0.5 s."""
    now, told = Clock(), list[Snapshot]()
    known_runner(monkeypatch)
    resident = [100 << 20]
    monkeypatch.setattr(worker, "host_bytes", lambda: resident[0])

    def predict(*_: object) -> tuple[()]:
        now.seconds += 7.0
        resident[0] += 3 << 20
        return ()

    def write(snapshot: Snapshot) -> None:
        now.seconds += 2.0
        told.append(snapshot)

    monkeypatch.setattr(publication, "predictions_of", predict)
    session = session_of(ProbeConfig(passive=True), begun=now() - 0.5, now=now, show=write)
    now.seconds += 30.0  # the worker warms up
    session.after_warm_up(None)
    assert session.active
    assert told[0].startup_seconds == pytest.approx(7.5)
    assert told[0].host_bytes == 3 << 20
    now.seconds += 100.0
    lead_of(session).publisher._publish()
    assert told[1].startup_seconds == pytest.approx(9.5)
    session.disable("the test is over", expected=True)
    assert told[-1].startup_seconds == pytest.approx(9.5)


def test_a_start_that_fails_has_cost_its_time_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = Clock(), list[Snapshot]()

    def view_of(_: object) -> None:
        now.seconds += 4.0
        raise RuntimeError("the runner cannot be read")

    monkeypatch.setattr(module, "view_of", view_of)
    monkeypatch.setattr(module.support, "refusal", lambda *_: None)
    session = session_of(now=now, show=told.append)
    session.after_warm_up(None)
    (found,) = told
    assert found.state is State.DISABLED
    assert found.startup_seconds == pytest.approx(4.0)


def test_an_unknown_vllm_is_passive_for_good_and_told_by_the_first_rank_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_runner(monkeypatch)
    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    told: list[Snapshot] = []
    for rank in (0, 1):
        session = session_of(engine=vllm_config(rank, tensor_parallel_size=2), show=told.append)
        session.after_warm_up(None)
        assert session.active is (rank == 0)
        if session.active:
            assert isinstance(started_of(session).agreement, Alone)
            lead_of(session).publisher._publish()
            session.disable("the test is over", expected=True)
    assert [found.state for found in told] == [State.PASSIVE, State.PASSIVE, State.DISABLED]
    assert "vLLM 0.99.0 is newer" in told[1].reason
    assert told[1].overhead_budget == 0.0


def test_a_fault_before_the_output_folder_is_made_is_told_in_it_without_another(
    monkeypatch: pytest.MonkeyPatch,
    inject_fault: Callable[[str], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "not" / "there"
    inject_fault("attach")
    known_runner(monkeypatch)
    session_of(ProbeConfig(output_dir=str(folder))).after_warm_up(None)
    assert read_snapshot(folder / "engine-0.json").state is State.DISABLED
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


def test_cells_that_are_not_probed_take_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = plain_table((1, 512), (256,), (1, 2), 4096, 8192, lambda *_: "none")
    few, none = "65792 distinct KV blocks are needed, the cache has 50250", "no CUDA graph"
    skipped = {(256, 4096): few, (512, 256): none, (64, 16384): few}
    with caplog.at_level(logging.INFO, logger="vllm.nfp"):
        log_skipped(skipped, table)
        log_skipped({}, table)
    assert caplog.messages == [
        "vllm-nfp: 3 cells are not probed: 2 left out (such as B=256 L=4096: "
        f"{few}), 1 answered from the others (such as B=512 L=256: {none})"
    ]
    with caplog.at_level(logging.DEBUG, logger="vllm.nfp"):
        log_skipped(skipped, table)
    assert f"vllm-nfp: cell B=64 L=16384 is not probed: {few}" in caplog.messages
