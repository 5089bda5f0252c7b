"""The benchmark whose hooks come and go in one server; nothing here starts one."""

from __future__ import annotations

import itertools
import json
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("aiohttp")

from benchmarks.overhead import switched, switched_core, switched_summary
from benchmarks.overhead.hooks import OFF, Hooks, background_seconds, require_active
from benchmarks.overhead.overhead_summary import Turn
from benchmarks.overhead.resident import Growth, StageGrowth, gpu_kinds, kinds, mappings, resident
from benchmarks.overhead.switched_board import Board, CoreCost
from benchmarks.overhead.switched_core import Watched
from benchmarks.overhead.switched_drafts import Drafts
from benchmarks.overhead.switched_spec import spec_of
from benchmarks.serving import traffic
from vllm_nfp import give_way
from vllm_nfp.config import config_from_mapping


def test_each_turn_of_a_block_has_the_same_arrivals() -> None:
    base = traffic.Load("http://x", "m", 1000, 1, 8, 8, seconds=5.0, seed=3)
    moments = np.array(traffic.Arrivals(base, 7.0, period=0.5).moments(5.0))
    turns = [moments[(moments >= t) & (moments < t + 0.5)] - t for t in np.arange(0.0, 5.0, 0.5)]
    assert {len(turn) for turn in turns} == {4}, "3.5 requests a turn"
    for turn in turns:
        assert turn == pytest.approx(turns[0])
    assert traffic.Arrivals(base, 0.1, period=0.5).moments(5.0), "a load is never empty"


def test_every_round_holds_its_variant_and_off_once_in_changing_order() -> None:
    turns = list(switched.plan(0.5, "active", 10))
    rounds = [turns[i : i + 2] for i in range(0, len(turns), 2)]
    assert [turn[0].round for turn in rounds] == list(range(10, 18))
    assert all({t.variant for t in turn} == {OFF, "active"} for turn in rounds)
    assert len({tuple(t.variant for t in turn) for turn in rounds}) == 2
    assert len({turn.key for turn in turns}) == len(turns)
    assert len(list(switched.plan(switched_summary.SATURATED, "raised", 0))) == 2


def test_a_variant_with_its_delayed_steps_leaves_a_load_to_the_others() -> None:
    def row(share: float, variant: str, delayed: int) -> dict[str, Any]:
        return {"share": share, "variant": variant, "hook_delayed_steps": delayed}

    def at_half(rows: list[dict[str, Any]], wanted: int) -> list[str]:
        blocks = switched.next_blocks(rows, ("active", "raised"), wanted)
        assert list(dict.fromkeys(share for share, _ in blocks)) == list(switched_summary.SHARES)
        return [variant for share, variant in blocks if share == 0.5]

    assert at_half([], 4) == ["active", "raised"]
    rows = [row(0.5, "raised", 3), row(0.5, "active", 1), row(0.9, "raised", 4)]
    rows += [{"share": 0.5, "variant": OFF}]
    assert at_half(rows, 4) == ["active", "raised"]
    rows += [row(0.5, "raised", 1)]
    assert at_half(rows, 4) == ["active"]
    rows += [row(0.5, "active", 3)]
    assert at_half(rows, 4) == ["active", "raised"], "no load is left without turns"


DELAYED_STEPS, DECODE_STEPS, DELAY_US = 8, 100, 10_000


def planned(share: float) -> list[Turn]:
    """Two blocks of either variant, each round with turns of its own."""
    return [
        turn
        for number, variant in enumerate(("active", "raised") * 2)
        for turn in switched.plan(share, variant, number * switched.ROUNDS_OF_BLOCK)
    ]


