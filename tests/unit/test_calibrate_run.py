"""From plans to samples: which series, in which order, in which processes."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_nfp.calibrate.memory import BESIDE_BYTES, SHARE_OF_FREE, group, needed_bytes
from vllm_nfp.calibrate.plans import (
    BLOCK_CELLS,
    CELLS,
    TOKENS,
    ModelPlan,
    attention_positions,
    series_of,
)
from vllm_nfp.calibrate.points import Kernel, Series
from vllm_nfp.calibrate.reference_models import REFERENCE, TRIAL, choose
from vllm_nfp.calibrate.run import Outcome, Progress, Stage, run_plans
from vllm_nfp.calibrate.sweep import PointRefusedError, time_series

GIB = 1 << 30


class Modules:
    def __init__(self, *kernels: Kernel) -> None:
        self._kernels = kernels

    def has(self, kernel: Kernel) -> bool:
        return kernel in self._kernels

    def linear_names(self) -> tuple[str, ...]:
        return ("a", "b")


@pytest.mark.parametrize("plan", [*REFERENCE, *TRIAL], ids=lambda plan: plan.label)
def test_plans_come_back_from_json(plan: ModelPlan) -> None:
    assert ModelPlan.from_json(plan.to_json()) == plan


def test_plans_are_chosen_by_label() -> None:
    assert choose(REFERENCE, ()) == REFERENCE
    assert [p.label for p in choose(REFERENCE, ["mixtral-8x7b"])] == ["mixtral-8x7b"]
    with pytest.raises(ValueError, match=r"no model 'gpt' to calibrate with: choose of llama"):
        choose(REFERENCE, ["gpt"])


def test_kv_cache_holds_the_largest_cell() -> None:
    for plan in REFERENCE:
        if Kernel.ATTENTION in plan.kernels:
            assert plan.kv_tokens >= max(b * (context + 17) for b, context in CELLS)
    # Two layers of 8 KV heads of 128 in 16 bits, keys and values.
    assert REFERENCE[0].kv_cache_bytes == 2 * 2 * 2 * 8 * 128 * 160_000


def test_only_fp8_plans_need_fp8() -> None:
    assert [plan.label for plan in REFERENCE if plan.fp8] == ["llama-3.1-8b-fp8"]


@pytest.mark.parametrize("group_size", [1, 4, 7, 8, 16, 64, 128])
def test_attention_positions_hold_both_sides_of_steps(group_size: int) -> None:
    positions = attention_positions(group_size)
    assert positions == tuple(sorted(set(positions)))
    assert positions[0] == 1
    for k in range(1, 9):
        edge = 64 * k // group_size
        if 1 <= edge <= 128:
            assert {edge, edge + 1} <= set(positions)


def test_series_of_a_dense_plan() -> None:
    found = list(series_of(Modules(Kernel.DENSE_FFN, Kernel.LM_HEAD), REFERENCE[0]))
    kinds = [series.kernel for series, _ in found]
    assert kinds.count(Kernel.ATTENTION) == len(CELLS) + len(BLOCK_CELLS)
    assert kinds[:4] == [Kernel.DENSE_FFN, Kernel.LM_HEAD, Kernel.LINEAR, Kernel.LINEAR]
    assert [s.name for s, _ in found if s.kernel is Kernel.LINEAR] == ["a", "b"]
    assert found[0][1] == TOKENS
    assert sum(not series.causal for series, _ in found) == len(BLOCK_CELLS)


def test_series_of_a_plan_with_fewer_kernels() -> None:
    plan = choose(REFERENCE, ["mixtral-8x7b"])[0]
    every = Modules(*Kernel)
    assert [series.kernel for series, _ in series_of(every, plan)] == [Kernel.MOE_FFN]


class FakeBench:
    """Refuses some N; times are 1000 N plus the number of the call."""

    def __init__(self, refused: set[int] = frozenset(), broken: int = 0) -> None:  # type: ignore[assignment]
        self.refused, self.broken = refused, broken
        self.made: list[int] = []
        self.called: list[int] = []
        self.released = 0

    def sizes(self, series: Series) -> tuple[int, int, int]:
        return 2, 3, 6

    def ready(self, series: Series, positions: int) -> Callable[[], float]:
        if positions in self.refused:
            raise PointRefusedError("no")
        if positions == self.broken:
            raise RuntimeError("broken")
        self.made.append(positions)

        def call() -> float:
            self.called.append(positions)
            return 1000.0 * positions + len(self.called)

        return call

    def release(self) -> None:
        self.released += 1


def test_passes_are_interleaved_and_points_in_order() -> None:
    bench = FakeBench(refused={4})
    curve = time_series(bench, Series(Kernel.DENSE_FFN), (1, 2, 4, 8), 3, random.Random(1))
    assert curve is not None
    assert bench.made == [8, 2, 1]  # largest first
    assert curve.positions == (1, 2, 8)
    assert all(len(passes) == 3 for passes in curve.seconds)
    assert (curve.inputs, curve.outputs, curve.weight_bytes) == (2, 3, 6)
    rounds = [bench.called[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(one) == [1, 2, 8] for one in rounds)
    assert len({tuple(one) for one in rounds[1:]}) > 1  # orders of their own
    # The first round warms up: its times (calls 1 to 3) are not kept.
    assert min(value % 1000 for passes in curve.seconds for value in passes) == 4
    assert bench.released == 1


def test_a_series_without_one_position_is_none() -> None:
    bench = FakeBench(refused={1})
    assert time_series(bench, Series(Kernel.LM_HEAD), (1, 2), 1, random.Random(0)) is None
    assert bench.released == 1
    assert not bench.called


def test_calls_are_released_after_a_fault() -> None:
    bench = FakeBench(broken=2)
    with pytest.raises(RuntimeError, match="broken"):
        time_series(bench, Series(Kernel.LM_HEAD), (1, 2), 1, random.Random(0))
    assert bench.released == 1


WORKER = """
import json, os, pathlib, sys, time
plan, out = json.load(open(sys.argv[1])), pathlib.Path(sys.argv[2])
pid = pathlib.Path(out.parent, plan["label"] + ".pid"); pid.write_text(str(os.getpid()))
kind = plan["label"]
curve = {"kernel": "lm_head", "name": "", "batch_size": 1, "context": 0, "causal": True,
         "inputs": 1, "outputs": 1, "weight_bytes": 2, "positions": [1], "seconds": [[1e-5]]}
