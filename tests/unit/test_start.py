"""How long the probe may hold up the start of a server."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.config import ProbeConfig
from vllm_nfp.engine import session as module
from vllm_nfp.engine.session import Session

PIECE_SECONDS = 0.25
"""A warm-up run or a capture, on a slow host."""


class Clock:
    """Moved on by whatever takes time."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def attach(
    monkeypatch: pytest.MonkeyPatch, check_seconds: float = 0.5, **settings: Any
) -> tuple[float, float]:
    """Seconds that all took, and that the scan was given, where there is work without end."""
    now, given = Clock(), [0.0]

    class Engine:
        graph_bytes, timed_layers, num_layers, shares_graph_memory = 0, (), 1, False

        def __init__(self, *_: object) -> None:
            pass

        def check_kv_cache_untouched(self) -> None:
            now.seconds += check_seconds

        def prepare(self, time_is_up: Callable[[], bool]) -> None:
            while not time_is_up():
                now.seconds += PIECE_SECONDS

        def give_back_cache(self) -> None:
            pass

    class Prober:
        planner = SimpleNamespace(cells=(), feedback=None)
        timer = SimpleNamespace(times=None)

        def scan(self, seconds: float, on_progress: object) -> None:
            given[0] = seconds
            end = now.seconds + seconds
            while now.seconds < end:
                now.seconds += PIECE_SECONDS

    publisher = SimpleNamespace(
        identity=module.Snapshot("m", "0", module.State.WARMING), start=lambda: None
    )
    view = SimpleNamespace(device=torch.device("cpu"), name="v2")
    monkeypatch.setattr(module, "VllmProbeEngine", Engine)
    monkeypatch.setattr(module, "view_of", lambda _: view)
    monkeypatch.setattr(module.support, "refusal", lambda *_: None)
    monkeypatch.setattr(Session, "_assemble", lambda *_: (Prober(), publisher))
    config = SimpleNamespace(
        model_config=SimpleNamespace(served_model_name="m"),
        parallel_config=SimpleNamespace(data_parallel_index=0),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=64),
    )
    session = Session(ProbeConfig(**settings), config, now)
    session.attach(None)
    assert session.active
    return now.seconds - 1000.0, given[0]


def test_by_default_the_start_takes_less_than_five_seconds_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total, scan = attach(monkeypatch)
    assert total <= 4.0 + 2 * PIECE_SECONDS < 5.0
    assert scan == pytest.approx(2.0)


def test_a_check_that_takes_long_shortens_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    total, scan = attach(monkeypatch, check_seconds=3.5)
    assert total <= 4.0 + 2 * PIECE_SECONDS
    assert scan == pytest.approx(0.5)


def test_without_time_for_a_scan_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    total, scan = attach(monkeypatch, startup_seconds=0.0)
    assert scan == 0.0
    assert total <= 2.0 + PIECE_SECONDS
