"""Ranks find out before they wait for each other whether all have the same probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import extension, hooks, presence
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ProbeConfig

CONFIG = ProbeConfig(max_positions=8)
NOTE = presence.note_of(CONFIG)


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({0: NOTE, 1: NOTE}, None),
        ({4: NOTE, 5: NOTE, 6: NOTE}, None),
        ({0: NOTE, 1: None}, "rank 1 has no probe: install vllm-nfp on every node, and start each"),
        ({0: None, 1: NOTE}, "rank 0 has no probe"),
        (
            {0: NOTE, 1: presence.note_of(replace(CONFIG, max_positions=16))},
            "rank 1 has other probe settings than rank 0: start every node with the same --nfp",
        ),
        (
            {2: presence.note_of(CONFIG, "0.1.0"), 3: presence.note_of(CONFIG, "0.2.0")},
            "rank 3 has vllm-nfp 0.2.0 and rank 2 has 0.1.0: install the same on every node",
        ),
    ],
)
def test_the_first_difference_is_told_with_what_to_do(
    notes: dict[int, str | None], told: str | None
) -> None:
    found = presence.difference(notes)
    assert found is None if told is None else told in str(found)


def test_directories_may_differ_between_nodes() -> None:
    elsewhere = replace(CONFIG, run_dir="/tmp/vllm-nfp-b", output_dir="/data/b")
    assert presence.note_of(elsewhere) == NOTE


def _file_store(folder: Path) -> Any:
    return torch.distributed.FileStore(str(folder / "store"), 2)


def _tcp_store(folder: Path) -> Any:
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(params=[_file_store, _tcp_store], ids=["one host", "several"])
def rank(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], None]:
    """Makes this process one of two ranks, at each kind of store that vLLM's executors use."""
    pytest.importorskip("vllm")
    from vllm.distributed import parallel_state

    store = request.param(tmp_path)
    monkeypatch.setattr(presence, "_store", lambda: store)
    monkeypatch.setattr(parallel_state, "get_tp_group", lambda: SimpleNamespace(ranks=[0, 1]))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def become(number: int) -> None:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: number)

    return become


def test_notes_are_found_at_once_and_a_missing_one_after_a_bounded_wait(
    rank: Callable[[int], None],
) -> None:
    rank(0)
    presence.announce(CONFIG)
    with pytest.raises(presence.RanksDifferError, match="rank 1 has no probe"):
        presence.check_tensor_ranks(wait=0.1)
    rank(1)
    presence.announce(CONFIG)
    presence.check_tensor_ranks(wait=600.0)
    presence.announce(replace(CONFIG, overhead_budget=0.02))
    with pytest.raises(presence.RanksDifferError, match="rank 1 has other probe settings"):
        presence.check_tensor_ranks(wait=600.0)


def test_ranks_of_other_engines_are_looked_for_where_engines_step_together(
    rank: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.distributed import parallel_state

    world = SimpleNamespace(ranks=[0, 1, 2])
    monkeypatch.setattr(parallel_state, "get_world_group", lambda: world)
    for number in range(2):
        rank(number)
        presence.announce(CONFIG)
    presence.check_tensor_ranks(wait=600.0)
    with pytest.raises(presence.RanksDifferError, match="rank 2 has no probe"):
        presence.check_all_ranks(wait=0.1)
    rank(2)
    presence.announce(CONFIG)
    presence.check_all_ranks(wait=600.0)


def test_a_rank_that_is_alone_leaves_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_store", lambda: pytest.fail("there is nobody to tell"))
    presence.announce(CONFIG)


def _by_hooks(worker: Any) -> None:
    hooks._hook_warm_up(PatchSet(), worker, CONFIG, _no_observer)
    worker.compile_or_warm_up_model()


def _by_extension_point(worker: Any) -> None:
    extension.WorkerObserver(worker, CONFIG, _no_observer, PatchSet())
    worker.compile_or_warm_up_model()


def _no_observer(*_: object) -> Any:
    raise RuntimeError("there is nothing to observe")


@pytest.mark.parametrize("start", [_by_hooks, _by_extension_point])
@pytest.mark.parametrize("fault", [False, True])
def test_the_note_is_left_before_the_warm_up_and_a_fault_of_it_stays_in_the_probe(
    start: Callable[[Any], None], fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def announce(config: ProbeConfig) -> None:
        done.append(presence.note_of(config))
        if fault:
            raise RuntimeError("the store is gone")

    monkeypatch.setattr(presence, "announce", announce)
    start(SimpleNamespace(compile_or_warm_up_model=lambda: done.append("warm")))
    assert done == [NOTE, "warm"]