head = {"model": kind, "config": plan["config"], "environment": {}}
text = json.dumps(head) + "\\n" + json.dumps(curve) + "\\n"
if kind == "dies-early":
    print("no such device", file=sys.stderr); sys.exit(3)
sys.stdout.buffer.write(b"\\xff noise\\n"); sys.stdout.buffer.flush()
print("ready", flush=True)
sys.stdin.readline()
if kind == "dies-late":
    out.write_text(text); sys.exit(1)
if kind == "closes":
    sys.exit(0)
print("series 1 of 2", flush=True)
out.write_text("garbage" if kind == "garbage" else text)
print("done 1 curves", flush=True)
time.sleep(600)
"""


def run(folder: Path, *labels: str) -> tuple[Outcome, list[str], list[Progress]]:
    script = folder / "worker.py"
    folder.mkdir(exist_ok=True)
    script.write_text(WORKER)
    lines: list[str] = []
    seen: list[Progress] = []
    plans = [ModelPlan(label, {"hidden_size": 1}) for label in labels]
    outcome = run_plans(
        plans, folder, lines.append, on_progress=seen.append,
        command=(sys.executable, str(script)),
    )  # fmt: skip
    return outcome, lines, seen


def alive(folder: Path, label: str) -> bool:
    try:
        os.kill(int((folder / f"{label}.pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_samples_of_all_good_workers(tmp_path: Path) -> None:
    outcome, lines, seen = run(tmp_path, "one", "two")
    assert [samples.model for samples in outcome.samples] == ["one", "two"]
    assert outcome.failures == ()
    assert lines == ["2 of 2 engines are up", "one: done 1 curves", "two: done 1 curves"]
    assert Progress("two", Stage.MEASURING, 1, 2) in seen
    assert seen[-1] == Progress("two", Stage.DONE)
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == ["one.jsonl", "two.jsonl"]
    assert not list(tmp_path.glob("*.log")) + list(tmp_path.glob("*.plan.json"))
    assert not alive(tmp_path, "one")


@pytest.mark.parametrize("bad", ["dies-early", "dies-late", "closes", "garbage"])
def test_a_bad_worker_costs_only_itself(tmp_path: Path, bad: str) -> None:
    outcome, _, seen = run(tmp_path, bad, "good")
    assert [f.label for f in outcome.failures] == [bad]
    assert outcome.failures[0].log.exists()
    assert "good" in [samples.model for samples in outcome.samples]
    # What was measured before the end is kept.
    assert (bad in [samples.model for samples in outcome.samples]) == (bad == "dies-late")
    if bad == "dies-early":
        assert "no such device" in outcome.failures[0].log.read_text()
        assert Progress(bad, Stage.FAILED) in seen


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)

    def interrupt() -> None:
        assert alive(tmp_path, "one")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plans([ModelPlan("one", {}), ModelPlan("two", {})], tmp_path, lambda line: None,
                  interrupt, command=(sys.executable, str(tmp_path / "worker.py")))  # fmt: skip
    assert not alive(tmp_path, "one")
    assert not alive(tmp_path, "two")


def test_memory_counts_weights_cache_and_the_rest() -> None:
    plan = REFERENCE[0]
    weights = 2 * (2 * 4096 * 128256 + 2 * (4096 * (4096 + 2 * 1024) + 4096**2 + 3 * 4096 * 14336))
    assert needed_bytes(plan) == weights + plan.kv_cache_bytes + BESIDE_BYTES


def test_all_reference_plans_fit_side_by_side_on_80_gib() -> None:
    found = group(REFERENCE, 79 * GIB)
    assert found.groups == (REFERENCE,)
    assert found.too_large == ()


@pytest.mark.parametrize("free", [6, 8, 10, 12, 16, 24, 40])
def test_groups_keep_their_budget_and_lose_no_plan(free: int) -> None:
    found = group(REFERENCE, free * GIB)
    budget = free * GIB * SHARE_OF_FREE
    for plans in found.groups:
        assert sum(map(needed_bytes, plans)) <= budget
    assert all(needed_bytes(plan) > budget for plan in found.too_large)
    placed = [plan.label for plans in found.groups for plan in plans]
    assert sorted(placed + [p.label for p in found.too_large]) == sorted(
        plan.label for plan in REFERENCE
    )
    assert len(placed) == len(set(placed))
