"""The patch that gives an adaptive server's drafter graphs like the model's, on vLLM's drafter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from test_length_graphs_patch import DRAFTER, GRAPHS, made
from test_length_graphs_patch import modules as modules  # noqa: PLC0414 (a fixture)
from test_verification_patch import load
from vllm.config.compilation import CUDAGraphMode

from vllm_nfp.adapter import length_graphs
from vllm_nfp.adapter.patch import PatchSet

pytestmark = pytest.mark.usefixtures("modules")

OWN, LENGTHS = (f"vllm-0.32.0-{kind}-graphs.patch" for kind in ("drafter", "length"))
TEST = Path("tests/v1/spec_decode/test_adaptive_verification_drafter_graphs.py")
MODES = (CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL_DECODE_ONLY)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("vllm"), OWN)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("vllm"), LENGTHS, OWN)


def own_test(folder: Path) -> Any:
    return load(folder / TEST, "patched_test")


def given(check: Any) -> list[Any]:
    """The arguments that pytest would call a test with."""
    found = [values for mark in check.pytestmark for values in mark.args[1]]
    assert found
    return found


def with_the_patch(test: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test, "speculator", load(folder / "vllm" / DRAFTER, "patched_drafter"))


@pytest.mark.parametrize("patches", ["tree", "both"])
def test_a_first_pass_replays_the_models_graph_with_the_patch_alone(
    patches: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(patches)
    test = own_test(folder)
    check = test.test_draft_prefill_replays_the_graph_of_the_targets_requests
    assert given(check) == [*MODES]
    for mode in MODES:
        with pytest.raises(AssertionError):
            check(monkeypatch, mode)
    with_the_patch(test, folder, monkeypatch)
    for mode in MODES:
        check(monkeypatch, mode)


@pytest.mark.parametrize("patches", ["tree", "both"])
def test_prompts_and_long_requests_keep_the_drafter_out_of_such_a_graph(
    patches: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(patches)
    test = own_test(folder)
    check = test.test_draft_prefill_replays_no_varlen_graph_without_the_target
    with pytest.raises(AssertionError):
        check(monkeypatch, *given(check)[0])
    with_the_patch(test, folder, monkeypatch)
    for arguments in given(check):
        check(monkeypatch, *arguments)


def test_drafters_that_cannot_have_such_graphs_keep_theirs(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = own_test(tree)
    with_the_patch(test, tree, monkeypatch)
    for changes in given(test.test_other_drafters_keep_uniform_graphs):
        test.test_other_drafters_keep_uniform_graphs(monkeypatch, changes)
    test.without_device(monkeypatch)
    assert test.make_drafter(MODES[0]).prefill_cudagraph_manager.varlen_decode


def test_the_hooks_do_what_the_patch_does(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patch's own tests, on vLLM as it is installed."""
    test, hooks = own_test(tree), PatchSet()
    length_graphs.put_in_place(hooks)
    try:
        for mode in MODES:
            test.test_draft_prefill_replays_the_graph_of_the_targets_requests(monkeypatch, mode)
        check = test.test_draft_prefill_replays_no_varlen_graph_without_the_target
        for arguments in given(check):
            check(monkeypatch, *arguments)
        for changes in given(test.test_other_drafters_keep_uniform_graphs):
            test.test_other_drafters_keep_uniform_graphs(monkeypatch, changes)
    finally:
        hooks.restore()


def test_it_applies_before_and_after_the_patch_of_draft_lengths(both: Path, tmp_path: Path) -> None:
    other = made(tmp_path, OWN, LENGTHS)
    for path in (GRAPHS, DRAFTER):
        assert (other / "vllm" / path).read_text() == (both / "vllm" / path).read_text()
