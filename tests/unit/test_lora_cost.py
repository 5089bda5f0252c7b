"""The times of a step with LoRA adapters and without, on a manager that only pretends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.hosts import environment
from benchmarks.overhead import lora_cost
from benchmarks.overhead.lora_cost import LAST, LONG, SHORT, Side, row_of, side_of, told
from benchmarks.serving import shapes
from benchmarks.serving.graph_times import GraphTimes, Replay, steady
from vllm_nfp.probe.launcher import HEAD_START_SECONDS
from vllm_nfp.timing.clock import Mark

PLAIN, ADAPTED, LAUNCH = 1e-3, 1.2e-3, 1e-4
ALL_STEPS = LONG - 1


class Device:
    """A stream and a host that launches on it; both clocks stand still but for the work."""

    def __init__(self, launch: float = LAUNCH) -> None:
        self.host = self.stream = 0.0
        self.launch = launch
        self.released = 0

    def hold(self, seconds: float) -> None:
        self.stream = max(self.stream, self.host) + seconds

    def run(self, graph: Any) -> str:
        self.host += self.launch
        self.stream = max(self.stream, self.host) + (ADAPTED if graph.num_active_loras else PLAIN)
        return f"hidden states of {graph.num_tokens}"

    def mark(self, external: bool = False) -> Mark:
        return Mark(max(self.stream, self.host))

    def reached(self, mark: Mark) -> bool:
        return bool(mark.value <= self.host)

    def seconds(self, start: Mark, end: Mark) -> float:
        return float(end.value - start.value)

    def release(self, mark: Mark) -> None:
        self.released += 1

    def renew(self, mark: Mark) -> None:
        raise AssertionError

    ready = reached


def graph(tokens: int = 8, adapters: int = 0) -> SimpleNamespace:
    return SimpleNamespace(num_tokens=tokens, num_active_loras=adapters)


def timed(device: Device) -> tuple[SimpleNamespace, GraphTimes]:
    manager = SimpleNamespace(run_fullgraph=device.run)
    return manager, GraphTimes(manager, device, device.hold, lambda: device.host)


def test_replays_are_timed_on_the_device_without_their_launch() -> None:
    device = Device()
    manager, times = timed(device)
    manager.run_fullgraph(graph())
    assert times.take() == [], "nothing is timed before it is switched on"
    times.on = True
    assert manager.run_fullgraph(graph()) == "hidden states of 8"
    manager.run_fullgraph(graph(adapters=3))
    plain, adapted = times.take()
    assert (plain.tokens, plain.adapters, plain.waited) == (8, 0, False)
    assert plain.seconds == pytest.approx(PLAIN)
    assert adapted.adapters == 3 and adapted.seconds == pytest.approx(ADAPTED)
    assert times.take() == [] and device.released == 4


def test_a_stream_is_held_for_longer_after_a_long_launch() -> None:
    device = Device(launch=2 * HEAD_START_SECONDS)
    manager, times = timed(device)
    times.on = True
    for _ in range(2):
        device.host = device.stream = max(device.host, device.stream)
        manager.run_fullgraph(graph())
    first, second = times.take()
    assert first.waited and first.seconds == pytest.approx(HEAD_START_SECONDS + PLAIN)
    assert not second.waited and second.seconds == pytest.approx(PLAIN)


def test_steady_replays_ran_on_the_wanted_graph_and_did_not_wait() -> None:
    replays = [Replay(8, 0, 1.0 + i, False) for i in range(6)]
    assert [r.seconds for r in steady(replays, 8, False, 2, 1)] == [3.0, 4.0, 5.0]
    assert steady(replays, 8, True, 2, 1) == []
    assert steady(replays, 32, False, 2, 1) == []
    assert steady([Replay(8, 3, 1.0, True)] * 6, 8, True, 2, 1) == []
    assert steady(replays, 8, False, 4, 2) == []


def request(seconds: float, adapters: int = 0) -> list[Replay]:
    """One whose first steps and last one take longer."""
    inner = ALL_STEPS - SHORT - LAST
    return [
        Replay(8, adapters, value, False)
        for value in (*[9.0] * SHORT, *[seconds] * inner, *[9.0] * LAST)
    ]


def test_a_row_compares_the_device_and_keeps_the_hosts_clock_beside_it() -> None:
    plain = side_of([request(1.0), request(1.1), request(1.1)], [3.0, 3.1, 3.3], 8, False)
    adapted = side_of([request(1.2, 3), request(1.2, 3), request(1.3, 3)], [2.9] * 3, 8, True)
    inner = ALL_STEPS - SHORT - LAST
    assert plain == Side(3 * inner, 0, 1.1, [1.0, 1.1, 1.1], 3.1)
    row = row_of(8, plain, adapted)
    assert row["ratio"] == pytest.approx(1.2 / 1.1)
    assert row["wall_ratio"] == pytest.approx(2.9 / 3.1)
    assert row["adapted"]["replays"] == 3 * inner and "failed" not in row
    assert f"({3 * inner} and {3 * inner} replays)" in told(row)


def test_a_row_without_a_replay_says_so_and_has_no_ratio() -> None:
    plain = side_of([request(1.0)], [3.0], 8, False)
    none = side_of([request(1.0)], [3.1], 8, True)  # the graph without adapters ran
    assert none == Side(0, ALL_STEPS - SHORT - LAST, None, [], 3.1)
    row = row_of(8, plain, none)
    assert row["failed"] == "no replay of a FULL graph was timed with adapters"
    assert "ratio" not in row and row["failed"] in told(row)
    assert "without and with adapters" in row_of(8, none, none)["failed"]


class Engine:
    """A ``vllm.LLM`` each step of which replays a graph, with adapters or always without."""

    def __init__(self, manager: Any, knows_adapters: bool) -> None:
        self._manager, self._knows_adapters = manager, knows_adapters

    def generate(self, prompts: list[Any], params: Any, lora_request: Any, **_: Any) -> None:
        adapters = 3 if lora_request and self._knows_adapters else 0
        for _step in range(params.max_tokens - 1):
            self._manager.run_fullgraph(graph(len(prompts), adapters))


@pytest.mark.parametrize("knows_adapters", [True, False])
def test_the_program_fails_where_no_step_replayed_a_graph_with_adapters(
    knows_adapters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    torch = pytest.importorskip("torch")
    device = Device()
    manager = SimpleNamespace(run_fullgraph=device.run)
    engine = Engine(manager, knows_adapters)
    monkeypatch.setattr(lora_cost, "WITHOUT_PROBE", {})
    monkeypatch.setattr(shapes, "shared_model", lambda *_: tmp_path)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(lora_cost, "write_adapter", lambda folder, *_: folder)
    monkeypatch.setattr(lora_cost, "start_engine", lambda *_: engine)
    runner = SimpleNamespace(cudagraph_manager=manager)
    monkeypatch.setattr(lora_cost, "worker_of", lambda _: SimpleNamespace(model_runner=runner))
    monkeypatch.setattr(environment, "record", dict)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        lora_cost, "GraphTimes",
        lambda found, _: GraphTimes(found, device, device.hold, lambda: device.host),
    )  # fmt: skip
    out = tmp_path / "new" / "lora.json"
    arguments = ["--out", str(out), "--batch-sizes", "1,8"]
    result = CliRunner().invoke(lora_cost.main, arguments)
    assert result.exit_code == (0 if knows_adapters else 1), result.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1, 8]
    if knows_adapters:
        assert all(row["ratio"] == pytest.approx(ADAPTED / PLAIN) for row in rows)
        assert all(row["adapted"]["left_out"] == 0 for row in rows)
    else:
        assert "no FULL graph was timed at batch sizes [1, 8]" in result.output
        assert all("ratio" not in row and row["adapted"]["replays"] == 0 for row in rows)


def test_vllm_has_full_graphs_for_each_batch_size_with_adapters_and_without() -> None:
    """What the benchmark rests on, by vLLM's own names."""
    pytest.importorskip("vllm")
    import inspect

    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, ModelCudaGraphManager
    from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    config = SimpleNamespace(max_loras=2, specialize_active_lora=False)
    for specialize in (True, False):
        compilation = SimpleNamespace(cudagraph_specialize_lora=specialize)
        assert get_lora_capture_cases(config, compilation) == [0, 3]
    assert list(inspect.signature(ModelCudaGraphManager.run_fullgraph).parameters)[1:] == ["desc"]
    assert {"num_tokens", "num_active_loras"} <= set(BatchExecutionDescriptor.__annotations__)
    text = inspect.getsource(GPUModelRunner)
    assert "self.cudagraph_manager.run_fullgraph(" in text
