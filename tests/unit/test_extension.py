"""A worker's observer, whether hooks drive it or vLLM's extension point."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_nfp.adapter import (
    extension,
    hooks,
    install,
    metrics_bridge,
    sources,
    switch_on,
    targets,
)
from vllm_nfp.adapter.patch import MARK, MissingTargetError, PatchSet
from vllm_nfp.adapter.runner_v1 import V1Runner
from vllm_nfp.config import ENV_VAR, ProbeConfig
from vllm_nfp.results import scrape
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.types import State


def test_series_that_are_gone_do_not_count_in_a_scrape() -> None:
    text = 'vllm_nfp_state{state="passive"} NaN\nvllm_nfp_state{state="steady"} 1.0\n'
    samples = scrape.read_samples(text)
    assert [labels["state"] for labels, _ in samples["vllm_nfp_state"]] == ["steady"]


@pytest.mark.parametrize("there", [True, False])
def test_the_extension_point_is_found_by_its_file(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vllm/v1/worker/step_observer.py"
    path.parent.mkdir(parents=True)
    if there:
        path.touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "vllm")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert sources.has_extension_point() is there


def test_without_vllm_there_is_no_extension_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not sources.has_extension_point()


@pytest.mark.parametrize("present", [True, False])
def test_results_go_through_the_run_folder_with_and_without_the_extension_point(
    present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "has_extension_point", lambda: present)
    monkeypatch.setenv(ENV_VAR, "")
    switch_on.switch_on(argparse.Namespace(nfp_probe=True))
    assert Path(json.loads(os.environ[ENV_VAR])["run_dir"]).is_dir()


class Observer:
    """Notes what it is told."""

    def __init__(self, stays_off: bool = False) -> None:
        self.told: list[object] = []
        self.active = False
        self._stays_off = stays_off
        self.unhook: Callable[[], None] = lambda: None

    def after_warm_up(self, runner: object, place: object, unhook: Callable[[], None]) -> None:
        self.told.append("warm")
        self.active = not self._stays_off
        self.unhook = unhook

    def before_step(self, scheduler_output: object) -> None:
        if self.active:
            self.told.append(scheduler_output)

    def before_dummy(self) -> None:
        if self.active:
            self.told.append("dummy")

    def trimmed(self, tokens: int) -> None:
        self.told.append(tokens)

    def after_step(self) -> None:
        if self.active:
            self.told.append("launched")

    def idle(self) -> float:
        return 1.0


class Runner:
    """A model runner without a model."""

    device = SimpleNamespace(type="cpu")

    def execute_model(self, scheduler_output: object) -> object:
        return f"ran {scheduler_output}"

    def sample_tokens(self) -> str:
        return "sampled"


class Worker:
    """A worker that warms up at once."""

    vllm_config = None

    def __init__(self, runner: object) -> None:
        self.model_runner = runner

    def compile_or_warm_up_model(self) -> str:
        return "warmed up"


@pytest.fixture
def patches() -> Iterator[PatchSet]:
    """What a worker replaces, vLLM's own classes among it, is put back."""
    replaced = PatchSet()
    yield replaced
    replaced.restore()


@pytest.fixture
def installed() -> Iterator[None]:
    """What the process itself replaces is put back."""
    yield
    install.PATCHES.restore()
    install.FLAGS.restore()


@pytest.fixture(autouse=True)
def known_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "view_of", V1Runner)


def test_the_extension_point_tells_the_observer_until_it_is_off(patches: PatchSet) -> None:
    observer = Observer()
    driven = extension.WorkerObserver(Worker(Runner()), ProbeConfig(), lambda *_: observer, patches)
    driven.before_step("a step before it is ready")
    for _ in range(2):
        driven.after_warm_up()
    assert observer.told == ["warm"]
    driven.before_step("step")
    driven.after_step()
    assert observer.told == ["warm", "step", "launched"]
    observer.active = False
    driven.before_step("step")
    driven.after_step()
    assert len(observer.told) == 3


