"""A probe session on a real vLLM engine in this process: what it measures and never touches."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import attach, attaching, engine_of, only_times, prober_of, publisher_of, started_engine
from rounds import rounds

from vllm_nfp.adapter.engines import worker_of
from vllm_nfp.config import ProbeConfig, config_from_mapping
from vllm_nfp.results.profile import load_profile, profile_file
from vllm_nfp.results.snapshot import Snapshot, read_snapshot
from vllm_nfp.types import Basis, Module, State

pytestmark = pytest.mark.engine

SETTINGS = {
    "batch_sizes": [1, 4],
    "contexts": [32, 128],
    "max_positions": 8,
    "overhead_budget": 0.5,
    "capture_seconds": 2.0,
    "startup_seconds": 0.3,
    "publish_seconds": 0.1,
    "min_samples": 2,
    "step_share": 1.0,
}


@pytest.fixture(scope="module")
def llm(dense_model: Path) -> Iterator[Any]:
    with started_engine(
        dense_model, dtype="float32", max_num_seqs=8, distributed_executor_backend="uni",
        enable_prefix_caching=False,
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def worker(llm: Any) -> Any:
    return worker_of(llm)


@pytest.fixture
def start(worker: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Attach a session with hooks, as the worker hook does; detach it in the end."""
    with attaching() as begin:
        yield lambda runner=None, **changes: begin(configure(tmp_path, **changes), worker, runner)
    assert "execute_model" not in vars(worker.model_runner), "a hook was left behind"


def configure(folder: Path, **changes: object) -> ProbeConfig:
    return config_from_mapping({**SETTINGS, "run_dir": str(folder), **changes})


def generate(llm: Any, tokens: int = 48, count: int = 4) -> list[list[int]]:
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": [7 + i, 30, 99, 200 + i] * 8} for i in range(count)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    return [list(o.outputs[0].token_ids) for o in llm.generate(requests, params, use_tqdm=False)]


def generate_until(
    llm: Any, happened: Callable[[], bool], tokens: int = 48
) -> list[list[list[int]]]:
    """Generate until something has happened, of which a busy machine does little at a time."""
    outputs: list[list[list[int]]] = []
    for _ in rounds():
        outputs.append(generate(llm, tokens))
        if happened():
            break
    return outputs


def snapshot(folder: Path) -> Snapshot:
    return read_snapshot(folder / "engine-0.json")