def rows_of(factor: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rounds in which the active probe makes times longer by the factor, and the raised one
    delays some steps."""
    rng = np.random.default_rng(0)
    rows, times_us = [], {}
    for share in switched_summary.SHARES:
        for turn in planned(share):
            slower = factor if turn.variant == "active" else 1.0
            times = rng.normal(5000, 200, 400) * slower
            if turn.variant == "raised":
                times[: 4 * DELAYED_STEPS] += DELAY_US  # four streams
            times_us[turn.key] = times.astype(np.uint32)
            first = rng.normal(40_000, 1000, 50) * slower
            times_us[turn.first_key] = first.astype(np.uint32)
            rows.append({
                "share": share, "round": turn.round, "variant": turn.variant, "seconds": 0.5,
                "tokens_per_second": 100.0 / slower, "hook_seconds": 0.005,
                "background_seconds": 0.001, "hook_decode_steps": DECODE_STEPS,
                "hook_delayed_steps": DELAYED_STEPS if turn.variant == "raised" else 0,
                "hook_idle_probes": 1,
            })  # fmt: skip
    return rows, times_us


def test_a_probe_that_slows_steps_is_seen() -> None:
    rows, times_us = rows_of(1.1)
    found = switched_summary.compare(rows, times_us, 0.5, "active")
    assert found is not None
    assert (found.rounds, found.intervals, found.first_tokens) == (16, 6400, 800)
    assert found.off_p50_ms == pytest.approx(5.0, rel=0.02)
    for name in ("itl_p50", "itl_mean", "ttft_p50", "ttft_p99"):
        assert found.ratios[name].ratio == pytest.approx(1.1, rel=0.02), name
        assert found.ratios[name].lower > 1.0, name
    assert found.ratios["itl_p50"].resolution < 0.01
    assert "tokens" not in found.ratios, "arrivals decide on it below saturation"
    saturated = switched_summary.compare(rows, times_us, switched_summary.SATURATED, "active")
    assert saturated is not None and saturated.rounds == 2
    assert saturated.ratios["tokens"].ratio == pytest.approx(1 / 1.1)
    pooled = switched_summary.over_loads(rows, times_us, "active", 0.5)
    assert pooled is not None
    assert pooled.ratio == pytest.approx(1.1, rel=0.01)
    assert pooled.lower < pooled.ratio < pooled.upper < 1.13


def test_rounds_whose_turn_without_hooks_was_busy_do_not_count() -> None:
    rows, times_us = rows_of(1.0)
    disturbed = [row for row in rows if row["variant"] == OFF and row["round"] % 2]
    for row in disturbed:
        row["background_seconds"] = 0.1
        for key in (k for k in times_us if k.startswith(Turn(row["share"], row["round"], OFF).key)):
            times_us[key] = times_us[key] * 2
    found = switched_summary.compare(rows, times_us, 0.5, "active")
    assert found is not None and (found.rounds, found.busy) == (8, 8)
    assert found.ratios["itl_p99"].ratio == pytest.approx(1.0, rel=0.03)
    assert found.ratios["ttft_p99"].ratio == pytest.approx(1.0, rel=0.03)
    for row in rows:
        row["background_seconds"] = 0.1 if row["variant"] == OFF else 0.0
    assert switched_summary.compare(rows, times_us, 0.5, "active") is None


def test_what_a_delayed_step_costs_follows_from_the_mean() -> None:
    rows, times_us = rows_of(1.0)
    raised = switched_summary.compare(rows, times_us, 0.9, "raised")
    assert raised is not None and raised.delay_ms is not None
    assert raised.delayed == 16 * DELAYED_STEPS and raised.decode_steps == 16 * DECODE_STEPS
    assert raised.delay_ms.ratio == pytest.approx(DELAY_US / 1e3, rel=0.05)
    assert raised.delay_ms.lower < raised.delay_ms.ratio < raised.delay_ms.upper
    assert raised.ratios["itl_p50"].ratio == pytest.approx(1.0, rel=0.02)
    assert raised.ratios["itl_p99"].ratio > 2.0
    assert (raised.hook_share, raised.background_share) == pytest.approx((0.01, 0.002))
    assert raised.idle_probes == 16
    active = switched_summary.compare(rows, times_us, 0.9, "active")
    assert active is not None and active.delayed == 0 and active.delay_ms is None


def test_a_run_that_kept_less_is_still_summarized() -> None:
    """The runs of 2026-11-25 have neither times to first token nor counts of steps."""
    rows, times_us = rows_of(1.0)
    kept = ("share", "round", "variant", "seconds", "tokens_per_second", "hook_seconds")
    old = [{name: row[name] for name in kept} for row in rows]
    times = {key: value for key, value in times_us.items() if not key.endswith("-first")}
    found = switched_summary.compare(old, times, 0.1, "active")
    assert found is not None and found.delayed is None and found.background_share is None
    assert "ttft_p50" not in found.ratios
    assert switched_summary.cells(found)[9:13] == ["", "", "", ""]


def test_a_variant_without_rounds_has_no_line() -> None:
    rows, times_us = rows_of(1.0)
    left = [row for row in rows if row["variant"] != "active"]
    assert switched_summary.compare(left, times_us, 0.5, "active") is None
    assert switched_summary.over_loads(left, times_us, "active", 0.5) is None


def test_a_probe_that_did_not_attach_is_not_measured() -> None:
    require_active([{"before": {}, "active": {"active": True}}])
    with pytest.raises(RuntimeError, match="'active' did not attach as asked"):
        require_active([{"before": {}, "active": {"active": False}}])


SMAPS = """\
7f0000000000-7f0000100000 r-xp 00000000 08:01 123                /usr/lib/libtorch_cuda.so
Size:               1024 kB
Rss:                 512 kB
Pss:                 100 kB
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
Rss:                  64 kB
7f0000400000-7f0000500000 rw-p 00000000 00:00 0                  [heap]
Rss:                   8 kB
7f0000600000-7f0000700000 r--p 00100000 08:01 123                /usr/lib/libtorch_cuda.so
Rss:                  16 kB
"""


def test_mappings_are_added_up_by_what_is_mapped() -> None:
    assert mappings(SMAPS) == {"libtorch_cuda.so": 528, "": 64, "[heap]": 8}


def test_growth_is_told_in_mib_the_largest_first() -> None:
    before = Growth({"VmRSS": 1024}, {"a": 1024, "b": 0})
    grown = Growth({"VmRSS": 3072}, {"a": 1024, "b": 2048}).since(before)
    assert grown.summary() == {"mib": {"VmRSS": 2.0}, "mappings_mib": {"b": 2.0, "a": 0.0}}


def new_pages() -> mmap.mmap:
    """64 MiB that no allocator has held before."""
    held = mmap.mmap(-1, 64 << 20)
    held.write(bytes(len(held)))
    return held


def test_this_process_is_seen_to_grow() -> None:
    before = resident()
    held = new_pages()
    assert resident().since(before).kinds["VmRSS"] >= 60 * 1024
    held.close()


def test_stages_tell_what_grows_in_them_and_are_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm_nfp.session.publisher import Publisher

    kept: list[Any] = []
    monkeypatch.setattr(Publisher, "publish", lambda self: kept.append(new_pages()))
    original = Publisher.publish
    pytest.importorskip("vllm")
    with (stages := StageGrowth()):
        Publisher.publish(None)  # type: ignore[call-arg, arg-type]
    assert Publisher.publish is original
    assert stages.summary()["Publisher.publish"]["calls"] == 1
    assert stages.summary()["Publisher.publish"]["VmRSS"] >= 60
    kept[0].close()


def test_memory_of_a_gpu_is_split_into_what_pytorch_holds_and_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gpu_kinds() == {}, "there is no GPU, or nothing has used it"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (300 << 20, 1000 << 20))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 600 << 20)
    assert gpu_kinds() == {"GpuReserved": 600 << 10, "GpuBeside": 100 << 10}
    assert kinds()["GpuBeside"] == 100 << 10


class Session:
    """A session that notes what it is asked."""

    active = True

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.publisher = SimpleNamespace(_work=lambda *_, **__: self.told.append("published"))
        self._started = SimpleNamespace(
            lead=SimpleNamespace(publisher=self.publisher, watcher=None)
        )

    def after_warm_up(self, runner: Any, place: Any, unhook: Any) -> None:
        self.told.append("attached")

    def before_step(self, output: Any) -> None:
        self.told.append(("before", output))

    def after_step(self) -> None:
        self.told.append("after")


class Runner:
    """A model runner without a model."""

    def execute_model(self, output: Any) -> str:
        return f"ran {output}"

    def sample_tokens(self) -> str:
        return "sampled"


def test_hooks_come_and_go_and_tell_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    from vllm_nfp.adapter import hooks as runner_hooks
    from vllm_nfp.adapter import targets

    session, runner = Session(), Runner()
    monkeypatch.setattr("vllm_nfp.session.open_session", lambda *_: session)
    view = SimpleNamespace(
        is_dummy=lambda _: False,
        begins_step=targets.V1_EXECUTE_MODEL,
        ends_step=targets.V1_SAMPLE_TOKENS,
    )
    monkeypatch.setattr(runner_hooks, "view_of", lambda _: view)
    hooks = Hooks(None, None, runner, None)
    runner.execute_model("off")
    session.publisher._work(0.0, publish=True)
    assert session.told == ["attached"], "hooks are off"
    for _ in range(2):
        hooks.switch(True)
        assert (runner.execute_model("on"), runner.sample_tokens()) == ("ran on", "sampled")
        session.publisher._work(0.0, publish=True)
        hooks.switch(False)
    runner.execute_model("off")
    assert session.told[1:] == 2 * [("before", "on"), "after", "published"]
    cost = hooks.take_cost()
    assert (cost["steps"], set(cost["median_us"])) == (2, {"before_step", "after_step"})
    assert 0.0 < cost["seconds"] < 1.0
    assert hooks.take_cost()["steps"] == 0
    hooks._seconds["before_step"] = [1e-5, 2e-3, 3e-3]
    cost = hooks.take_cost()
    assert (cost["long_calls"], cost["long_seconds"]) == (2, pytest.approx(5e-3))


def test_what_a_session_has_begun_rests_while_its_hooks_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from vllm_nfp.adapter import hooks as runner_hooks

    session, pieces, end = Session(), itertools.count(), threading.Event()
    done = [0]

    def work(now: float, publish: bool) -> None:
        while not end.is_set():
            done[0] = next(pieces)
            time.sleep(2 * give_way.LEAST_SECONDS)
            give_way.give_way()

    session.publisher._work = work
    monkeypatch.setattr("vllm_nfp.session.open_session", lambda *_: session)
    monkeypatch.setattr(runner_hooks, "hook_runner", lambda *_: None)
    monkeypatch.setattr(give_way, "time", time)  # put back at the end
    hooks = Hooks(None, None, Runner(), None)
    hooks.switch(True)
    thread = threading.Thread(target=lambda: session.publisher._work(0.0, publish=True))
    thread.start()
    try:
        for _ in range(2):
            assert reached(lambda before: done[0] > before + 3, done[0])
            hooks.switch(False)
            time.sleep(0.05)  # the piece under way ends
            before = done[0]
            time.sleep(0.1)
            assert done[0] == before
            hooks.switch(True)
        assert reached(lambda before: done[0] > before + 3, done[0])
    finally:
        end.set()
        hooks.switch(True)
        thread.join(10.0)
    assert not thread.is_alive()


def reached(found: Callable[[int], bool], before: int) -> bool:
    """Whether it is so within ten seconds."""
    limit = time.monotonic() + 10.0
    while not found(before) and time.monotonic() < limit:
        time.sleep(0.005)
    return found(before)


def test_the_probes_own_threads_are_timed_by_their_names() -> None:
    done, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun = time.thread_time()
        while time.thread_time() < begun + 0.05:
            pass
        done.set()
        go_on.wait()

    before = background_seconds()
    threads = [threading.Thread(target=work, name=n) for n in ("nfp-made", "other")]
    for thread in threads:
        done.clear()
        thread.start()
        done.wait()
    spent = background_seconds() - before
    go_on.set()
    for thread in threads:
        thread.join()
    assert 0.05 <= spent < 0.09


def test_a_turn_is_charged_what_came_since_the_switch() -> None:
    before = {"hooks": {}, "resident_mib": 1.0, "background_seconds": 2.0}
    hooks = {"active": {"seconds": 0.1, "steps": 7, "median_us": {}, "delayed_steps": 3}}
    after = {"hooks": hooks, "resident_mib": 5.0, "background_seconds": 2.5}
    unwatched = CoreCost(0, 0, 0.0, 0.0)
    cost = switched._cost("active", (before, unwatched), (after, unwatched))
    assert (cost["hook_delayed_steps"], cost["background_seconds"]) == (3, 0.5)
    assert "core_steps" not in cost
    core = CoreCost(7, 10, 1.0, 2.0), CoreCost(7, 14, 1.25, 2.5)
    off = switched._cost(OFF, (before, core[0]), (after, core[1]))
    assert off["hook_steps"] == 0
    assert [off[f"core_{n}"] for n in ("steps", "hook_seconds", "thread_seconds")] == [4, 0.25, 0.5]


def test_the_client_watches_no_captures() -> None:
    """The extension hooks its process as it is imported: workers alone may import it."""
    code = (
        "import sys, benchmarks.overhead.switched; "
        "print('benchmarks.overhead.worker_extension' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout.strip() == "False"


class Scheduler:
    """What the engine core's loop asks of a scheduler."""

    def has_requests(self) -> bool:
        return True


class Control:
    """A draft control that notes when it comes and goes."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def resume(self) -> None:
        self.told.append("resume")

    def pause(self) -> None:
        self.told.append("pause")

    def scheduled(self, output: object) -> None:
        time.sleep(0.002)

    def finished(self, output: object, model_output: object, now: float) -> None:
        time.sleep(0.002)


def test_the_engine_core_switches_its_control_between_steps(tmp_path: Path) -> None:
    scheduler, control = Scheduler(), Control()
    asked = Board.create(tmp_path / "board")
    Watched(scheduler, control, Board(tmp_path / "board"))
    assert asked.cost.pid == 0 and scheduler.has_requests() and control.told == []
    begun = asked.cost
    assert begun.pid > 0
    asked.want_control(True)
    for _ in range(2):
        assert scheduler.has_requests()
        control.scheduled("step")
        control.finished("step", "output", 0.0)
    asked.want_control(False)
    assert scheduler.has_requests() and control.told == ["resume", "pause"]
    spent = asked.cost.since(begun)
    assert spent["core_steps"] == 2 and 0.008 <= spent["core_hook_seconds"] < 0.5


def test_an_engine_core_without_a_control_is_watched_alone(tmp_path: Path) -> None:
    scheduler, board = Scheduler(), Board.create(tmp_path / "board")
    Watched(scheduler, None, board)
    board.want_control(True)
    assert scheduler.has_requests() and board.cost.steps == 0


def test_time_in_the_engine_core_is_a_part_of_the_turns() -> None:
    rows, times_us = rows_of(1.0)
    without = switched_summary.compare(rows, times_us, 0.5, "active")
    assert without is not None and without.core_share is None
    for row in rows:
        row |= {"core_hook_seconds": 0.004, "core_thread_seconds": 0.001}
    found = switched_summary.compare(rows, times_us, 0.5, "active")
    assert found is not None and found.core_share == pytest.approx(0.01)
    assert switched_summary.cells(found)[-1] == "1.00%"
    assert len(switched_summary.cells(found)) == len(switched_summary.HEADS)


@pytest.mark.parametrize("method", ["ngram", "eagle3"])
def test_every_draft_length_is_in_the_table_of_the_server(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    drafts = Drafts(method, (0, 1, 4), 0.5)
    flag, config = drafts.flags("qwen3-8b", 4)
    found = json.loads(config)
    assert flag == "--speculative-config" and found["num_speculative_tokens"] == 4
    assert [length for *_, length in found["num_speculative_tokens_per_batch_size"]] == [0, 1, 4]
    if method == "eagle3":
        assert found["synthetic_acceptance_rates"] == [0.5, 0.25, 0.125, 0.0625]
        assert (Path(found["model"]) / "config.json").is_file()


def test_a_controlled_server_knows_its_lengths_and_is_watched(tmp_path: Path) -> None:
    settings = switched.Settings(
        shape="tiny-dense", layers=2, kv_gib=None, prompt_tokens=8, output_tokens=8, saturating=2,
        turn_seconds=0.5, saturated_turn_seconds=1.0, warmup_turns=1, probe={}, flags=(),
        variants=(OFF, "control"), within=10.0, delayed=300, draft=Drafts("ngram", (0, 2), 0.5),
    )  # fmt: skip
    spec = spec_of(settings, tmp_path, tmp_path, tmp_path / "log")
    control = config_from_mapping(json.loads(spec.extra["NFP_BENCH_CONTROL"]))
    assert control.draft_control and control.draft_lengths == (0, 2)
    assert control.run_dir == str(tmp_path / "control")
    assert "--scheduler-cls" in spec.command() and "--nfp-probe" not in spec.command()
    plain = spec_of(replace(settings, draft=None, variants=(OFF,)), tmp_path, tmp_path, tmp_path)
    assert "--scheduler-cls" not in plain.command() and "NFP_BENCH_CONTROL" not in plain.extra


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--variants", "off,control"], "--variants control needs --draft"),
        (["--draft", "ngram", "--draft-lengths", "1,2"], "1,2 must hold 0 and at least one more"),
        (["--draft", "ngram", "--draft-lengths", "0,2,2"], "each once"),
    ],
)
def test_what_cannot_be_controlled_is_refused(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(switched.main, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and sentence in done.output


def test_a_server_that_drafts_has_no_median_between_tokens() -> None:
    rows, times_us = rows_of(1.1)
    found = switched_summary.compare(rows, times_us, 0.5, "active", drafts=True)
    assert found is not None and "itl_p50" not in found.ratios
    assert found.ratios["itl_mean"].ratio == pytest.approx(1.1, rel=0.02)
    assert switched_summary.cells(found)[6] == ""


class SchedulerConfig:
    """Chooses the scheduler as vLLM does: its own unless another is named."""

    scheduler_cls: str | None = switched_core.SCHEDULER

    def get_scheduler_cls(self) -> Any:
        assert self.scheduler_cls is None, "vLLM's own is asked for"
        return OwnScheduler


class OwnScheduler(Scheduler):
    """What vLLM would have made."""

    def __init__(self, vllm_config: Any, block_size: int) -> None:
        self.vllm_config, self.block_size = vllm_config, block_size
        self.num_spec_tokens, self.dynamic_sd_lookup = 4, [0, 0, 2]


@pytest.mark.parametrize("attaches", [True, False])
def test_the_engine_core_gets_vllms_own_scheduler_under_a_paused_control(
    attaches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from vllm_nfp.adapter import draft_control

    control, tables = Control(), []

    def attach(scheduler: Any, config: Any, patches: Any) -> Control | None:
        tables.append((list(scheduler.dynamic_sd_lookup), config.draft_lengths))
        return control if attaches else None

    monkeypatch.setattr(draft_control, "attach", attach)
    Board.create(tmp_path / "board")
    monkeypatch.setenv(switched_core.BOARD_VARIABLE, str(tmp_path / "board"))
    monkeypatch.setenv(switched_core.CONTROL_VARIABLE, '{"draft_lengths": [0, 2, 4]}')
    config = SimpleNamespace(scheduler_config=SchedulerConfig())
    if not attaches:
        with pytest.raises(RuntimeError, match="did not attach"):
            switched_core.switched_scheduler(vllm_config=config, block_size=16)
        return
    made = switched_core.switched_scheduler(vllm_config=config, block_size=16)
    assert type(made) is OwnScheduler and made.block_size == 16
    assert tables == [([4, 4, 4], (0, 2, 4))] and control.told == ["pause"]
    assert config.scheduler_config.scheduler_cls == switched_core.SCHEDULER
