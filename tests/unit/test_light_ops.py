"""The timed modules' run computes what it did, with kernels that serving has loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")
pytest.importorskip("vllm.model_executor.layers.layernorm")  # which registers kernels of norms

from vllm import ir
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from vllm_nfp.engine import light_ops as module
from vllm_nfp.engine.light_ops import NORMS, light_ops


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be taken for a machine with one, whose kernels are there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in NORMS:
        monkeypatch.setattr(getattr(ir.ops, name).impls["vllm_c"], "supported", True)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_embeddings_on_a_gpu_take_the_small_kernel_and_others_the_usual_one(
    gpu: None, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    weight = torch.randn(50, 8).to(torch.bfloat16)
    ids = torch.tensor([3, 49, 0, 3])
    taken = SimpleNamespace(is_cuda=on_gpu, is_contiguous=lambda: True, dim=lambda: 2)
    layer = SimpleNamespace(weight=taken if on_gpu else weight)
    monkeypatch.setattr(module, "rows_of", lambda *given: given)
    method = UnquantizedEmbeddingMethod()
    with light_ops():
        found = method.embedding(layer, ids)
    if on_gpu:
        assert found == (taken, ids)
    else:
        assert torch.equal(found, weight[ids])
    assert not hasattr(UnquantizedEmbeddingMethod.embedding, "__nfp_original__")


def test_norms_prefer_vllms_kernels_for_the_time_being(gpu: None) -> None:
    before = [getattr(ir.ops, name).get_priority() for name in NORMS]
    with light_ops():
        for name in NORMS:
            assert getattr(ir.ops, name).get_priority() == ["vllm_c", "native"]
    assert [getattr(ir.ops, name).get_priority() for name in NORMS] == before


def test_without_a_gpu_nothing_changes() -> None:
    before = UnquantizedEmbeddingMethod.embedding
    with light_ops():
        assert UnquantizedEmbeddingMethod.embedding is before


def test_what_was_changed_is_put_back_after_a_fault(gpu: None) -> None:
    before = UnquantizedEmbeddingMethod.embedding
    with pytest.raises(RuntimeError), light_ops():
        raise RuntimeError
    assert UnquantizedEmbeddingMethod.embedding is before


ROWS = """
import torch
from vllm_nfp.engine import light_ops
weight = torch.randn(70, {width}).to(torch.bfloat16)
for ids in (torch.tensor([3, 69, 0, 3]), torch.tensor([[1, 2], [5, 4]], dtype=torch.int32)):
    found = light_ops.rows_of(weight, ids)
    assert torch.equal(found, torch.nn.functional.embedding(ids, weight)), ids
assert light_ops.rows_of(weight, torch.zeros(0, dtype=torch.int64)).shape == (0, {width})
print("equal")
"""


@pytest.mark.parametrize("width", [64, 1024, 2500])
def test_the_kernel_copies_the_rows_that_an_embedding_gives(width: int) -> None:
    """Interpreted by Triton itself, which must be told so before it is imported."""
    pytest.importorskip("triton")
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    code = ROWS.format(width=width)
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr
