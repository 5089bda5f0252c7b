"""Launches that are refused, and tickets that are given up."""

from __future__ import annotations

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
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.batch import BatchBuilder
from vllm_nfp.probe.graph_cache import GraphCache
from vllm_nfp.probe.kv_proof import Prover
from vllm_nfp.probe.launcher import Launcher, Ticket
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.marks import ModuleMarks, StepMarks
from vllm_nfp.probe.memory import GpuMemory, HostMemory
from vllm_nfp.probe.runtime import Runtime
from vllm_nfp.probe.shapes import ShapeKey, ShapeTable
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.timing import HostClock, Mark
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError

CPU = torch.device("cpu")
RULES = GraphRules(True, False, True, True, (1, 2, 4, 8, 16, 32), 64)
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
    launcher.discard(Ticket(Shape(1, 64, 2), shape, step, ModuleMarks()))
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
    for part in ("step", "head", "module"):
        setattr(shape, f"{part}_graph", SimpleNamespace(replay=partial(runs.append, part)))
    shape.module_marks, shape.fresh = ModuleMarks(), True
    launcher._launch(Shape(1, 64, 2), shape, {})
    assert runs == ["step", "head", "module", "step", "head", "module"]
    launcher._launch(Shape(1, 64, 2), shape, {})
    assert runs[6:] == ["step", "head", "module"]


def test_with_several_ranks_the_head_has_no_graph_and_runs_as_well() -> None:
    launcher, shapes = launcher_of()
    shape, runs = shapes[1, 2], list[str]()
    launcher._forward.run_head = lambda *_: runs.append("head")
    step: Any = SimpleNamespace(replay=partial(runs.append, "step"))
    shape.step_graph, shape.hidden, shape.fresh = step, torch.zeros(2, 4), True
    launcher._launch(Shape(1, 64, 2), shape, {})
    assert runs == ["step", "head", "step", "head"]
