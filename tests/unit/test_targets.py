"""The one list of what is replaced: every patch comes from it, and every patch can be undone."""

from __future__ import annotations

import ast
import logging
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm_nfp
from vllm_nfp.adapter import idle, install, sources, targets, versions
from vllm_nfp.adapter.patch import MARK, PatchSet
from vllm_nfp.adapter.targets import TARGETS, Target
from vllm_nfp.config import ENV_VAR, ProbeConfig

LISTS = ("COLLECTIVES", "ADD_LORA")
"""Declared together, and replaced one after the other."""
PACKAGE = Path(vllm_nfp.__file__).parent
FROM_THE_VIEW = {"view.begins_step", "view.ends_step"}
"""Which runner it is decides; the declarations of both are looked at below."""


def here() -> list[Target]:
    return [target for target in TARGETS if target.is_in(versions.installed_release())]


def wrapper(original: Any) -> Any:
    return lambda *args: original(*args)  # noqa: PLW0108 - another function is what it is about


@pytest.mark.parametrize("target", here(), ids=lambda target: target.name)
def test_a_target_is_replaced_and_put_back(target: Target) -> None:
    owner: Any = target.owner()
    on: Any = None
    if target.on_object:
        kind = type(owner.__name__, (owner,), {})
        kind.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
        on = owner = owner.__new__(kind)  # nothing of vLLM's is to run
    before = dict(vars(owner))
    patches = PatchSet()
    assert patches.wrap(target, wrapper, on=on)
    replaced = getattr(owner, target.attribute)
    assert hasattr(replaced, MARK)
    assert vars(owner) != before
    patches.restore()
    assert dict(vars(owner)) == before
    assert not hasattr(getattr(owner, target.attribute), MARK)


@pytest.fixture
def hooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    config = ProbeConfig(run_dir=str(tmp_path), draft_control=True)
    monkeypatch.setenv(ENV_VAR, config.to_json())
    monkeypatch.setattr(sources, "has_extension_point", lambda: False)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        install.install(lambda *_: pytest.fail("no worker has warmed up"))
    assert not caplog.text
    yield
    install.PATCHES.restore()
    install.FLAGS.restore()


def owners() -> dict[str, dict[str, Any]]:
    return {target.name: dict(vars(target.owner())) for target in here()}


def test_what_a_process_installs_can_be_undone(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.metrics import prometheus

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    before = owners()
    collectors = set(prometheus.get_prometheus_registry()._collector_to_names)
    request.getfixturevalue("hooked")
    assert owners() != before
    parser = FlexibleArgumentParser()
    EngineArgs.add_cli_args(parser)
    assert "parse_known_args" in vars(parser)
    registry = prometheus.get_prometheus_registry()
    assert len(registry._collector_to_names) == len(collectors) + 1
    install.PATCHES.restore()
    install.FLAGS.restore()
    assert owners() == before
    assert "parse_known_args" not in vars(parser)
    assert set(registry._collector_to_names) == collectors


def test_a_waiting_engines_queue_is_let_go() -> None:
    from vllm.v1.engine.core import EngineCoreProc

    class Idler:
        active = True

        def idle(self) -> float:
            return 0.001

    engine: Any = EngineCoreProc.__new__(EngineCoreProc)
    engine.input_queue = queue.Queue()
    patches = PatchSet()
    idle.install(patches, Idler())
    with pytest.raises(AttributeError):  # it is no engine that could run
        engine.run_busy_loop()
    assert "get" in vars(engine.input_queue)
    patches.restore()
    assert "get" not in vars(engine.input_queue)
    assert not hasattr(EngineCoreProc.run_busy_loop, MARK)


def calls_of_wrap() -> Iterator[tuple[Path, str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "wrap"
            ):
                yield path, ast.unparse(node.args[0]), node


def test_every_patch_names_a_declared_target() -> None:
    named: set[str] = set()
    for path, argument, _ in calls_of_wrap():
        if argument in FROM_THE_VIEW:
            continue
        if argument == "target":
            text = path.read_text(encoding="utf-8")
            assert any(f"for target in targets.{name}" in text for name in LISTS), path
            continue
        module, _, name = argument.partition(".")
        assert module == "targets" and getattr(targets, name) in TARGETS, (path, argument)
        named.add(name)
    declared = {
        name
        for name, value in vars(targets).items()
        if isinstance(value, Target) and value.feature is not targets.Feature.STEPS
    }
    assert named == declared


def test_each_runner_names_the_steps_that_are_declared_for_it() -> None:
    from vllm_nfp.adapter.runner_v1 import V1Runner
    from vllm_nfp.adapter.runner_v2 import V2Runner

    steps = [target for target in TARGETS if target.feature is targets.Feature.STEPS]
    views: list[Any] = [V1Runner(None), V2Runner(None)]
    assert [t for view in views for t in (view.begins_step, view.ends_step)] == steps


def test_each_target_is_declared_once() -> None:
    names = [target.name for target in TARGETS]
    assert len(names) == len(set(names))
    declared = [value for value in vars(targets).values() if isinstance(value, Target)]
    assert set(TARGETS) == {*declared, *(t for name in LISTS for t in getattr(targets, name))}
