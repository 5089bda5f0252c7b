"""A probe session on a real vLLM engine in this process: what it measures and never touches."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_nfp.config import ProbeConfig, config_from_mapping
from vllm_nfp.metrics import Snapshot, State, read_snapshot
from vllm_nfp.profile import load_profile, profile_file

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        yield LLM(
            model=str(dense_model), skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
            max_model_len=512, max_num_seqs=8, distributed_executor_backend="uni", seed=0,
            enable_prefix_caching=False,
        )  # fmt: skip


@pytest.fixture
def worker(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


@pytest.fixture
def start(worker: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Attach a session with hooks, as the worker hook does; detach it in the end."""
    from vllm_nfp.engine.session import Session
    from vllm_nfp.engine.worker_hook import _hook_runner

    sessions = []

    def begin(runner: Any = None, **changes: object) -> Any:
        runner = runner or worker.model_runner
        session = Session(configure(tmp_path, **changes), worker.vllm_config)
        session.attach(runner)
        if session.active:
            _hook_runner(runner, session)
        sessions.append(session)
        return session

    yield begin
    for session in sessions:
        if session.active:
            session.disable("the test is over", expected=True)
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
    outputs = []
    for _ in range(20):
        outputs.append(generate(llm, tokens))
        if happened():
            break
    return outputs


def snapshot(folder: Path) -> Snapshot:
    return read_snapshot(folder / "engine-0.json")


