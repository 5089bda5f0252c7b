"""Launches that are refused, and tickets that are given up."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quiet_inputs import quiet_inputs

from vllm_nfp.adapter.attention_groups import CellDoesNotFitError
from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.ranks import Alone
from vllm_nfp.adapter.server_limits import ServerLimits
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.batch import BatchBuilder
from vllm_nfp.probe.graph_cache import GraphCache
from vllm_nfp.probe.kv_proof import Prover
from vllm_nfp.probe.launcher import HEAD_START_SHARE, Launcher, Ticket
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.marks import ModuleMarks, StepMarks
from vllm_nfp.probe.memory import GpuMemory, HostMemory
from vllm_nfp.probe.runtime import Runtime
from vllm_nfp.probe.shapes import ShapeKey, ShapeTable
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.timing import HostClock, Mark
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError

CPU = torch.device("cpu")
RULES = GraphRules(True, False, True, True, CapturedGraphs((1, 2, 4, 8, 16, 32)), 64)
SERVER = ServerLimits(512, 2048, 64, 1 << 16, 2, 256, 1024, causal=True)


class Failing(BatchBuilder):
    """A builder whose batches cannot be filled."""

    error: RuntimeError | None = None

    def fill(self, *_: Any, **__: Any) -> None:
        assert self.error is not None
        raise self.error


def launcher_of(error: RuntimeError | None = None) -> tuple[Launcher, ShapeTable]:
    batches = Failing(RULES, [], [8], TokenPool(1000, 64, CPU, 0), CPU, True, 64)
    batches.error = error
    shapes, clock = ShapeTable(batches.build, times_modules=True), HostClock()
    memory = GpuMemory(lambda: 0, lambda: 0)
    graphs: GraphCache[ShapeKey] = GraphCache(
        64 << 20, memory, HostMemory(None), lambda key: shapes[key].give_up_graphs()
    )
    limits = ShapeLimits(SERVER, (1, 2), (), RULES, 64, on_gpu=True, head_in_graph=True)
    forward: Any = SimpleNamespace(timed=(), inputs=quiet_inputs())
    runtime = Runtime(batches, forward, Prover({}, [], clock, CPU), clock, Alone())
    return Launcher(runtime, Availability(limits, shapes, graphs, alone=True), CPU), shapes


STABLE_ABI_FAILURE = (
    'torch_call_dispatcher( "aten::new_empty", "", stack.data(), 0) API call failed at ops.h'
)


def test_a_probe_without_memory_is_refused_and_no_fault() -> None:
    launcher, _ = launcher_of(RuntimeError(STABLE_ABI_FAILURE))
    with pytest.raises(ShapeRefusedError, match="new_empty"):
        launcher.launch(Shape(1, 64, 2))
    assert not launcher.can_launch(Shape(1, 64, 2))


@pytest.mark.parametrize(
    ("error", "for_now"),
    [(torch.OutOfMemoryError("no memory"), True), (CellDoesNotFitError("too few blocks"), False)],
)
def test_memory_may_be_there_again_and_kv_blocks_never_are(
    error: RuntimeError, for_now: bool
) -> None:
    launcher, _ = launcher_of(error)
    with pytest.raises(ShapeRefusedError) as caught:
        launcher.launch(Shape(1, 64, 2))
    assert isinstance(caught.value, RefusedForNowError) is for_now


def test_a_discarded_ticket_frees_its_shape_and_its_marks() -> None:
    launcher, shapes = launcher_of()
    shape = shapes[1, 2]
    shape.busy = True
    step = StepMarks(Mark("start"), Mark("after"), Mark("end"))
    launcher.discard(Ticket(Shape(1, 64, 2), shape, step, ModuleMarks(), written=True))
    assert not shape.busy


def test_what_is_still_running_is_refused_for_now() -> None:
    launcher, shapes = launcher_of()
    shapes[1, 2].busy = True
    with pytest.raises(RefusedForNowError, match="still running"):
        launcher.launch(Shape(1, 64, 2))


def test_fresh_graphs_run_once_before_they_are_timed() -> None:
    """The first replay of a graph uploads it: a single pair must not be timed with that."""
    launcher, shapes = launcher_of()
    shape, runs = shapes[1, 2], list[str]()
    launcher._forward.run_head = lambda *_: runs.append("head")
    launcher._forward.inputs.embed = lambda _: runs.append("embed")  # the graph reads the result
    for part in ("step", "head", "module"):
        setattr(shape, f"{part}_graph", SimpleNamespace(replay=partial(runs.append, part)))
    shape.module_marks, shape.fresh = ModuleMarks(), True
    launcher._launch(Shape(1, 64, 2), shape, {})
    assert runs == ["step", "head", "module", "embed", "step", "head", "module"]
    launcher._launch(Shape(1, 64, 2), shape, {})
    assert runs[7:] == ["embed", "step", "head", "module"]


def test_with_several_ranks_the_head_has_no_graph_and_runs_as_well() -> None:
    launcher, shapes = launcher_of()
    shape, runs = shapes[1, 2], list[str]()
    launcher._forward.run_head = lambda *_: runs.append("head")
    step: Any = SimpleNamespace(replay=partial(runs.append, "step"))
    shape.step_graph, shape.hidden, shape.fresh = step, torch.zeros(2, 4), True
    launcher._launch(Shape(1, 64, 2), shape, {})
    assert runs == ["step", "head", "step", "head"]


class SlowHost(HostClock):
    """A device that reaches a mark as soon as nothing is left before it."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = 0.0
        self.now = 0.0

    def reached(self, mark: Mark) -> bool:
        return self.busy <= self.now


