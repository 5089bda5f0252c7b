from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.adapter import extension, flags, install, metrics_bridge, worker_hook
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ENV_VAR, ProbeConfig
from vllm_nfp.metrics.outbox import Outbox
from vllm_nfp.results import scrape
from vllm_nfp.results.snapshot import Snapshot, read_snapshot
from vllm_nfp.types import State


def gauge(value: float, module: str = "model") -> Metric:
    family = GaugeMetricFamily("width", "Width.", labels=["model_name", "engine", "module"])
    family.add_metric(["m", "0", module], value)
    return family


def counter(value: float) -> Metric:
    family = CounterMetricFamily("probes", "Probes.", labels=["engine"])
    family.add_metric(["0"], value)
    return family


def taken(box: Outbox) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(change.name, change.labels): change.value for change in box.take()}


def test_the_outbox_hands_over_changes_alone() -> None:
    box = Outbox()
    box.put([gauge(3.0), counter(5.0)])
    assert taken(box) == {("width", (("module", "model"),)): 3.0, ("probes_total", ()): 5.0}
    box.put([gauge(3.0), counter(5.0)])
    assert taken(box) == {}
    box.put([gauge(4.0), counter(7.0)])
    assert taken(box) == {("width", (("module", "model"),)): 4.0, ("probes_total", ()): 2.0}


def test_growth_between_two_takings_adds_up_and_gauges_keep_the_last() -> None:
    box = Outbox()
    for value in (1.0, 4.0, 6.0):
        box.put([gauge(value), counter(value)])
    assert taken(box) == {("width", (("module", "model"),)): 6.0, ("probes_total", ()): 6.0}


def test_a_series_that_is_gone_is_handed_over_as_nan_once() -> None:
    box = Outbox()
    box.put([gauge(3.0)])
    box.take()
    box.put([gauge(2.0, "attention")])
    found = taken(box)
    assert found["width", (("module", "attention"),)] == 2.0
    assert math.isnan(found["width", (("module", "model"),)])
    box.put([gauge(2.0, "attention")])
    assert taken(box) == {}
    box.put([gauge(3.0)])
    assert taken(box)["width", (("module", "model"),)] == 3.0


def test_a_gauge_that_is_gone_before_it_was_taken_is_not_handed_over_at_all() -> None:
    box = Outbox()
    box.put([gauge(3.0)])
    box.put([])
    assert taken(box) == {}


def test_a_gauge_that_comes_back_before_its_removal_was_taken_is_as_it_was() -> None:
    box = Outbox()
    box.put([gauge(3.0)])
    box.take()
    box.put([])
    box.put([gauge(3.0)])
    assert taken(box) == {}
    box.put([])
    box.put([gauge(4.0)])
    assert taken(box) == {("width", (("module", "model"),)): 4.0}


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
def test_a_gauge_that_is_no_number_is_gone(nothing: float) -> None:
    box = Outbox()
    box.put([gauge(nothing)])
    assert taken(box) == {}
    box.put([gauge(3.0)])
    box.take()
    box.put([gauge(nothing)])
    (value,) = taken(box).values()
    assert math.isnan(value)


@pytest.mark.parametrize("taken_between", [True, False])
@pytest.mark.parametrize(
    "interlude",
    [[], [counter(math.nan)], [counter(math.inf)], [counter(-math.inf)], [counter(0.0)]],
    ids=["gone", "nan", "inf", "-inf", "fallen"],
)
def test_a_counter_that_goes_away_or_falls_stays_and_grows_rightly_when_it_is_back(
    interlude: list[Metric], taken_between: bool
) -> None:
    box, shown = Outbox(), Counter("shown", "As vLLM shows it.", registry=CollectorRegistry())

    def hand_over() -> None:
        for change in box.take():
            assert change.is_counter and change.name == "probes_total"
            shown.inc(change.value)  # refuses what is negative

    for families, value in (([counter(5.0)], 5.0), (interlude, 5.0), ([counter(7.0)], 7.0)):
        box.put(families)
        if taken_between:
            hand_over()
            assert shown._value.get() == value
    hand_over()
    assert shown._value.get() == 7.0


def test_a_probe_that_fails_in_its_first_scan_leaves_its_counters_as_they_were() -> None:
    """The news of the end are then without any of them."""
    box = Outbox()
    scanned = Snapshot("m", "0", State.WARMING, probes={"startup": 3}, probe_seconds=1.5)
    for snapshot in (scanned, Snapshot("m", "0", State.DISABLED, reason="a fault")):
        box.put(extension._families(snapshot, ProbeConfig()))
        changes = box.take()
        growth = {change.name: change.value for change in changes if change.is_counter}
        assert all(0.0 <= value < math.inf for value in growth.values())
        named = {change.name for change in changes if not change.is_counter}
        assert not [name for name in named if name.endswith("_total")], "a counter sent as a gauge"
    assert growth == {}


def test_series_that_are_gone_do_not_count_in_a_scrape() -> None:
    text = 'vllm_nfp_state{state="passive"} NaN\nvllm_nfp_state{state="steady"} 1.0\n'
    samples = scrape.read_samples(text)
    assert [labels["state"] for labels, _ in samples["vllm_nfp_state"]] == ["steady"]


