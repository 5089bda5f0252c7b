"""The first run of a shape: where it takes its memory, and what it leaves behind."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quiet_inputs import quiet_inputs

from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.capture import Capturer
from vllm_nfp.probe.cuda_graph import GraphPool
from vllm_nfp.probe.marks import ModuleMarks
from vllm_nfp.probe.shapes import PreparedShape


class Hidden:
    """Hidden states, which no one may hold after the run."""


class Runs:
    """A runtime that notes what runs, and a way into the graphs' memory."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.made: list[weakref.ref[Hidden]] = []
        inputs = quiet_inputs()
        inputs.embed = lambda _: self.calls.append("embed")
        self.forward = SimpleNamespace(
            timed=(1,),
            metadata=lambda *_, **__: {},
            inputs=inputs,
            run_model=lambda *_: self._hidden(),
            run_head=lambda *_: self.calls.append("head"),
            run_modules=self._modules,
        )
        self.batches = SimpleNamespace(fill=lambda *_: self.calls.append("fill"))
        proving = SimpleNamespace(end=lambda _: "proof")
        self.prover = SimpleNamespace(
            begin=lambda *_: self.calls.append("begin proof") or proving,  # type: ignore[func-returns-value]
            watch=self.calls.append,
        )
        self.clock = self.ranks = None

    def _hidden(self) -> Hidden:
        self.calls.append("model")
        hidden = Hidden()
        self.made.append(weakref.ref(hidden))
        return hidden

    def _modules(self, *_: Any, external: bool) -> ModuleMarks:
        assert not external
        self.calls.append("modules")
        return ModuleMarks()

    @contextmanager
    def inside(self, place: GraphPlace) -> Iterator[None]:
        self.calls.append(f"into {place.pool}")
        yield
        assert [ref() for ref in self.made] == [None], "hidden states outlive the run"
        self.calls.append("out")

    @contextmanager
    def beside(self, place: GraphPlace) -> Iterator[None]:
        self.calls.append(f"on the stream of {place.pool}")
        yield
        self.calls.append("off")


def first_run(execution: Execution, late: bool, shared: bool = True) -> list[str]:
    runs = Runs()
    place = GraphPlace("pool", None, shared)
    pool = GraphPool(place, lambda _: place)
    batch = ProbeBatch(1, 2, Placement(execution, 2, 1), widths=[8], device=torch.device("cpu"))
    shape = PreparedShape(batch)
    Capturer(runs, pool, runs, 64).warm_up(shape, late)  # type: ignore[arg-type]
    assert shape.warm
    return runs.calls


RUN = ["embed", "model", "head", "modules"]


def test_what_is_captured_later_runs_in_the_graphs_memory_with_the_proof_outside() -> None:
    assert first_run(Execution.FULL, late=True) == [
        "fill", "begin proof", "into pool", *RUN, "out", "proof"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("execution", "shared"),
    [(Execution.PIECEWISE, True), (Execution.NONE, True), (Execution.FULL, False)],
)
def test_what_has_no_graph_there_runs_where_steps_run(execution: Execution, shared: bool) -> None:
    assert first_run(execution, True, shared) == ["fill", "begin proof", *RUN, "proof"]


def test_the_first_run_of_the_start_is_on_the_stream_of_the_captures_alone() -> None:
    """What libraries keep for a stream is then made, and not in the memory of vLLM's graphs."""
    runs, place = Runs(), GraphPlace("pool", None, shared=True)
    capturer = Capturer(runs, GraphPool(place, lambda _: place), runs, 64)  # type: ignore[arg-type]
    for execution in (Execution.PIECEWISE, Execution.FULL, Execution.FULL):
        batch = ProbeBatch(1, 2, Placement(execution, 2, 1), widths=[8], device=torch.device("cpu"))
        capturer.warm_up(PreparedShape(batch), late=False)
    assert runs.calls == [
        "fill", *RUN, "fill", "on the stream of pool", *RUN, "off", "fill", *RUN
    ]  # fmt: skip


def test_at_the_start_a_run_without_vllms_pool_is_where_steps_run() -> None:
    assert first_run(Execution.FULL, late=False, shared=False) == ["fill", *RUN]