def test_estimates_appear_for_every_module_and_cell(
    llm: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    session = start(
        startup_seconds=20.0, output_dir=str(tmp_path / "out"), layer_histograms=True,
        wanted_samples=2,
    )  # fmt: skip
    every = {(1, 32), (1, 128), (4, 32), (4, 128)}

    def all_known() -> bool:
        """A busy machine measures some points between steps alone."""
        publisher_of(session).process()
        missing = publisher_of(session).snapshot().missing_pairs
        return missing == 0 and prober_of(session).outcomes["measured"] > 0

    generate_until(llm, all_known, tokens=96)
    found = publisher_of(session).snapshot()
    assert {row.module for row in found.boundaries} == {"attention", "dense_ffn", "model"}
    cells = {(row.batch_size, row.context) for row in found.boundaries}
    assert cells == every
    assert all(1 <= row.lower <= row.positions <= row.upper <= 8 for row in found.boundaries)
    assert {row.epsilon for row in found.boundaries} == {0.05, 0.1, 0.2}
    assert all(row.median_seconds > 0 for row in found.curves)
    assert found.probes["measured"] > 0
    assert {(h.layer, h.module) for h in found.layers} == {
        (layer, module) for layer in range(3) for module in ("attention", "dense_ffn")
    }
    # The modules of all layers are part of the step: they cannot take longer than it. At one
    # position, which every pair has run, a busy machine does not blur that.
    ones = {(r.module, r.batch_size, r.context): r for r in found.curves if r.positions == 1}
    for (module, b, c), row in ones.items():
        if module == "model":
            parts = sum(ones[m, b, c].median_seconds for m in ("attention", "dense_ffn"))
            assert 3 * parts < 2.0 * row.median_seconds
    lines = (tmp_path / "out" / "samples-0.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == found.probes["startup"] + found.probes["measured"]
    assert all(sample["many"]["written"] for sample in samples), "without experts"
    assert json.loads((tmp_path / "out" / "environment-0.json").read_text())["device"]
    session.disable("the test is over", expected=True)
    profile = load_profile(profile_file(tmp_path / "out", "0"))
    assert profile.curves == found.curves
    assert profile.boundaries == found.boundaries
    assert {row.layer for row in profile.layer_times} == {0, 1, 2}
    assert profile.run.reason == "the test is over"
    assert profile.environment.enforce_eager
    assert snapshot(tmp_path).layer_times == (), "/metrics carries what it does not show"


def test_at_the_defaults_all_cells_are_answered_at_once_and_live_rows_follow_traffic(
    llm: Any, worker: Any, tmp_path: Path
) -> None:
    # But for the time that a busy machine needs to prove that probes keep the KV cache.
    longer = {"capture_seconds": 30.0, "startup_seconds": 30.0}
    session = attach(ProbeConfig(run_dir=str(tmp_path), **longer), worker)
    try:
        first = snapshot(tmp_path)
        cells = {
            (m, b, 256) for m in Module if m in engine_of(session).modules for b in (1, 2, 4, 8)
        }
        assert {row.cell for row in first.boundaries} == {
            *cells, *(("model", b, 256) for b in (1, 2, 4, 8))
        }  # fmt: skip
        assert {row.cell for row in first.curves} == {row.cell for row in first.boundaries}
        assert (first.prior, first.prior_reason) == ("generic", "steps run on a CPU")
        assert publisher_of(session)._results.findings.guessed
        assert first.probes["startup"] > 0
        bases = {row.basis for row in first.curves}
        assert Basis.MEASURED in bases and bases <= set(Basis)
        for count in (3, 6):
            generate(llm, tokens=64, count=count)
            publisher_of(session).process()
            found = publisher_of(session).snapshot()
            assert found.live is not None and found.live.batch_size == count
            assert {row.batch_size for row in found.live_boundaries} == {count}
            (context,) = {row.context for row in found.live_boundaries}
            assert abs(context - found.live.context) <= 8
            assert {row.batch_size for row in found.live_curves} == {1, 2, 4, 8, count}
    finally:
        session.disable("the test is over", expected=True)


def test_the_log_of_raw_samples_is_bounded(
    llm: Any, start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.session import sample_log as module

    monkeypatch.setattr(module, "MOST_LOG_BYTES", 5_000)
    session = start(startup_seconds=5.0, output_dir=str(tmp_path / "out"))
    log = tmp_path / "out" / "samples-0.jsonl"

    def all_would_be_larger() -> bool:
        publisher_of(session).process()
        pairs = publisher_of(session)._results.findings.pairs
        lines = log.read_text().splitlines()
        return bool(lines) and pairs * min(map(len, lines)) > 15_000

    generate_until(llm, all_would_be_larger)
    assert all_would_be_larger()
    assert session.active
    assert 5_000 < log.stat().st_size < 15_000


def runner_tensors(runner: Any) -> dict[str, Any]:
    """Every tensor that the runner and its input batch keep between steps."""
    import torch

    found: dict[str, Any] = {}
    for owner in (runner, runner.input_batch, *runner.input_batch.block_table.block_tables):
        for name, value in vars(owner).items():
            for part in (value, getattr(value, "cpu", None), getattr(value, "gpu", None)):
                if isinstance(part, torch.Tensor) and part.numel() < 1 << 24:
                    found[f"{type(owner).__name__}.{name}.{id(part)}"] = part
    return found


def test_a_probe_touches_nothing_of_the_runner(
    llm: Any, worker: Any, start: Callable[..., Any]
) -> None:
    import torch

    from vllm_nfp.types import Shape

    session = start(overhead_budget=0.0, startup_seconds=0.0)
    generate(llm)  # leaves keys and values in the cache, and lengths in the buffers
    engine, runner = engine_of(session), worker.model_runner
    before = {name: t.clone() for name, t in runner_tensors(runner).items()}
    cache = [t.clone() for t in runner.kv_caches]
    assert any(t.abs().sum() > 0 for t in cache), "the cache holds nothing that could change"
    rng = torch.get_rng_state()
    with torch.inference_mode():
        for shape in (Shape(1, 32, 1), Shape(4, 128, 8), Shape(1, 128, 3)):
            timing = engine.poll(engine.launch(shape))
            assert timing is not None and timing.step_seconds > 0
    after = runner_tensors(runner)
    assert before.keys() == after.keys()

    def bits(tensor: Any) -> Any:
        # vLLM leaves some buffers as it found the memory: what is no number equals nothing.
        return tensor.contiguous().flatten().view(torch.uint8)

    changed = [n for n in before if not torch.equal(bits(before[n]), bits(after[n]))]
    assert changed == []
    assert all(torch.equal(a, b) for a, b in zip(cache, runner.kv_caches, strict=True))
    assert torch.equal(rng, torch.get_rng_state())


def test_a_probe_reads_distinct_blocks_and_varied_tokens(start: Callable[..., Any]) -> None:
    import torch

    session = start(overhead_budget=0.0, startup_seconds=0.0)
    engine = engine_of(session)
    batches, (group, *_) = engine._runtime.batches, engine._availability.limits.groups
    batch = batches.build(4, 8)
    with torch.inference_mode():
        batches.fill(batch, 128)
    per_sequence = -(-(128 + 8) // group.block_tokens)
    used = batch.tables[0][:4, :per_sequence].flatten().tolist()
    assert len(set(used)) == len(used)
    assert 0 not in used, "block 0 is vLLM's null block"
    assert len(set(batch.input_ids.tolist())) > 16
    assert not batch.is_padding[: batch.tokens].any()
    assert (batch.slots == -1).all()
    assert batch.seq_lens.tolist() == [136] * 4


def test_a_pairs_runs_share_their_tokens(start: Callable[..., Any]) -> None:
    import torch

    from vllm_nfp.types import Shape

    session = start(overhead_budget=0.0, startup_seconds=0.0)
    engine = engine_of(session)
    tokens = {}
    with torch.inference_mode():
        for positions, draw in ((1, 3), (8, 3), (8, 4)):
            engine.poll(engine.launch(Shape(4, 128, positions), draw))
            batch = engine._shapes[4, positions].batch
            tokens[positions, draw] = batch.input_ids[: batch.tokens].tolist()
    assert tokens[8, 3][:4] == tokens[1, 3]
    assert tokens[8, 4] != tokens[8, 3]


def serve_in_piecewise_graphs(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
    """Have the probe take this server for one with PIECEWISE graphs of these sizes."""
    from vllm_nfp.adapter.dispatch import GraphRules
    from vllm_nfp.principle.graphs import CapturedGraphs
    from vllm_nfp.probe import engine as module

    rules = GraphRules(False, False, True, False, CapturedGraphs(sizes), 8)
    monkeypatch.setattr(module, "graph_rules", lambda *_: rules)


def test_in_piecewise_graphs_a_probe_runs_on_its_own_tokens_and_leaves_the_runners(
    llm: Any, worker: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a graph reads the runner's buffers, whatever the last step left in them."""
    import torch

    from vllm_nfp.types import Shape

    serve_in_piecewise_graphs(monkeypatch, (6, 16, 40))
    runner = worker.model_runner
    session = start(overhead_budget=0.0, startup_seconds=0.0)
    expected = generate(llm)
    slots = [table.slot_mapping.gpu for table in runner.input_batch.block_table.block_tables]
    live = [runner.input_ids.gpu, runner.positions, runner.is_padding, *slots]
    with torch.inference_mode():
        live[0].fill_(7)
        live[1].fill_(3)
        live[2].fill_(True)
        for mapping in slots:
            mapping.copy_(torch.arange(len(mapping)))  # as if a step had just written there
    before = [tensor.clone() for tensor in live]
    seen: list[list[Any]] = []

    def on_call(_: Any, args: tuple[()], inputs: dict[str, Any]) -> None:
        rows = len(inputs["input_ids"])
        assert inputs["positions"].data_ptr() == runner.positions.data_ptr()
        assert inputs["input_ids"].data_ptr() == runner.input_ids.gpu.data_ptr(), (
            "a graph that was captured on the runner's buffers would not see these"
        )
        seen.append([tensor[:rows].tolist() for tensor in live])

    engine, context, tokens = engine_of(session), 128, {}
    with torch.inference_mode(), runner.get_model().register_forward_pre_hook(
        on_call, with_kwargs=True
    ) as hook:  # fmt: skip
        monkeypatch.setattr(engine._runtime.forward, "timed", ())  # the step alone
        for positions, draw in ((1, 3), (8, 3), (3, 3), (8, 4)):
            seen.clear()
            timing = engine.poll(engine.launch(Shape(4, context, positions), draw))
            assert timing is not None and timing.execution == "piecewise"
            (ids, places, padding, *written) = seen.pop()
            assert not seen, "the step ran more than once"
            count = 4 * positions
            assert len(ids) == {1: 6, 3: 16, 8: 40}[positions]
            assert ids[:count] == engine.tokens.draw(count, draw).tolist()
            assert places[:count] == [context + i for i in range(positions)] * 4
            assert padding == [False] * count + [True] * (len(ids) - count)
            assert all(set(mapping) == {-1} for mapping in written)
            tokens[positions, draw] = ids[:count]
            for tensor, old in zip(live, before, strict=True):
                assert torch.equal(tensor, old), "the next step finds other bytes"
    del hook
    assert tokens[8, 3][:4] == tokens[1, 3] and tokens[8, 3][:12] == tokens[3, 3]
    assert tokens[8, 4] != tokens[8, 3]
    assert len(set(tokens[8, 3])) > 16, "all tokens would go to the same experts"
    assert generate(llm) == expected


def test_a_run_that_fails_in_a_piecewise_graph_leaves_the_runners_buffers(
    worker: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from vllm_nfp.adapter.runners import view_of
    from vllm_nfp.types import Shape

    serve_in_piecewise_graphs(monkeypatch, (40,))
    session = start(overhead_budget=0.0, startup_seconds=0.0)
    buffers = view_of(worker.model_runner).step_buffers().tensors
    before = [tensor.clone() for tensor in buffers]

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model fails")

    with torch.inference_mode(), pytest.raises(RuntimeError, match="the model fails"):
        monkeypatch.setattr(engine_of(session)._runtime.forward.inputs, "live", fail)
        engine_of(session).launch(Shape(4, 128, 8))
    assert all(map(torch.equal, buffers, before))


def test_the_budget_bounds_the_measured_share(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = start(overhead_budget=0.2, startup_seconds=0.0)
    prober, engine = prober_of(session), engine_of(session)
    runs: list[float] = []
    launch = engine.launch

    def timed(*arguments: Any) -> Any:
        """On a CPU a run is over when it has been launched."""
        begun = time.perf_counter()
        try:
            return launch(*arguments)
        finally:
            runs.append(time.perf_counter() - begun)

    monkeypatch.setattr(engine, "launch", timed)
    begun = time.perf_counter()
    generate_until(llm, lambda: prober.outcomes["measured"] > 3, tokens=400)
    total = time.perf_counter() - begun
    assert prober.outcomes["measured"] > 3
    one_pair = prober._last_pair_seconds
    budget = prober.budget
    assert budget.probe_seconds <= 0.2 * (budget.real_seconds + budget.probe_seconds) + 3 * one_pair
    # By a clock of ours. One step in eight stands for the others, so that a stall counts for more.
    assert budget.real_seconds + budget.probe_seconds <= 1.25 * total
    assert sum(runs) <= 1.25 * budget.probe_seconds + 2 * max(runs)
    assert sum(runs) <= 0.2 * total + 6 * max(runs)


@pytest.mark.parametrize("stage", ["attach", "capture", "startup_scan"])
def test_a_fault_at_the_start_leaves_the_engine_alone(
    llm: Any, start: Callable[..., Any], tmp_path: Path, inject_fault: Callable[[str], None],
    stage: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expected = generate(llm)
    inject_fault(stage)
    with caplog.at_level(logging.ERROR, "vllm.nfp"):
        session = start()
    assert not session.active
    assert generate(llm) == expected
    assert_disabled(tmp_path, stage, caplog)


@pytest.mark.parametrize(
    "stage",
    [
        "plan",
        pytest.param("prepare", marks=pytest.mark.thorough),
        "forward",
        pytest.param("timing", marks=pytest.mark.thorough),
        pytest.param("step_times", marks=pytest.mark.thorough),
        "estimate",
        "publish",
    ],
)
def test_a_fault_while_serving_disables_the_probe_alone(
    llm: Any, start: Callable[..., Any], tmp_path: Path, inject_fault: Callable[[str], None],
    stage: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expected = generate(llm)
    session = start()
    assert session.active
    inject_fault(stage)
    with caplog.at_level(logging.ERROR, "vllm.nfp"):
        for _ in rounds():
            assert generate(llm) == expected
            if not session.active:
                break
    assert not session.active
    assert generate(llm) == expected
    assert_disabled(tmp_path, stage, caplog)


def assert_disabled(folder: Path, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    left = snapshot(folder)
    assert left.state is State.DISABLED
    assert f"fault injected at stage '{stage}'" in left.reason
    assert "the probe is disabled" in caplog.text
    assert "the server continues without it" in caplog.text


def test_an_unknown_vllm_is_watched_and_not_probed(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from vllm_nfp.adapter import versions
    from vllm_nfp.session import start_probing as module

    def injects(*_: object) -> None:
        raise AssertionError("a probe engine was made")

    expected = generate(llm)
    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    monkeypatch.setattr(module, "ProbeEngine", injects)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        session = start()
    assert only_times(session)
    assert generate(llm) == expected
    left = snapshot(tmp_path)
    assert left.state is State.PASSIVE
    assert "vLLM 0.99.0 is newer than the releases" in left.reason
    assert {row.basis for row in left.boundaries} <= {Basis.PREDICTED, Basis.INFERRED}
    assert left.boundaries
    assert not left.probes.get("measured")
    assert "passive mode on the cpu runner" in caplog.text


def test_an_unknown_vllm_without_the_hooks_is_left_alone(
    llm: Any, worker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vllm_nfp.adapter import hooks, versions
    from vllm_nfp.adapter.patch import PatchSet
    from vllm_nfp.adapter.runner_v1 import V1Runner
    from vllm_nfp.plugin import open_observer

    class BareRunner:
        device = worker.model_runner.device

    class BareWorker:
        model_runner = BareRunner()
        vllm_config = worker.vllm_config

        def compile_or_warm_up_model(self) -> str:
            return "warmed up"

    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    monkeypatch.setattr(hooks, "view_of", lambda runner: V1Runner(runner, "cpu"))
    bare = BareWorker()
    hooks._hook_warm_up(PatchSet(), bare, configure(tmp_path), open_observer)
    assert bare.compile_or_warm_up_model() == "warmed up"
    left = snapshot(tmp_path)
    assert left.state is State.DISABLED
    assert "BareRunner of this vLLM (0.99.0) has no execute_model" in left.reason
    assert vars(bare.model_runner) == {}
    assert len(generate(llm)) == 4


@pytest.mark.parametrize("required", [False, True])
def test_metadata_that_is_not_as_known_is_named_and_the_probe_only_watches(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    required: bool,
) -> None:  # fmt: skip
    """One field renamed, or one more that has no default: nothing is left out in silence."""
    import dataclasses

    from vllm.v1.attention import backend

    expected = generate(llm)
    known = [field.name for field in dataclasses.fields(backend.CommonAttentionMetadata)]
    rest = [(name, Any, None) for name in known if required or name != "is_prefilling"]
    changed = dataclasses.make_dataclass(
        "CommonAttentionMetadata", [*([("drafts", Any)] if required else []), *rest]
    )
    monkeypatch.setattr(backend, "CommonAttentionMetadata", changed)
    session = start()
    assert only_times(session), "it probes"
    assert generate(llm) == expected
    left = snapshot(tmp_path)
    assert left.state is State.PASSIVE
    wanted = "requires drafts" if required else "has no is_prefilling"
    assert f"CommonAttentionMetadata {wanted}" in left.reason


def test_a_kv_cache_that_a_probe_changes_disables_it(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vllm_nfp.probe import batch

    expected = generate(llm)
    monkeypatch.setattr(batch, "PAD_SLOT", 40)  # a slot of a real block
    session = start()
    assert not session.active
    assert "changed the KV cache" in snapshot(tmp_path).reason
    assert generate(llm) == expected


FEW_SHAPES = {"batch_sizes": [1, 4], "contexts": [32], "max_positions": 4}


def spend_at_once(session: Any) -> None:
    """Let pairs run without waiting until steps have paid for them."""
    if session.active:
        prober_of(session).budget.earn(100.0)


class Writer:
    """An attention backend that writes to the KV cache in some runs: a fake, around real ones.

    Args:
        when: of a run's (batch size, positions, execution, whether it is a graph's replay).
        write: given the block that the run's first position belongs to, as 32-bit words.
    """

    def __init__(
        self, worker: Any, monkeypatch: pytest.MonkeyPatch,
        when: Callable[[int, int, str, bool], bool], write: Callable[[Any], None],
    ) -> None:  # fmt: skip
        from vllm_nfp.probe.forward import Forward

        self._worker, self._when, self._write = worker, when, write
        self.writes = 0
        writer, real = self, Forward.run_model

        def run_model(forward: Any, batch: Any, metadata: Any) -> Any:
            writer.ran(batch, graph=False)
            return real(forward, batch, metadata)

        monkeypatch.setattr(Forward, "run_model", run_model)

    def ran(self, batch: Any, graph: bool) -> None:
        import torch

        execution = str(batch.placement.execution)
        if not self._when(batch.batch_size, batch.positions_per_sequence, execution, graph):
            return
        self.writes += 1
        runner = self._worker.model_runner
        for cache in runner.kv_caches:
            blocks = cache.movedim(list(cache.shape).index(runner.kv_cache_config.num_blocks), 0)
            place = int(batch.positions[0]) // runner.cache_config.block_size
            block = blocks[int(batch.tables[0][0, place])]
            words = block.flatten().view(torch.int32)  # a copy, unless the block lies in one piece
            self._write(words)
            block.copy_(words.view(block.dtype).view(block.shape))


def exchange(words: Any) -> None:
    """Three values change places, in turn, which a sum over all values cannot tell."""
    assert words[1] != words[5] != words[9]
    words[[1, 5, 9]] = words[[5, 9, 1]]


def change_one(words: Any) -> None:
    words[3] += 1


@pytest.fixture
def lively_cache(worker: Any) -> Iterator[None]:
    """No two values of the KV cache are alike."""
    import torch

    old = [cache.clone() for cache in worker.model_runner.kv_caches]
    for cache in worker.model_runner.kv_caches:
        words = cache.untyped_storage()
        flat = torch.empty(0, dtype=torch.int32).set_(words)
        torch.arange(len(flat), dtype=torch.int32, out=flat)
    yield
    for cache, before in zip(worker.model_runner.kv_caches, old, strict=True):
        cache.copy_(before)


@pytest.mark.usefixtures("lively_cache")
@pytest.mark.parametrize(
    ("when", "write", "served"),
    [
        pytest.param(lambda *_: True, exchange, False, id="values exchanged"),
        pytest.param(lambda b, n, *_: n == 1, change_one, False, id="one position alone"),
        pytest.param(lambda b, n, *_: (b, n) == (4, 2), change_one, True, id="one larger shape"),
        pytest.param(lambda b, n, *_: n == 4, exchange, True, id="a few positions, exchanged"),
    ],
)
def test_a_backend_that_writes_in_some_runs_alone_disables_the_probe(
    llm: Any, worker: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, when: Any, write: Any, served: bool,
) -> None:  # fmt: skip
    """Whatever runs is proven: at the start, or around its first run between real steps."""
    writer = Writer(worker, monkeypatch, when, write)
    # Without time to warm up, runs of other shapes come while serving.
    seconds = {"capture_seconds": 0.0, "startup_seconds": 0.0} if served else {}
    session = start(**seconds, **FEW_SHAPES)
    for _ in rounds():
        if not session.active:
            break
        spend_at_once(session)
        generate(llm)
    assert writer.writes, "nothing was written"
    assert not session.active, "a probe that writes to the KV cache goes on"
    left = snapshot(tmp_path)
    assert left.state is State.DISABLED
    assert "changed the KV cache" in left.reason
    assert "restart the server" in left.reason
    count = writer.writes
    generate(llm)
    assert writer.writes == count, "it is disabled and still runs"


class FakeGraph:
    """What a CUDA graph does: runs again what was captured, on the same addresses."""

    writer: Writer
    replays = 0

    def __init__(self, _: Any) -> None:
        self._run: Callable[[], Any] = lambda: None

    def capture(self, run: Callable[[], Any], *_: Any, **__: Any) -> Any:
        self._run = run
        return run()

    def replay(self) -> None:
        FakeGraph.replays += 1
        run = self._run
        cells = dict(zip(run.__code__.co_freevars, run.__closure__ or (), strict=True))
        run()
        if "metadata" in cells:  # the step or the modules, not the head
            self.writer.ran(cells["batch"].cell_contents, graph=True)

    def reset(self) -> None:
        pass


def serve_in_full_graphs(monkeypatch: pytest.MonkeyPatch, batch_sizes: tuple[int, ...]) -> None:
    """Have the probe take this server for one with FULL graphs."""
    from types import SimpleNamespace

    from vllm_nfp.adapter.dispatch import GraphRules
    from vllm_nfp.principle.graphs import CapturedGraphs
    from vllm_nfp.probe import capture, device_memory
    from vllm_nfp.probe import engine as module

    sizes = tuple(sorted({b * n for b in batch_sizes for n in (1, 2, 3, 4, 5, 6, 8)}))
    rules = GraphRules(True, False, False, True, CapturedGraphs(sizes), 8)
    monkeypatch.setattr(module, "graph_rules", lambda *_: rules)
    monkeypatch.setattr(capture, "Graph", FakeGraph)
    monkeypatch.setattr(capture, "_capturing", lambda: False)
    place = SimpleNamespace(pool=None, stream=None, shared=False)
    monkeypatch.setattr(device_memory, "own_place", lambda *_: place)
    monkeypatch.setattr(FakeGraph, "replays", 0)


def test_shapes_of_the_whole_table_are_made_ready_between_steps_and_change_no_output(
    llm: Any, worker: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are made, run for the first time, and captured while requests are served."""
    expected = generate(llm)
    serve_in_full_graphs(monkeypatch, (1, 2, 4, 8))
    FakeGraph.writer = Writer(worker, monkeypatch, lambda *_: False, exchange)
    session = start(
        batch_sizes=[], contexts=[], capture_seconds=0.0, startup_seconds=0.0, wanted_samples=1
    )
    engine = engine_of(session)
    at_start = set(engine._shapes)
    assert (8, 8) in at_start and len(at_start) <= 4, "shapes are made that nobody has asked for"
    for _ in range(40):
        spend_at_once(session)
        assert generate(llm, tokens=32) == [one[:32] for one in expected]
        if len(engine.ready_keys()) > 8 and FakeGraph.replays:
            break
    assert session.active
    assert len(engine.ready_keys()) > 8 and len({b for b, _ in engine.ready_keys()}) > 1
    assert prober_of(session).outcomes["measured"] and FakeGraph.replays
    assert engine._runtime.prover._proven


@pytest.mark.usefixtures("lively_cache")
@pytest.mark.parametrize("smallest", [True, False], ids=["at the start", "in serving"])
def test_a_backend_that_writes_in_captured_graphs_alone_disables_the_probe(
    llm: Any, worker: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, smallest: bool,
) -> None:  # fmt: skip
    """FULL graphs, made at the start for few shapes and between real steps for the others."""

    def when(batch_size: int, positions: int, execution: str, graph: bool) -> bool:
        assert execution == "full"
        return graph and (smallest or (batch_size, positions) == (4, 4))

    serve_in_full_graphs(monkeypatch, (1, 4))
    FakeGraph.writer = writer = Writer(worker, monkeypatch, when, exchange)
    seconds = 0.5 if smallest else 0.0
    session = start(startup_seconds=seconds, capture_seconds=30.0, **FEW_SHAPES)
    assert session.active or smallest, "found at the start what ran in serving alone"
    for _ in range(40):
        if not session.active:
            break
        spend_at_once(session)
        generate(llm)
    assert FakeGraph.replays, "no graph ran"
    assert writer.writes and not session.active
    assert "changed the KV cache" in snapshot(tmp_path).reason


def test_a_backend_that_writes_nowhere_is_proven_and_probed(
    llm: Any, start: Callable[..., Any]
) -> None:
    expected = generate(llm)
    session = start(startup_seconds=5.0)
    assert session.active
    prover = engine_of(session)._runtime.prover
    generate_until(llm, lambda: len(prover._proven) > 2 and not prover._under_way)
    assert len(prover._proven) > 2 and not prover._under_way
    assert generate(llm) == expected and session.active


def test_cells_that_do_not_fit_are_named(start: Callable[..., Any]) -> None:
    session = start(batch_sizes=[1, 64], contexts=[32, 4096], startup_seconds=0.0)
    skipped = publisher_of(session).snapshot().skipped_cells
    assert "exceeds --max-num-seqs 8" in skipped["B=64 L=32"]
    assert "leaves no room" in skipped["B=1 L=4096"]
    rows = publisher_of(session).snapshot().boundaries
    assert {(row.batch_size, row.context) for row in rows} == {(1, 32)}


def test_passive_timing_injects_nothing_and_files_real_steps(
    llm: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    expected = generate(llm)
    session = start(passive=True)
    assert only_times(session)
    assert engine_of(session) is None
    assert generate(llm) == expected
    generate(llm, count=1)
    publisher_of(session)._publish()
    found = snapshot(tmp_path)
    assert found.probes == {} and found.probe_seconds == 0.0
    assert found.state is State.PASSIVE and "passive is on" in found.reason
    rows = {(row.batch_size, row.positions): row for row in found.steps}
    assert set(rows) == {(4, 1), (1, 1)}
    assert all(row.context == 256 and row.median_seconds > 0 for row in found.steps)
    assert rows[4, 1].samples > 40
    assert found.live is not None


def test_probes_and_real_steps_are_timed_apart(
    llm: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    session = start()
    generate_until(llm, lambda: prober_of(session).outcomes["measured"] > 0, tokens=96)
    publisher_of(session)._publish()
    found = snapshot(tmp_path)
    assert found.probes["measured"] > 0
    assert sum(row.samples for row in found.steps) > 90
    assert 0.0 < found.step_ratio < 1.0
    assert found.updated_monotonic_seconds > 0.0


def test_a_full_disk_costs_the_output_folder_and_nothing_else(
    llm: Any, start: Callable[..., Any], tmp_path: Path, inject_fault: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expected = generate(llm)
    session = start(output_dir=str(tmp_path / "out"))
    log = session._output._log
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115 - the session closes it
    inject_fault("no_space")
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for _ in rounds():
            assert generate(llm) == expected
            publisher_of(session)._publish()
            # One line for the log, which is written once a pair has run, one for the snapshot.
            if log._file is None and caplog.text.count("No space left on device") == 2:
                break
        for _ in range(3):
            assert generate(llm) == expected
            publisher_of(session)._publish()
    assert session.active, "a full disk disables the probe"
    assert log._file is None
    assert caplog.text.count("No space left on device") == 2, "the log is flooded"
    assert snapshot(tmp_path).probes["measured"] > 0, "/metrics is not served any more"


def test_a_device_that_hangs_disables_the_probe(
    llm: Any,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inject_fault: Callable[[str], None],
) -> None:
    from vllm_nfp.schedule import flights as module

    expected = generate(llm)
    session = start()
    generate(llm, tokens=8)
    monkeypatch.setattr(module, "LONGEST_FLIGHT_SECONDS", 0.05)
    inject_fault("stuck_event")
    prober_of(session).budget.earn(100.0)  # steps that are never passed earn nothing
    for _ in rounds():
        assert generate(llm) == expected
        if not session.active:
            break
    assert not session.active
    assert "the device hangs" in snapshot(tmp_path).reason


def test_a_probe_without_memory_is_left_out_and_serving_goes_on(
    llm: Any, start: Callable[..., Any], inject_fault: Callable[[str], None]
) -> None:
    expected = generate(llm)
    session = start()
    inject_fault("out_of_memory")
    outputs = generate_until(llm, lambda: prober_of(session).outcomes["refused"] > 0)
    assert all(output == expected for output in outputs)
    assert session.active
    assert prober_of(session).outcomes["refused"] > 0


def test_a_step_of_the_wall_clock_changes_nothing(
    llm: Any, start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    session = start()
    real = time.time
    for jump in (1e7, -1e7):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        before = prober_of(session).outcomes["measured"]
        # A pair that a busy machine drew out is paid off first.
        generate_until(llm, lambda: prober_of(session).outcomes["measured"] > before, tokens=96)  # noqa: B023
        publisher_of(session)._publish()
        assert session.active
        assert prober_of(session).outcomes["measured"] > before
        found = snapshot(tmp_path)
        assert abs(found.updated_unix_seconds - real() - jump) < 60
        assert abs(time.monotonic() - found.updated_monotonic_seconds) < 60
        assert all(0 < row.median_seconds < 60 for row in found.steps)