@pytest.mark.parametrize("whole", [True, False])
def test_the_extension_point_is_found_by_its_files(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in extension._FILES[: None if whole else 1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert extension.present() is whole


def test_without_vllm_there_is_no_extension_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not extension.present()


@pytest.mark.parametrize(
    ("config", "speculative", "log_stats", "carried"),
    [
        (ProbeConfig(), False, True, True),
        (ProbeConfig(), False, False, False),
        (ProbeConfig(), True, True, False),
        (ProbeConfig(draft_acceptance=0.8), True, True, True),
        (ProbeConfig(layer_histograms=True), False, True, False),
        (ProbeConfig(draft_acceptance=0.8, draft_control=True), True, True, False),
    ],
)
def test_vllm_carries_what_it_can_and_files_the_rest(
    config: ProbeConfig, speculative: bool, log_stats: bool, carried: bool
) -> None:
    assert (extension.why_not_values(config, speculative, log_stats) is None) is carried


@pytest.mark.parametrize(("present", "files"), [(True, False), (False, True)])
def test_the_launcher_makes_a_folder_only_where_files_carry_the_results(
    present: bool, files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "present", lambda: present)
    monkeypatch.setenv(ENV_VAR, "")
    args = argparse.Namespace(nfp_probe=True)
    flags.switch_on(args)
    import os

    assert (json.loads(os.environ[ENV_VAR])["run_dir"] is not None) is files


class FakeSession:
    def __init__(self) -> None:
        self.calls: list[object] = []
        self.active = False

    def after_warm_up(self, runner: object, place: object, unhook: object) -> None:
        self.calls += [runner, place]
        self.active = True

    def before_step(self, scheduler_output: object) -> None:
        self.calls.append(scheduler_output)

    def after_step(self) -> None:
        self.calls.append("after")


def test_the_observer_tells_the_session_until_it_is_off() -> None:
    session = FakeSession()
    captures = SimpleNamespace(place="place", close=lambda: session.calls.append("closed"))
    worker = SimpleNamespace(model_runner="runner")
    observer = extension.Observer(session, worker, None, captures=captures)
    observer.before_step("a step before it is ready")
    for _ in range(2):
        observer.after_warm_up()
    assert session.calls == ["closed", "runner", "place"]
    session.calls.clear()
    observer.before_step("step")
    observer.after_step("step")
    assert session.calls == ["step", "after"]
    session.active = False
    observer.before_step("step")
    observer.after_step("step")
    assert len(session.calls) == 2
    assert observer.take_metrics() is None


@pytest.mark.parametrize("present", [True, False])
def test_a_process_takes_the_extension_point_or_the_hooks_and_never_both(
    present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    monkeypatch.setenv(ENV_VAR, ProbeConfig().to_json())
    monkeypatch.setattr(extension, "present", lambda: present)
    monkeypatch.setattr(extension, "register", lambda config: taken.append("extension"))
    monkeypatch.setattr(worker_hook, "install", lambda *_: taken.append("hooks"))
    install.install()
    assert taken == ["extension" if present else "hooks"]


def test_a_vllm_that_cannot_be_hooked_says_so_on_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise worker_hook.HookMissingError("WorkerWrapperBase.init_device is gone")

    monkeypatch.setenv(ENV_VAR, ProbeConfig(run_dir=str(tmp_path)).to_json())
    monkeypatch.setattr(extension, "present", lambda: False)
    monkeypatch.setattr(metrics_bridge, "install", lambda *_: None)
    monkeypatch.setattr(worker_hook, "install", missing)
    with caplog.at_level(logging.ERROR, "vllm.nfp"):
        install.install()
    left = read_snapshot(tmp_path / "engine-0.json")
    assert left.state is State.DISABLED
    assert "init_device is gone" in left.reason
    assert "cannot be hooked" in caplog.text


def test_a_runner_without_the_methods_disables_the_session() -> None:
    class Runner:
        device = SimpleNamespace(type="cpu")

    reasons: list[str] = []
    patches = PatchSet()

    def disable(reason: str, expected: bool) -> None:
        patches.restore()
        reasons.append(reason)

    session: Any = SimpleNamespace(disable=disable)
    with pytest.MonkeyPatch.context() as patch:
        from vllm_nfp.adapter import runners

        patch.setattr(runners, "view_of", runners.V1Runner)
        runner = Runner()
        worker_hook._hook_runner(runner, session, patches)
    assert len(reasons) == 1
    assert "Runner of this vLLM has no execute_model" in reasons[0]
    assert vars(runner) == {}, "a hook is left on it"


def test_vllm_carries_no_age_which_would_not_grow_where_a_worker_hangs() -> None:
    told = Snapshot("m", "0", State.STEADY, updated_monotonic_seconds=1.0)
    names = {s.name for family in extension._families(told, ProbeConfig()) for s in family.samples}
    assert "vllm_nfp_state" in names
    assert "vllm_nfp_age_seconds" not in names