def launches(launch_seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, SlowHost, Any]:
    """A launcher on a device that is busy for as long as it is told; its holds; its shape."""
    launcher, shapes = launcher_of()
    clock, shape = SlowHost(), shapes[1, 2]

    def hold(seconds: float) -> None:
        clock.busy = max(clock.busy, clock.now) + seconds

    def replay() -> None:
        clock.now += launch_seconds

    shape.step_graph, shape.head_graph = (
        SimpleNamespace(replay=run) for run in (replay, lambda: None)
    )
    fields = (("_clock", clock), ("_on_gpu", True), ("_hold_stream", hold))
    for name, value in fields:
        monkeypatch.setattr(launcher, name, value)
    stream = SimpleNamespace(query=lambda: clock.busy <= clock.now)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return launcher, clock, shape


def test_a_launch_slower_than_the_head_start_is_told_and_the_next_one_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gap would lie in the first run of a pair alone: in the other one's favour."""
    launcher, clock, shape = launches(0.001, monkeypatch)
    assert launcher._launch(Shape(1, 64, 2), shape, {}).step.waited
    clock.now = clock.busy + 1.0
    assert not launcher._launch(Shape(1, 64, 2), shape, {}).step.waited
    assert clock.busy == pytest.approx(clock.now - 0.001 + HEAD_START_SHARE * 0.001)


def test_work_that_ends_before_a_launch_behind_it_is_lengthened_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher, clock, shape = launches(0.001, monkeypatch)
    launcher._launch(Shape(1, 64, 2), shape, {})  # the first run of a shape is proven
    clock.busy = clock.now + 0.0005
    assert launcher._launch(Shape(1, 64, 2), shape, {}).step.waited
    clock.busy = clock.now + 0.0005
    assert not launcher._launch(Shape(1, 64, 2), shape, {}).step.waited


def test_work_that_outlasts_the_launches_behind_it_is_not_lengthened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher, clock, shape = launches(0.0001, monkeypatch)
    launcher._launch(Shape(1, 64, 2), shape, {})
    for _ in range(3):
        clock.busy = clock.now + 0.005
        before = clock.busy
        assert not launcher._launch(Shape(1, 64, 2), shape, {}).step.waited
        assert clock.busy == before


def test_a_step_without_a_graph_waits_for_its_launches_as_in_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher, _, shape = launches(0.001, monkeypatch)
    shape.step_graph = shape.head_graph = None
    launcher._forward.run_model = lambda *_: torch.zeros(2, 4)
    launcher._forward.run_head = lambda *_: None
    assert not launcher._launch(Shape(1, 64, 2), shape, {}).step.waited
