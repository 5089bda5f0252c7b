"""The patch that lets vLLM price (requests, tokens): it applies, and does what it says."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("vllm")

from test_matrix_tools import patched

FOLDER = "vllm.v1.worker.gpu"
PATCHED = ("input_batch", "model_runner", "spec_decode.adaptive_verification")
TEST = "tests/v1/spec_decode/test_adaptive_verification_costs.py"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the patch changes, of the installed vLLM, patched."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("vllm")
    package = patched.installed_tree()
    for name in PATCHED:
        path = Path(*f"{FOLDER}.{name}".split(".")[1:]).with_suffix(".py")
        (folder / "vllm" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(package / path, folder / "vllm" / path)
    patched.apply(patched.PATCHES / "vllm-0.32.0-verification-costs.patch", folder)
    return folder


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def patched_module(tree: Path, name: str) -> ModuleType:
    return load(tree.joinpath("vllm", *f"{FOLDER}.{name}".split(".")[1:]).with_suffix(".py"), name)


def test_steps_are_priced_by_requests_and_tokens(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm.v1.worker.gpu.spec_decode as package

    own = patched_module(tree, PATCHED[2])
    monkeypatch.setitem(sys.modules, f"{FOLDER}.{PATCHED[2]}", own)
    monkeypatch.setattr(package, "adaptive_verification", own, raising=False)
    test: Any = load(tree / TEST, "test_of_the_patch")
    test.test_a_position_is_not_priced_like_a_request(monkeypatch)


def test_a_dummy_batch_keeps_its_requests_in_a_graph_with_more_rows(tree: Path) -> None:
    import torch
    from vllm.v1.worker.gpu.input_batch import InputBuffers

    batches: Any = patched_module(tree, PATCHED[0])
    buffers = InputBuffers(32, 128, torch.device("cpu"))
    buffers.seq_lens.fill_(7)
    batch = batches.InputBatch.make_dummy(
        4, 32, buffers, max_query_len=8, num_reqs_after_padding=32
    )
    assert (batch.num_reqs, batch.num_reqs_after_padding) == (4, 32)
    assert batch.seq_lens.tolist() == [8] * 4 + [0] * 28
    assert batch.query_start_loc.tolist() == [0, 8, 16, 24, *[32] * 29]
    assert batch.query_start_loc_np.tolist() == batch.query_start_loc.tolist()
    assert batch.logits_indices.tolist() == [7, 15, 23, 31]
    assert len(batch.seq_lens_cpu_upper_bound) == 32


def test_the_patched_runner_is_valid_python(tree: Path) -> None:
    runner = tree / "vllm" / "v1" / "worker" / "gpu" / "model_runner.py"
    compile(runner.read_text(), str(runner), "exec")
