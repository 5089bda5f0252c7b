"""The patch for choosing CUDA graphs by draft length, and our guard, on vLLM's own drafter."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch
from test_length_graphs import SIZES, manager
from test_matrix_tools import patched
from test_verification_patch import load
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar import speculator
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorCudaGraphManager,
)

from vllm_nfp.adapter import length_graphs
from vllm_nfp.adapter.patch import PatchSet

GRAPHS = Path("v1/worker/gpu/cudagraph_utils.py")
DRAFTER = Path("v1/worker/gpu/spec_decode/target_dependent_ar/speculator.py")
TEST = Path("tests/v1/spec_decode/test_dynamic_sd_cudagraphs.py")


def made(folder: Path, *patches: str) -> Path:
    """The files that patches of graphs change, of the installed vLLM, patched in this order."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for path in (GRAPHS, DRAFTER):
        (folder / "vllm" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(patched.installed_tree() / path, folder / "vllm" / path)
    for patch in patches:
        patched.apply(patched.PATCHES / patch, folder)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("vllm"), "vllm-0.32.0-length-graphs.patch")


@pytest.fixture
def modules() -> Iterator[None]:
    """What a test loads under another name is dropped."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.startswith("patched_"):
            del sys.modules[name]


@pytest.mark.usefixtures("modules")
def test_the_patchs_own_test_passes_with_it_and_fails_without(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test: Any = load(tree / TEST, "patched_test")
    check, tables = test.test_each_length_finds_the_graphs_of_a_server_of_that_length, 3
    given = [table for mark in check.pytestmark for table in mark.args[1]]
    assert len(given) == tables
    for table in given:
        with pytest.raises(AssertionError):
            check(table)
    ours: Any = load(tree / "vllm" / GRAPHS, "patched_graphs")
    monkeypatch.setattr(test, "CudaGraphManager", ours.CudaGraphManager)
    for table in given:
        check(table)


class Drafter:
    """What the first pass of vLLM's drafter needs, without a model."""

    num_speculative_steps, max_model_len, max_num_reqs = 1, 4096, 128
    dp_size, dp_rank = 1, 0
    method, pcp_manager = "eagle3", None
    last_token_indices = current_draft_step = input_buffers = None

    def __init__(self, table: list[list[int]]) -> None:
        self.prefill_cudagraph_manager = manager(table, SpeculatorCudaGraphManager, sizes=SIZES)
        self.prefill_cudagraph_manager.run_fullgraph = self._replayed
        self.hidden_states = torch.zeros(1024, 4)
        self.draft_tokens = torch.zeros(128, 1)
        self.passes: list[Any] = []

    def _replayed(self, graph: Any) -> None:
        self.passes.append((CUDAGraphMode.FULL, graph.num_reqs, graph.num_tokens))

    def _prefill(self, num_reqs: int, num_tokens: int, *_: Any, **how: Any) -> None:
        self.passes.append((how["cudagraph_runtime_mode"], num_reqs, num_tokens))

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    _copy_request_inputs = _prepare_eplb_forward = _nothing
    on_prefill_begin = on_prefill_end = _nothing


def first_pass(module: Any, propose: Callable[..., Any], table: list[list[int]], step: Any) -> Any:
    """How the drafter runs after a step of 15 requests with 2 drafts."""
    module.prepare_prefill_inputs = lambda *_: None
    drafter = Drafter(table)
    batch = SimpleNamespace(
        num_reqs=15, num_tokens=45, num_tokens_after_padding=step.num_tokens,
        num_reqs_after_padding=step.num_reqs or 15, num_scheduled_tokens=np.full(15, 3),
        seq_lens_cpu_upper_bound=torch.full((128,), 64), decode_graph_eligible=True,
        has_prefill=False,
        idx_mapping=None,
    )  # fmt: skip
    hidden = torch.zeros(step.num_tokens, 4)
    propose(
        drafter, batch, {}, {}, hidden, None, None, None, None, None, None, None,
        num_speculative_tokens=1,
    )  # fmt: skip
    return drafter.passes[0]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's module, whose helper on the GPU is put back."""
    monkeypatch.setattr(speculator, "prepare_prefill_inputs", speculator.prepare_prefill_inputs)
    return speculator


TABLE = [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 6, 6], [7, 128, 8]]


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("how", ["vLLM", "patched", "guarded"])
def test_a_drafters_first_pass_takes_over_metadata_of_its_own_requests(
    how: str, tree: Path, own: Any
) -> None:
    module: Any = load(tree / "vllm" / DRAFTER, "patched_drafter") if how == "patched" else own
    piecewise = manager(TABLE).dispatch(15, 45, 3, 0)
    full = manager([[1, 128, 2]]).dispatch(15, 45, 3, 0)
    assert piecewise.cg_mode is CUDAGraphMode.PIECEWISE and full.num_reqs == 16
    patches = PatchSet()
    if how == "guarded":
        length_graphs.put_in_place(patches)
    propose = module.TargetDependentARSpeculator.propose
    try:
        found = first_pass(module, propose, TABLE, piecewise)
        stale = (CUDAGraphMode.FULL, 16, 48)
        assert found == (stale if how == "vLLM" else (CUDAGraphMode.PIECEWISE, 15, 48))
        assert first_pass(module, propose, TABLE, full) == stale, "padded as the graph is"
    finally:
        patches.restore()