def test_estimates_appear_for_every_module_and_cell(
    llm: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    session = start(startup_seconds=20.0, output_dir=str(tmp_path / "out"), layer_histograms=True)
    generate_until(llm, lambda: session._prober.outcomes["measured"] > 0, tokens=96)
    session._publisher.process()
    found = session._publisher.snapshot()
    assert {row.module for row in found.boundaries} == {"attention", "dense_ffn", "model"}
    cells = {(row.batch_size, row.context) for row in found.boundaries}
    assert cells == {(1, 32), (1, 128), (4, 32), (4, 128)}
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
    assert json.loads((tmp_path / "out" / "environment-0.json").read_text())["device"]
    session.disable("the test is over", expected=True)
    profile = load_profile(profile_file(tmp_path / "out", "0"))
    assert profile.curves == found.curves
    assert profile.boundaries == found.boundaries
    assert {row.layer for row in profile.layer_times} == {0, 1, 2}
    assert profile.run.reason == "the test is over"
    assert profile.environment.enforce_eager
    assert snapshot(tmp_path).layer_times == (), "/metrics carries what it does not show"


def test_the_log_of_raw_samples_is_bounded(
    llm: Any, start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.engine import session as module

    monkeypatch.setattr(module, "MOST_LOG_BYTES", 5_000)
    session = start(startup_seconds=5.0, output_dir=str(tmp_path / "out"))
    generate(llm)
    session._publisher.process()
    assert session.active
    assert 5_000 < (tmp_path / "out" / "samples-0.jsonl").stat().st_size < 15_000


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

    from vllm_nfp.probe import Shape

    session = start(overhead_budget=0.0, startup_seconds=0.0)
    generate(llm)  # leaves keys and values in the cache, and lengths in the buffers
    engine, runner = session._engine, worker.model_runner
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
    engine = session._engine
    batch = engine._make(4, 8).batch
    with torch.inference_mode():
        batch.fill(128, engine._readers, engine.bag)
    per_sequence = -(-(128 + 8) // engine._groups[0].block_tokens)
    used = batch.tables[0][:4, :per_sequence].flatten().tolist()
    assert len(set(used)) == len(used)
    assert 0 not in used, "block 0 is vLLM's null block"
    assert len(set(batch.input_ids.tolist())) > 16
    assert not batch.is_padding[: batch.tokens].any()
    assert (batch.slots == -1).all()
    assert batch.seq_lens.tolist() == [136] * 4


def test_a_pairs_runs_share_their_tokens(start: Callable[..., Any]) -> None:
    import torch

    from vllm_nfp.probe import Shape

    session = start(overhead_budget=0.0, startup_seconds=0.0)
    engine = session._engine
    tokens = {}
    with torch.inference_mode():
        for positions, draw in ((1, 3), (8, 3), (8, 4)):
            engine.poll(engine.launch(Shape(4, 128, positions), draw))
            batch = engine._prepared[4, positions].batch
            tokens[positions, draw] = batch.input_ids[: batch.tokens].tolist()
    assert tokens[8, 3][:4] == tokens[1, 3]
    assert tokens[8, 4] != tokens[8, 3]


def test_the_budget_bounds_the_measured_share(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = start(overhead_budget=0.2, startup_seconds=0.0)
    prober, engine = session._prober, session._engine
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
        for _ in range(20):
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
    assert "the server goes on without it" in caplog.text


def test_an_unknown_vllm_is_watched_and_not_probed(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from vllm_nfp.engine import session as module
    from vllm_nfp.engine import versions

    def injects(*_: object) -> None:
        raise AssertionError("a probe engine was made")

    expected = generate(llm)
    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    monkeypatch.setattr(module, "VllmProbeEngine", injects)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        session = start()
    assert session.active and session._prober is None
    assert generate(llm) == expected
    left = snapshot(tmp_path)
    assert left.state is State.PASSIVE
    assert "vLLM 0.99.0 is newer than the releases" in left.reason
    assert not left.boundaries and not left.probes.get("measured")
    assert "passive mode on the cpu runner" in caplog.text


def test_an_unknown_vllm_without_the_hooks_is_left_alone(
    llm: Any, worker: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    from vllm_nfp.engine import session as module
    from vllm_nfp.engine import versions
    from vllm_nfp.engine.runners import V1Runner

    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    bare = type("BareRunner", (), {"device": worker.model_runner.device})()
    monkeypatch.setattr(module, "view_of", lambda _: V1Runner(bare, "cpu"))
    from vllm_nfp.engine import runners

    monkeypatch.setattr(runners, "view_of", lambda _: V1Runner(bare, "cpu"))
    session = start(runner=bare)
    assert not session.active
    left = snapshot(tmp_path)
    assert left.state is State.DISABLED
    assert "BareRunner of this vLLM has no execute_model" in left.reason
    assert len(generate(llm)) == 4


def test_a_kv_cache_that_a_probe_changes_disables_it(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vllm_nfp.engine import batch

    expected = generate(llm)
    monkeypatch.setattr(batch, "PAD_SLOT", 40)  # a slot of a real block
    session = start()
    assert not session.active
    assert "changed the KV cache" in snapshot(tmp_path).reason
    assert generate(llm) == expected


def test_cells_that_do_not_fit_are_named(start: Callable[..., Any]) -> None:
    session = start(batch_sizes=[1, 64], contexts=[32, 4096], startup_seconds=0.0)
    skipped = session._publisher.identity.skipped_cells
    assert "exceeds --max-num-seqs 8" in skipped["B=64 L=32"]
    assert "leaves no room" in skipped["B=1 L=4096"]
    assert session._prober.planner.cells == ((1, 32),)


def test_passive_timing_injects_nothing_and_files_real_steps(
    llm: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    expected = generate(llm)
    session = start(passive=True)
    assert session.active
    assert session._engine is None and session._prober is None
    assert generate(llm) == expected
    generate(llm, count=1)
    session._publisher._publish()
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
    generate_until(llm, lambda: session._prober.outcomes["measured"] > 0, tokens=96)
    session._publisher._publish()
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
    session._log.close()
    session._log = open("/dev/full", "a")  # noqa: SIM115 - the session closes it
    inject_fault("no_space")
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for _ in range(20):
            assert generate(llm) == expected
            session._publisher._publish()
            # One line for the log, which is written once a pair has run, one for the snapshot.
            if session._log is None and caplog.text.count("No space left on device") == 2:
                break
        for _ in range(3):
            assert generate(llm) == expected
            session._publisher._publish()
    assert session.active, "a full disk disables the probe"
    assert session._log is None
    assert caplog.text.count("No space left on device") == 2, "the log is flooded"
    assert snapshot(tmp_path).probes["measured"] > 0, "/metrics is not served any more"


def test_a_device_that_hangs_disables_the_probe(
    llm: Any,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inject_fault: Callable[[str], None],
) -> None:
    from vllm_nfp.probe import prober as module

    expected = generate(llm)
    session = start()
    generate(llm, tokens=8)
    monkeypatch.setattr(module, "LONGEST_FLIGHT_SECONDS", 0.05)
    inject_fault("stuck_event")
    session._prober.budget.earn(100.0)  # steps that are never passed earn nothing
    for _ in range(20):
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
    outputs = generate_until(llm, lambda: session._prober.outcomes["refused"] > 0)
    assert all(output == expected for output in outputs)
    assert session.active
    assert session._prober.outcomes["refused"] > 0


def test_a_step_of_the_wall_clock_changes_nothing(
    llm: Any, start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    session = start()
    real = time.time
    for jump in (1e7, -1e7):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        before = session._prober.outcomes["measured"]
        # A pair that a busy machine drew out is paid off first.
        generate_until(llm, lambda: session._prober.outcomes["measured"] > before, tokens=96)  # noqa: B023
        session._publisher._publish()
        assert session.active
        assert session._prober.outcomes["measured"] > before
        found = snapshot(tmp_path)
        assert abs(found.updated_unix_seconds - real() - jump) < 60
        assert abs(time.monotonic() - found.updated_monotonic_seconds) < 60
        assert all(0 < row.median_seconds < 60 for row in found.steps)
