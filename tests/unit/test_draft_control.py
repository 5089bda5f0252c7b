"""The engine core's side of the live controller, on a scheduler that only plans."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_nfp import files
from vllm_nfp.adapter import draft_control, versions
from vllm_nfp.adapter.draft_control import DraftControl, attach
from vllm_nfp.adapter.draft_lengths import (
    _shown,
    candidate_lengths,
    control_speculation,
    covering_table,
    prepare_speculation,
)
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ConfigError, ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.draft.live import reporter
from vllm_nfp.draft.live.steps import cell_of
from vllm_nfp.metrics.families.control import control_families
from vllm_nfp.results.control import (
    ControlSnapshot,
    ControlState,
    control_file,
    read_control,
)
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.results.snapshot import Snapshot, write_snapshot
from vllm_nfp.types import Basis, CurvePoint, State

STATIC = [0, *[3] * 8]


class Scheduler:
    """Plans decode steps as vLLM's asynchronous scheduler does: one step ahead."""

    def __init__(self, batch_size: int = 4, **changes: Any) -> None:
        self.dynamic_sd_lookup: list[int] | None = list(STATIC)
        self.num_spec_tokens = 4
        self.running = [f"r{i}" for i in range(batch_size)]
        self.drafts = 0
        parallel = SimpleNamespace(
            data_parallel_index=0, pipeline_parallel_size=changes.get("pipeline", 1)
        )
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(served_model_name="toy"),
            parallel_config=parallel,
            speculative_config=SimpleNamespace(
                method=changes.get("method", "ngram"),
                enable_adaptive_verification=changes.get("adaptive", False),
            ),
            compilation_config=SimpleNamespace(cudagraph_mode=None, cudagraph_capture_sizes=[]),
            use_v2_model_runner=changes.get("v2", True),
        )
        self.seen: list[int] = []

    def schedule(self) -> SimpleNamespace:
        count = len(self.running)
        length, self.drafts = self.drafts, self.dynamic_sd_lookup[count]  # type: ignore[index]
        self.seen.append(length)
        return SimpleNamespace(
            num_scheduled_tokens={name: 1 + length for name in self.running},
            total_num_scheduled_tokens=count * (1 + length),
            scheduled_spec_decode_tokens={name: [-1] * length for name in self.running if length},
            scheduled_new_reqs=[],
            scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=[700] * count),
            num_spec_tokens_to_schedule=self.drafts,
        )

    def update_from_output(self, output: Any, model_output: Any) -> str:
        return "updated"


