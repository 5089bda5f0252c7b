"""Collectives between ranks: what is timed of them, and how graphs with them are captured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import communication, ranks
from vllm_nfp.probe import marks
from vllm_nfp.probe.marks import Interval, IntervalRecorder, ModuleMarks, StepMarks
from vllm_nfp.schedule.lockstep import PeerFaultError
from vllm_nfp.timing import Mark
from vllm_nfp.types import Module


class Ticks:
    """Each mark is one later than the one before."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> Mark:
        self.now += 1
        return Mark(self.now)


def spans(intervals: list[Interval]) -> list[tuple[int, Module, int, int]]:
    return [(i.layer, i.module, i.start.value, i.end.value) for i in intervals]


def test_a_collective_inside_a_module_splits_it() -> None:
    found: list[Interval] = []
    recorder = IntervalRecorder(Ticks().mark, found)
    recorder.on_layer(3)
    recorder.on_module(3, Module.DENSE_FFN, True)  # 1
    recorder.on_collective(True)  # 2
    recorder.on_collective(False)  # 3
    recorder.on_module(3, Module.DENSE_FFN, False)  # 4
    recorder.on_collective(True)  # 5: beside any module
    recorder.on_collective(False)  # 6
    recorder.on_layer(None)
    recorder.on_collective(True)  # the embedding's, of no layer
    recorder.on_collective(False)
    assert spans(found) == [
        (3, Module.DENSE_FFN, 1, 2),
        (3, Module.COMMUNICATION, 2, 3),
        (3, Module.DENSE_FFN, 3, 4),
        (3, Module.COMMUNICATION, 5, 6),
    ]


def test_a_mark_that_two_intervals_share_is_given_back_once() -> None:
    found: list[Interval] = []
    recorder = IntervalRecorder(Ticks().mark, found)
    recorder.on_layer(0)
    recorder.on_module(0, Module.DENSE_FFN, True)
    recorder.on_collective(True)
    recorder.on_collective(False)
    recorder.on_module(0, Module.DENSE_FFN, False)
    given_back: list[Mark] = []
    clock: Any = SimpleNamespace(release=given_back.append)
    step = StepMarks(Mark("start"), Mark("after"), Mark("end"))
    marks.release(clock, step, ModuleMarks(found))
    assert len(given_back) == len({id(mark) for mark in given_back}) == 3 + 4


class Group:
    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def all_reduce(self, value: int) -> int:
        return 2 * value

    def combine(self, value: int) -> int:
        return self.all_reduce(value) + 1

    def all_gather(self, value: int) -> int:
        raise RuntimeError("the link is down")


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vllm.distributed.parallel_state with two groups of two and one of one."""

    def missing() -> None:
        raise AssertionError("expert parallel group is not initialized")

    groups = SimpleNamespace(tp=Group(2), dp=Group(1))
    made = ModuleType("vllm.distributed.parallel_state")
    made.get_tp_group = lambda: groups.tp  # type: ignore[attr-defined]
    made.get_dp_group = lambda: groups.dp  # type: ignore[attr-defined]
    made.get_ep_group = missing  # type: ignore[attr-defined]
    made.GraphCaptureContext = lambda stream: stream  # type: ignore[attr-defined]
    package = ModuleType("vllm.distributed")
    package.parallel_state = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.distributed", package)
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", made)
    return groups


def test_collectives_are_watched_once_each_and_then_let_go(state: Any) -> None:
    edges: list[bool] = []
    with communication.watched(edges.append):
        assert state.tp.all_reduce(4) == 8
        assert state.tp.combine(4) == 9  # made of an all-reduce, and counted once
        assert state.dp.all_reduce(1) == 2  # one rank has nothing to send
        with pytest.raises(RuntimeError, match="link is down"):
            state.tp.all_gather(1)
        edges.pop()  # it has begun and never ended
        assert state.tp.all_reduce(1) == 2, "a failed one must not hide those after it"
    assert edges == [True, False] * 3
    assert state.tp.all_reduce(4) == 8
    assert len(edges) == 6
    assert vars(state.tp) == {"world_size": 2}


class Custom:
    """vLLM's custom all-reduce: tells its peers of captured buffers unless it is disabled."""

    _ptr = 7

    def __init__(self) -> None:
        self.disabled = False
        self.told = 0


class Talk:
    """A lockstep whose other ranks answer as told."""

    def __init__(self, others_agree: bool = True, fault: bool = False) -> None:
        self.others_agree = others_agree
        self.fault = fault
        self.asked: list[bool] = []

    def agree(self, possible: bool, topic: str = "") -> bool:
        self.asked.append(possible)
        if self.fault:
            raise PeerFaultError("fault on rank 1 of 2")
        return possible and self.others_agree


@pytest.fixture
def custom(state: Any, monkeypatch: pytest.MonkeyPatch) -> Custom:
    made = Custom()

    @contextmanager
    def graph_capture(context: Any) -> Iterator[None]:
        try:
            yield
        finally:
            if not made.disabled:
                made.told += 1

    state.tp.device_communicator = SimpleNamespace(ca_comm=made)
    state.tp.graph_capture = graph_capture
    state.dp.graph_capture = lambda context: nullcontext()
    ops = SimpleNamespace(get_graph_buffer_ipc_meta=lambda ptr: ([], list(range(100))))
    package = ModuleType("vllm")
    package._custom_ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    return made


def capture(talk: Talk, error: Exception | None = None) -> None:
    with ranks.SeveralRanks(talk.agree, min).capturing(None):
        if error is not None:
            raise error


def test_buffers_are_told_to_the_other_ranks_once_all_have_captured(custom: Custom) -> None:
    talk = Talk()
    capture(talk)
    assert custom.told == 1
    assert talk.asked == [True]


@pytest.mark.parametrize("mine", [None, torch.OutOfMemoryError("no memory")])
def test_no_rank_tells_of_a_graph_that_one_could_not_capture(
    custom: Custom, mine: Exception | None
) -> None:
    talk = Talk(others_agree=mine is not None)
    with pytest.raises(ranks.CaptureEndedError):
        capture(talk, mine)
    assert custom.told == 0
    assert not custom.disabled, "the server goes on with its all-reduce"
    assert talk.asked == [mine is None], "the others wait for an answer"


def test_another_failure_is_left_to_the_session_which_tells_the_others(custom: Custom) -> None:
    talk = Talk()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        capture(talk, RuntimeError("illegal memory access"))
    assert custom.told == 0
    assert talk.asked == []


def test_a_fault_of_another_rank_ends_the_capture(custom: Custom) -> None:
    with pytest.raises(PeerFaultError):
        capture(Talk(fault=True))
    assert custom.told == 0
    assert not custom.disabled


def test_captured_collectives_leave_room_for_the_servers_own(
    custom: Custom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "MOST_CAPTURED_COLLECTIVES", 250)
    team = ranks.SeveralRanks(Talk().agree, min)
    for _ in range(2):
        with team.capturing(None):
            pass
    with pytest.raises(ranks.CaptureEndedError), team.capturing(None):
        pass
    assert custom.told == 2