def test_hooks_tell_the_observer_until_it_takes_them_off(patches: PatchSet) -> None:
    observer, worker = Observer(), Worker(Runner())
    hooks._hook_warm_up(patches, worker, ProbeConfig(), lambda *_: observer)
    assert worker.compile_or_warm_up_model() == "warmed up"
    runner: Any = worker.model_runner
    assert (runner.execute_model("step"), runner.sample_tokens()) == ("ran step", "sampled")
    assert observer.told == ["warm", "step", "launched"]
    observer.unhook()
    runner.execute_model("step")
    assert len(observer.told) == 3
    assert vars(runner) == {}
    patches.restore()
    assert vars(worker) == {"model_runner": runner}


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize(("engines", "experts"), [(2, True), (2, False), (1, True)])
def test_dummy_batches_are_told_where_engines_step_together(
    patches: PatchSet, extended: bool, engines: int, experts: bool
) -> None:
    observer, worker = Observer(), Worker(Runner())
    made: Any = worker
    made.execute_dummy_batch = lambda: "ran"
    made.vllm_config = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=engines),
        model_config=SimpleNamespace(is_moe=experts),
    )
    if extended:
        driven = extension.WorkerObserver(worker, ProbeConfig(), lambda *_: observer, patches)
        driven.after_warm_up()
    else:
        hooks._hook_warm_up(patches, worker, ProbeConfig(), lambda *_: observer)
        worker.compile_or_warm_up_model()
    together = engines > 1 and experts
    assert made.execute_dummy_batch() == "ran"
    assert observer.told == (["warm", "dummy"] if together else ["warm"])
    observer.unhook()
    made.execute_dummy_batch()
    assert observer.told == (["warm", "dummy"] if together else ["warm"])


def test_an_observer_that_stays_off_leaves_no_hook(patches: PatchSet) -> None:
    observer, worker = Observer(stays_off=True), Worker(Runner())
    hooks._hook_warm_up(patches, worker, ProbeConfig(), lambda *_: observer)
    worker.compile_or_warm_up_model()
    assert observer.told == ["warm"]
    assert vars(worker.model_runner) == {}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("present", [True, False])
def test_a_process_takes_the_extension_point_or_the_hooks_and_never_both(
    present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    monkeypatch.setenv(ENV_VAR, ProbeConfig().to_json())
    monkeypatch.setattr(sources, "has_extension_point", lambda: present)
    monkeypatch.setattr(extension, "register", lambda *_: taken.append("extension"))
    monkeypatch.setattr(hooks, "install", lambda *_: taken.append("hooks"))
    install.install(lambda *_: Observer())
    assert taken == ["extension" if present else "hooks"]
    owner = targets.INIT_DEVICE.owner()
    assert hasattr(owner.init_device, MARK) == present, "graphs are mended beside the extension"


@pytest.mark.usefixtures("installed")
def test_a_vllm_that_cannot_be_hooked_says_so_on_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise MissingTargetError("WorkerWrapperBase.init_device is gone")

    monkeypatch.setenv(ENV_VAR, ProbeConfig(run_dir=str(tmp_path)).to_json())
    monkeypatch.setattr(sources, "has_extension_point", lambda: False)
    monkeypatch.setattr(metrics_bridge, "install", lambda *_: None)
    monkeypatch.setattr(hooks, "install", missing)
    with caplog.at_level(logging.ERROR, "vllm.nfp"):
        install.install(lambda *_: Observer())
    left = read_snapshot(tmp_path / "engine-0.json")
    assert left.state is State.DISABLED
    assert "init_device is gone" in left.reason
    assert "cannot be hooked" in caplog.text


def test_a_runner_without_the_methods_turns_the_probe_off(
    tmp_path: Path, patches: PatchSet
) -> None:
    class Other:
        device = SimpleNamespace(type="cpu")

        def sample_tokens(self) -> None:
            pass

    observer, worker = Observer(), Worker(Other())
    config = ProbeConfig(run_dir=str(tmp_path))
    hooks._hook_warm_up(patches, worker, config, lambda *_: observer)
    assert worker.compile_or_warm_up_model() == "warmed up"
    assert observer.told == [], "it would go on without its steps"
    left = read_snapshot(tmp_path / "engine-0.json")
    assert left.state is State.DISABLED
    assert "Other of this vLLM" in left.reason and "has no execute_model" in left.reason
    assert vars(worker.model_runner) == {}, "a hook is left on it"
