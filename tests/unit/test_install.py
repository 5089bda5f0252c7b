"""Who decides whether a process is probed: its command line, or else the settings it inherits."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm_nfp.adapter import extension, hooks, install, metrics_bridge, sources, switch_on
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ENV_VAR, ProbeConfig
from vllm_nfp.results import run_folder

STALE = ProbeConfig(seed=11, run_dir="/no/such/folder").to_json()


class EngineArgs:
    """vLLM's parser in miniature: it keeps the flags that it knows."""

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument("--model")
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        return cls()


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """Seeds of the settings that workers of this process would be hooked with."""
    seeds: list[int] = []

    def hook(patches: PatchSet, config: ProbeConfig, open_observer: Any) -> None:
        assert open_observer is opens_nothing
        seeds.append(config.seed)
        patches.on_restore(lambda: None)

    parser = SimpleNamespace(EngineArgs=EngineArgs)
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", parser)
    monkeypatch.setattr(sources, "has_extension_point", lambda: False)
    monkeypatch.setattr(metrics_bridge, "install", lambda *_: None)
    monkeypatch.setattr(hooks, "install", hook)
    monkeypatch.setattr(run_folder.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run_folder.atexit, "register", lambda call: None)
    monkeypatch.setenv(ENV_VAR, "")
    yield seeds
    install.FLAGS.restore()
    install.PATCHES.restore()


def opens_nothing(*_: object) -> Any:
    raise AssertionError("no worker has warmed up")


def parse(*argv: str) -> argparse.Namespace:
    return EngineArgs.add_cli_args(argparse.ArgumentParser()).parse_args(argv)


@pytest.mark.parametrize("inherited", ["", STALE, "{}", "no settings at all"])
def test_the_flags_decide_whatever_the_environment_had_before(
    hooked: list[int], monkeypatch: pytest.MonkeyPatch, inherited: str
) -> None:
    monkeypatch.setenv(ENV_VAR, inherited)
    install.install(opens_nothing)
    args = parse("--nfp-probe", "--nfp-config", '{"seed": 5}')
    EngineArgs.from_cli_args(args)
    assert hooked[-1] == 5
    settings = json.loads(os.environ[ENV_VAR])
    assert settings["seed"] == 5
    assert Path(settings["run_dir"]).is_dir()
    assert not install.PATCHES.is_empty


def test_without_the_flag_settings_that_were_left_behind_have_no_effect(
    hooked: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENV_VAR, STALE)
    install.install(opens_nothing)
    args = parse("--model", "m")
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        EngineArgs.from_cli_args(args)
    assert ENV_VAR not in os.environ
    assert install.PATCHES.is_empty and install.FLAGS.is_empty
    assert not hasattr(EngineArgs.from_cli_args, "__nfp_original__")
    assert f"{ENV_VAR} in the environment is ignored" in caplog.text


def test_a_process_that_parses_nothing_is_decided_by_its_environment(
    hooked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine, a worker, or a Python program that makes an engine of its own."""
    monkeypatch.setenv(ENV_VAR, STALE)
    install.install(opens_nothing)
    assert hooked == [11]
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils")
    install.FLAGS.restore()
    install.PATCHES.restore()
    install.install(opens_nothing)
    assert hooked == [11, 11]
    assert install.FLAGS.is_empty, "the parser was imported where nothing is parsed"


def test_an_api_server_that_is_handed_the_flags_keeps_its_launchers_settings(
    hooked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install.install(opens_nothing)
    args = parse("--nfp-probe")
    EngineArgs.from_cli_args(args)
    handed, settings = pickle.loads(pickle.dumps(args)), os.environ[ENV_VAR]
    install.FLAGS.restore()
    install.PATCHES.restore()
    install.install(opens_nothing)  # a process that was spawned
    EngineArgs.from_cli_args(handed)
    assert os.environ[ENV_VAR] == settings, "it made a hand-over folder of its own"
    assert len(hooked) == 2


def test_the_extension_points_observer_has_the_settings_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factories: list[Any] = []
    observer = SimpleNamespace(register_step_observer=factories.append)
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.step_observer", observer)
    monkeypatch.setattr(extension, "WorkerObserver", lambda worker, config, *_: config.seed)
    patches = PatchSet()
    extension.register(patches, ProbeConfig(seed=1), opens_nothing)
    patches.restore()
    extension.register(patches, ProbeConfig(seed=2), opens_nothing)
    assert [factory("worker") for factory in factories] == [None, 2]
    patches.restore()
    assert [factory("worker") for factory in factories] == [None, None]


def test_a_refused_flag_ends_the_start_before_anything_is_hooked(hooked: list[int]) -> None:
    install.install(opens_nothing)
    args = parse("--nfp-probe")
    args.nfp_probe, args.nfp_max_positions = False, 8
    with pytest.raises(SystemExit) as caught:
        switch_on.switch_on(args)
    assert caught.value.code == 2
    assert hooked == []
