"""How long a server's host takes for the parts of a step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.verification.host_parts import HostParts, follow_runner


def test_calls_are_timed_with_what_they_call_and_those_that_fail() -> None:
    clock = [0.0]

    def work(seconds: float) -> float:
        clock[0] += seconds
        if seconds > 1.0:
            raise ValueError
        return seconds

    parts, owner = HostParts(lambda: clock[0]), SimpleNamespace(work=work)
    parts.follow(owner, "work", "part")
    parts.follow(owner, "other", "nothing")
    assert owner.work(0.5) == 0.5
    with pytest.raises(ValueError, match=""):
        owner.work(1.5)
    found = parts.take()["part"]
    assert (found["calls"], found["ms"], found["median_ms"], found["most_ms"]) == (
        2, 2000.0, 1000.0, 1500.0,
    )  # fmt: skip
    assert parts.take() == {"part": {"calls": 0, "ms": 0.0}}


def test_slow_calls_are_told_apart_from_the_others() -> None:
    clock = [0.0]

    def work(seconds: float) -> None:
        clock[0] += seconds

    parts, owner = HostParts(lambda: clock[0]), SimpleNamespace(work=work)
    parts.follow(owner, "work", "part")
    for number in range(101):
        owner.work(0.1 if number == 7 else 0.001)
    found = parts.take()["part"]
    assert found["median_ms"] == found["p99_ms"] == pytest.approx(1.0)
    assert found["most_ms"] == pytest.approx(100.0)


def test_a_step_is_from_one_begin_to_the_next() -> None:
    clock = [0.0]

    def begin() -> str:
        clock[0] += 1.0
        return "begun"

    parts, owner = HostParts(), SimpleNamespace(begin=begin)
    parts.follow_begins(owner, "begin", "step", lambda: clock[0])
    for _ in range(3):
        assert owner.begin() == "begun"
        clock[0] += 2.0
    assert parts.take()["step"]["ms"] == 6000.0, "two steps of 3 s"


def test_all_parts_of_an_adaptive_step_are_named() -> None:
    def nothing(*_: object) -> None:
        pass

    speculator = SimpleNamespace(
        propose=nothing, observe_verification=nothing, _prefill=nothing,
        prefill_cudagraph_manager=SimpleNamespace(run_fullgraph=nothing),
    )  # fmt: skip
    events = [SimpleNamespace(synchronize=nothing) for _ in range(2)]
    manager = SimpleNamespace(
        get_num_tokens=nothing, reallocate_drafts=nothing, record_confidences=nothing,
        _copy_events=events,
    )  # fmt: skip
    runner = SimpleNamespace(
        execute_model=nothing, sample_tokens=nothing, prepare_inputs=nothing, prepare_attn=nothing,
        sample=nothing, speculator=speculator, adaptive_verification=manager,
    )  # fmt: skip
    parts = follow_runner(runner)
    for event in events:
        event.synchronize()
    told = parts.take()
    assert told["wait for confidences"]["calls"] == 2
    assert len(told) == 15
    runner.speculator = runner.adaptive_verification = None
    assert len(follow_runner(runner).take()) == 7


def test_the_names_are_vllms() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager
    from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

    for owner, names in (
        (GPUModelRunner,
         ("execute_model", "sample_tokens", "prepare_inputs", "prepare_attn", "sample")),
        (DraftModelSpeculator, ("propose", "observe_verification")),
        (AdaptiveVerificationManager,
         ("get_num_tokens", "reallocate_drafts", "record_confidences")),
    ):  # fmt: skip
        assert all(hasattr(owner, name) for name in names)