class Clock:
    """Goes on by a step's time only when a step is served."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_control, "time", CLOCK)


def serve(scheduler: Scheduler, steps: int, accepted: float = 1.0) -> None:
    """Steps of 1 ms whatever the length, with every draft accepted."""
    output = scheduler.schedule()
    for _ in range(steps):
        following = scheduler.schedule()
        length = max(map(len, output.scheduled_spec_decode_tokens.values()), default=0)
        made = [[0] * (1 + int(accepted * length)) for _ in scheduler.running]
        CLOCK.now += 1e-3
        answer = scheduler.update_from_output(output, SimpleNamespace(sampled_token_ids=made))
        assert answer == "updated"
        output = following


def test_a_step_is_not_timed_if_a_prompts_step_was_launched_before_it_was_seen(
    config: ProbeConfig,
) -> None:
    """The host launches the next step first: without a CUDA graph that takes longer than a step."""
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    assert control.controller is not None
    serve(scheduler, 20)
    cell, length = cell_of(4, 700), scheduler.seen[-1]
    assert [median for _, _, median in control.controller.times(cell)] == [pytest.approx(1e-3)]
    for _ in range(40):
        output, prompt = scheduler.schedule(), scheduler.schedule()
        prompt.scheduled_new_reqs = ["a prompt"]
        CLOCK.now += 0.02
        made = SimpleNamespace(sampled_token_ids=[[0] * (1 + length) for _ in scheduler.running])
        scheduler.update_from_output(output, made)
        CLOCK.now += 0.001
        scheduler.update_from_output(prompt, made)
    assert [median for _, _, median in control.controller.times(cell)] == [pytest.approx(1e-3)]


def reported(folder: Path, state: ControlState) -> ControlSnapshot:
    deadline = time.monotonic() + 120
    while True:
        try:
            found = read_control(control_file(str(folder), "0"))
        except OSError:
            found = None
        if found is not None and found.state == state:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.fixture
def config(tmp_path: Path) -> ProbeConfig:
    return ProbeConfig(draft_control=True, publish_seconds=0.1, run_dir=str(tmp_path))


def test_free_drafts_are_all_taken(config: ProbeConfig, tmp_path: Path) -> None:
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    serve(scheduler, 400)
    assert scheduler.seen[1:20] == [3] * 19
    assert scheduler.seen[-1] == 4
    found = reported(tmp_path, ControlState.DECIDING)
    assert found.live_draft_length == 4
    assert found.acceptance == pytest.approx((1.0,) * 4)
    assert {row.draft_length for row in found.times} >= {3, 4}
    text = {metric.name for metric in control_families([found])}
    assert "vllm_nfp_live_draft_length" in text
    assert "vllm_nfp_draft_control_changes" in text


def test_a_pause_hands_back_and_what_was_learned_stays(config: ProbeConfig) -> None:
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    serve(scheduler, 400)
    control.pause()
    assert scheduler.dynamic_sd_lookup == STATIC
    assert scheduler.schedule.__qualname__.startswith("Scheduler.")
    control.resume()
    serve(scheduler, 40)
    assert scheduler.dynamic_sd_lookup[4] == 4


def test_what_was_replaced_is_put_back_with_the_rest_of_the_process(config: ProbeConfig) -> None:
    scheduler, patches = Scheduler(), PatchSet()
    assert attach(scheduler, config, patches) is not None
    serve(scheduler, 400)
    assert scheduler.dynamic_sd_lookup != STATIC
    patches.restore()
    assert scheduler.dynamic_sd_lookup == STATIC
    assert "schedule" not in vars(scheduler) and "update_from_output" not in vars(scheduler)


def test_a_step_planned_before_the_hooks_shifts_nothing(config: ProbeConfig) -> None:
    scheduler = Scheduler()
    control = DraftControl(scheduler, config, PatchSet())
    early = scheduler.schedule()
    control.begin()
    later = scheduler.schedule()
    for output in (early, later, scheduler.schedule()):
        made = SimpleNamespace(sampled_token_ids=[[0] * 4] * 4)
        CLOCK.now += 1e-3
        scheduler.update_from_output(output, made)
    assert control.controller is not None
    assert control.controller.steps == 1, "the second lacks the length that was asked for"


def test_a_fault_puts_the_configured_table_back(config: ProbeConfig, tmp_path: Path) -> None:
    scheduler = Scheduler()
    assert attach(scheduler, config, PatchSet()) is not None
    serve(scheduler, 300)
    output = scheduler.schedule()
    output.scheduled_cached_reqs = None
    made = [[0] * 5 for _ in scheduler.running]
    answer = scheduler.update_from_output(output, SimpleNamespace(sampled_token_ids=made))
    assert answer == "updated", "vLLM's own work is done all the same"
    assert scheduler.dynamic_sd_lookup == STATIC
    assert scheduler.schedule.__qualname__.startswith("Scheduler.")
    found = reported(tmp_path, ControlState.DISABLED)
    assert "NoneType" in found.reason
    assert not any(m.samples for m in control_families([found]) if "live" in m.name)


def test_prompts_and_foreign_drafts_are_not_taken_for_decode_steps(config: ProbeConfig) -> None:
    scheduler = Scheduler()
    control = DraftControl(scheduler, config, PatchSet())
    control.begin()
    for change in (
        {},  # the first is not counted: what was asked for is not known yet
        {"scheduled_new_reqs": ["new"]},
        {"total_num_scheduled_tokens": 99},
        {"scheduled_spec_decode_tokens": {"r0": [-1] * 9}, "total_num_scheduled_tokens": 13},
    ):
        output = scheduler.schedule()
        vars(output).update(change)
        made = SimpleNamespace(sampled_token_ids=[[0]] * 4)
        scheduler.update_from_output(output, made)
    assert control.controller is not None
    assert control.controller.steps == 0
    serve(scheduler, 3)
    assert control.controller.steps == 3, "others are counted"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "suffix"}, "'suffix'"),
        ({"pipeline": 2}, "pipeline parallelism"),
        ({"adaptive": True}, "yields to adaptive verification"),
    ],
)
def test_what_cannot_be_controlled_is_named(
    config: ProbeConfig, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    scheduler = Scheduler(**changes)
    assert attach(scheduler, config, PatchSet()) is None
    assert said in reported(tmp_path, ControlState.DISABLED).reason
    assert scheduler.dynamic_sd_lookup == STATIC


def test_an_unknown_vllm_is_left_with_its_configured_lengths(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    scheduler = Scheduler()
    assert attach(scheduler, config, PatchSet()) is None
    assert "vLLM 0.99.0 is newer" in reported(tmp_path, ControlState.DISABLED).reason
    assert scheduler.dynamic_sd_lookup == STATIC


def test_a_vllm_without_a_table_is_named(config: ProbeConfig, tmp_path: Path) -> None:
    scheduler = Scheduler()
    scheduler.dynamic_sd_lookup = None
    assert attach(scheduler, config, PatchSet()) is None
    reason = reported(tmp_path, ControlState.DISABLED).reason
    assert "num_speculative_tokens_per_batch_size" in reason


def test_an_injected_fault_is_contained(
    config: ProbeConfig, tmp_path: Path, inject_fault: Callable[[str], None]
) -> None:
    inject_fault("draft_control")
    assert attach(Scheduler(), config, PatchSet()) is None
    assert "InjectedFault" in reported(tmp_path, ControlState.DISABLED).reason


def test_a_scheduler_whose_steps_cannot_be_followed_is_left_alone(
    config: ProbeConfig, tmp_path: Path
) -> None:
    class Another(Scheduler):
        update_from_output = None  # type: ignore[assignment]

    scheduler = Another()
    assert attach(scheduler, config, PatchSet()) is None
    assert "has no update_from_output" in reported(tmp_path, ControlState.DISABLED).reason
    assert scheduler.schedule.__qualname__.startswith("Scheduler.")
    assert scheduler.dynamic_sd_lookup == STATIC


def test_after_a_pause_steps_count_once_it_is_known_what_was_asked_for(config: ProbeConfig) -> None:
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    assert control.controller is not None
    serve(scheduler, 50)
    control.pause()
    before = control.controller.steps
    serve(scheduler, 10)
    assert control.controller.steps == before
    control.resume()
    made = SimpleNamespace(sampled_token_ids=[[0] * 4] * 4)
    for counted in (0, 1, 2):
        scheduler.update_from_output(scheduler.schedule(), made)
        assert control.controller.steps == before + counted
    control.disable("the test ends it")
    control.resume()
    assert scheduler.schedule.__qualname__.startswith("Scheduler.")


def test_steps_with_a_prompt_are_told_to_the_controller(config: ProbeConfig) -> None:
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    assert control.controller is not None
    told: list[tuple[int, int, int]] = []
    control.controller.passed = lambda *step: told.append(step)  # type: ignore[method-assign]
    serve(scheduler, 4)
    output = scheduler.schedule()
    output.scheduled_new_reqs = ["new"]
    made = SimpleNamespace(sampled_token_ids=[[0]] * 4)
    scheduler.update_from_output(output, made)
    assert told == [(4, 1024, 3)]


def test_a_vllm_with_other_settings_still_starts(
    config: ProbeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler()
    del scheduler.vllm_config.parallel_config.data_parallel_index
    assert attach(scheduler, config, PatchSet()) is None
    assert "data_parallel_index" in caplog.text
    assert scheduler.dynamic_sd_lookup == STATIC


def test_no_length_changes_where_vllm_asserts_that_it_does_not(
    config: ProbeConfig, tmp_path: Path
) -> None:
    scheduler = Scheduler(method="ngram_gpu", v2=False)
    assert attach(scheduler, config, PatchSet()) is None
    assert scheduler.dynamic_sd_lookup == STATIC
    assert "VLLM_USE_V2_MODEL_RUNNER=1" in reported(tmp_path, ControlState.DISABLED).reason
    assert attach(Scheduler(method="ngram", v2=False), config, PatchSet()) is not None


def test_the_method_is_told_and_makes_no_strange_label(config: ProbeConfig, tmp_path: Path) -> None:
    def methods() -> list[str]:
        found = read_control(tmp_path / "control-0.json")
        samples = [s for m in control_families([found]) for s in m.samples]
        return [s.labels["method"] for s in samples if s.name == "vllm_nfp_draft_control_info"]

    assert attach(Scheduler(method="ngram_gpu"), config, PatchSet()) is not None
    reported(tmp_path, ControlState.LEARNING)
    assert methods() == ["ngram_gpu"]
    assert attach(Scheduler(method="Strange One"), config, PatchSet()) is None
    reported(tmp_path, ControlState.DISABLED)
    assert methods() == []


CURVE = tuple(
    CurvePoint("model", 4, 512, n, 6, 1e-3, 1.0 + (n - 1) / 8, 1.0, 2.0, "full") for n in (1, 2, 5)
)


def has_curves(control: DraftControl) -> bool:
    assert control.controller is not None
    found = control.controller._known.model.point(4, 512, 2)
    return found == (1.125, Basis.MEASURED)


def test_the_probes_curves_arrive_without_its_snapshot_being_read(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is hundreds of KB: reading it holds the engine core up for 30 ms."""
    read: list[str] = []
    original = os.open

    def record(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not flags & (os.O_CREAT | os.O_DIRECTORY):
            read.append(Path(path).name)
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(files.os, "open", record)
    write_snapshot(tmp_path / "engine-0.json", Snapshot("m", "0", State.STEADY, curves=CURVE))
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    CurveSender(config, "0").send(CURVE)
    serve(scheduler, 250)
    assert has_curves(control)
    reported(tmp_path, ControlState.DECIDING)
    time.sleep(0.2)  # the thread has looked for curves by then
    assert set(read) <= {"control-0.json", "owner.lock"}, "of which this test reads one"


def test_curves_of_another_process_come_through_their_own_small_file(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.draft.curve_set import CurveSet, curve_file, write_curves
    from vllm_nfp.draft.sources import curves_of_rows

    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    write_curves(curve_file(str(tmp_path), "0"), CurveSet.of(curves_of_rows(CURVE)))
    deadline = time.monotonic() + 120
    while not has_curves(control) and time.monotonic() < deadline:
        serve(scheduler, 110)  # the thread looks once for each report
        time.sleep(0.02)
    assert has_curves(control)


def test_a_disk_that_hangs_neither_grows_memory_nor_keeps_the_end_back(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, hanging = threading.Event(), threading.Event()
    write = reporter.hand_over

    def hang(folder: RunFolder, name: str, snapshot: ControlSnapshot) -> None:
        if snapshot.state is not ControlState.DISABLED:
            hanging.set()
            assert disk.wait(30)
        write(folder, name, snapshot)

    monkeypatch.setattr(reporter, "hand_over", hang)
    monkeypatch.setattr(reporter, "LONGEST_WRITE_SECONDS", 0.1)
    before = alive()
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    serve(scheduler, 5000)
    assert hanging.wait(10)
    assert alive() - before <= 3, "its own, the one that is being written and the latest"
    control.disable("the test ends it")
    assert reported(tmp_path, ControlState.DISABLED).reason == "the test ends it"
    disk.set()
    assert control._reporter is not None
    control._reporter._thread.join(10)
    assert not control._reporter._thread.is_alive()
    # What was under way has come late, and does not stand.
    assert read_control(control_file(str(tmp_path), "0")).state is ControlState.DISABLED


def alive() -> int:
    gc.collect()
    return sum(type(thing) is ControlSnapshot for thing in gc.get_objects())


def test_the_latest_report_is_written_when_the_disk_comes_back(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, hanging, written = threading.Event(), threading.Event(), []
    write = reporter.hand_over

    def hang(folder: RunFolder, name: str, snapshot: ControlSnapshot) -> None:
        hanging.set()
        assert disk.wait(30)
        written.append(snapshot.steps)
        write(folder, name, snapshot)

    monkeypatch.setattr(reporter, "hand_over", hang)
    scheduler = Scheduler()
    assert attach(scheduler, config, PatchSet()) is not None
    assert hanging.wait(10)
    serve(scheduler, 1000)
    disk.set()
    assert reported(tmp_path, ControlState.DECIDING).steps > 850
    assert len(written) == 2, "the first and the last"


def test_reports_that_cannot_be_written_are_told_once(
    config: ProbeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "control-0.json").mkdir()
    scheduler = Scheduler()
    assert attach(scheduler, config, PatchSet()) is not None
    for _ in range(5):
        serve(scheduler, 110)
        time.sleep(0.05)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    (tmp_path / "control-0.json").rmdir()
    serve(scheduler, 110)
    reported(tmp_path, ControlState.DECIDING)


def test_no_step_waits_for_a_whole_report(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    assert control.controller is not None
    for batch_size in range(1, 9):
        scheduler.running = [f"r{i}" for i in range(batch_size)]
        for context in (400, 700, 1500, 2300, 2900, 3300):
            serve_at(scheduler, context, 30)
    cells: list[int] = []
    times = control.controller.times
    monkeypatch.setattr(
        control.controller, "times", lambda key: cells.__setitem__(-1, cells[-1] + 1) or times(key)
    )
    for _ in range(300):
        cells.append(0)
        serve_at(scheduler, 3300, 1)
    assert sum(cells) >= 2 * 48
    assert max(cells) <= 8
    deadline = time.monotonic() + 120
    while len({(r.batch_size, r.context) for r in report(tmp_path).rows}) < 48:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def report(folder: Path) -> ControlSnapshot:
    return reported(folder, ControlState.DECIDING)


def serve_at(scheduler: Scheduler, context: int, steps: int) -> None:
    for _ in range(steps):
        output = scheduler.schedule()
        output.scheduled_cached_reqs.num_computed_tokens = [context] * len(scheduler.running)
        length = max(map(len, output.scheduled_spec_decode_tokens.values()), default=0)
        CLOCK.now += 1e-3
        made = SimpleNamespace(sampled_token_ids=[[0] * (1 + length) for _ in scheduler.running])
        scheduler.update_from_output(output, made)


def test_the_last_step_of_a_load_completes_the_report(config: ProbeConfig, tmp_path: Path) -> None:
    scheduler = Scheduler()
    assert attach(scheduler, config, PatchSet()) is not None
    for context in (400, 700, 1500, 2300, 2900, 3300, 4100, 5200, 6300, 7400):
        serve_at(scheduler, context, 8)
    output = scheduler.schedule()
    made = SimpleNamespace(sampled_token_ids=[[0] * 4] * 4)
    CLOCK.now += 1.0
    scheduler.running = []
    scheduler.update_from_output(output, made)
    deadline = time.monotonic() + 120
    while reported(tmp_path, ControlState.DECIDING).steps < 79:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_steps_that_never_end_are_bounded(config: ProbeConfig) -> None:
    scheduler = Scheduler()
    control = attach(scheduler, config, PatchSet())
    assert control is not None
    for _ in range(10_000):
        scheduler.schedule()
    assert len(control._under_way) <= 256
    serve(scheduler, 10)
    assert control.controller is not None
    assert control.controller.steps == 10


def test_lengths_to_choose_from() -> None:
    assert candidate_lengths(ProbeConfig(), 5, [5, 5, 2]) == (0, 1, 2, 3, 4, 5)
    assert candidate_lengths(ProbeConfig(draft_lengths=(0, 4)), 5, [5]) == (0, 4, 5)
    with pytest.raises(ConfigError, match="holds 8, above num_speculative_tokens 5"):
        candidate_lengths(ProbeConfig(draft_lengths=(0, 8)), 5, [5])


def test_the_table_shown_to_the_graph_managers_holds_every_length() -> None:
    speculation = SimpleNamespace(
        num_speculative_tokens=4, num_speculative_tokens_per_batch_size=[[1, 1, 4]]
    )
    vllm_config = SimpleNamespace(
        speculative_config=speculation, scheduler_config=SimpleNamespace(max_num_seqs=32)
    )
    with _shown(vllm_config, ProbeConfig()):
        table = speculation.num_speculative_tokens_per_batch_size
        assert [k for *_, k in table] == [0, 1, 2, 3, 4]
        assert table[0] == [1, 28, 0]
        assert table[-1] == [32, 32, 4]
    assert speculation.num_speculative_tokens_per_batch_size == [[1, 1, 4]]
    assert covering_table((0, 1, 2), 2) is None


@pytest.mark.parametrize(
    ("settings", "data_parallel", "said"),
    [
        (None, 1, "drafts nothing"),
        ({"method": "ngram"}, 1, "needs num_speculative_tokens"),
        ({"method": "medusa", "num_speculative_tokens": 3}, 1, "'medusa'"),
        ({"method": "ngram", "num_speculative_tokens": 3}, 2, "--data-parallel-size 2"),
    ],
)
def test_speculation_that_cannot_be_controlled_is_refused_at_the_command_line(
    settings: Any, data_parallel: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare_speculation(settings, data_parallel)


SHORT = {"spec_method": None, "spec_model": None, "spec_tokens": None}


@pytest.mark.parametrize(
    "flags",
    [
        {"speculative_config": {"method": "ngram", "num-speculative-tokens": 4}},
        {"spec_method": "ngram", "spec_tokens": 4},
        {"speculative_config": {"num_speculative_tokens": 4}, "spec_method": "ngram"},
        {"speculative_config": {"num-speculative-tokens": 8, "method": "ngram"}, "spec_tokens": 4},
    ],
)
def test_speculation_may_be_given_in_any_of_vllms_ways(flags: dict[str, Any]) -> None:
    args = argparse.Namespace(**{"speculative_config": None, **SHORT, **flags})
    control_speculation(args)
    assert args.speculative_config == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 1, 4]],
    }
    assert {name: getattr(args, name) for name in SHORT} == SHORT


@pytest.mark.parametrize("short", [{"spec_tokens": 5}, {"spec_method": "ngram"}])
def test_a_setting_that_is_named_twice_is_left_for_vllm_to_refuse(short: dict[str, Any]) -> None:
    twice = {"method": "ngram", "num_speculative_tokens": 4}
    args = argparse.Namespace(**{"speculative_config": dict(twice), **SHORT, **short})
    control_speculation(args)
    assert args == argparse.Namespace(**{"speculative_config": twice, **SHORT, **short})


def test_a_server_that_drafts_nothing_is_refused() -> None:
    args = argparse.Namespace(speculative_config=None)
    with pytest.raises(ConfigError, match="drafts nothing: add --speculative-config"):
        control_speculation(args)


def test_a_fixed_length_becomes_a_table_and_a_table_stays() -> None:
    fixed = {"method": "eagle", "model": "m", "num_speculative_tokens": 3}
    made = prepare_speculation(fixed, 1)
    assert made == {**fixed, "num_speculative_tokens_per_batch_size": [[1, 1, 3]]}
    assert prepare_speculation(made, 1) == made
