"""The timed modules' run computes what it did, with kernels that serving has loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

pytest.importorskip("vllm")
pytest.importorskip("vllm.model_executor.layers.layernorm")  # which registers kernels of norms

from vllm import ir
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

from vllm_nfp.adapter.layer_hooks import fused_ops
from vllm_nfp.adapter.layers import DecoderLayer
from vllm_nfp.adapter.light_ops import NORMS, light_ops


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be taken for a machine with one, whose kernels are there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in NORMS:
        monkeypatch.setattr(getattr(ir.ops, name).impls["vllm_c"], "supported", True)


def test_embeddings_are_rows_of_the_weight_and_use_no_embedding_kernel(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = SimpleNamespace(weight=torch.randn(50, 8).to(torch.bfloat16))
    ids = torch.tensor([3, 49, 0, 3])
    method = UnquantizedEmbeddingMethod()
    expected = method.embedding(layer, ids)
    with light_ops(), monkeypatch.context() as inside:
        inside.setattr(functional, "embedding", lambda *_: pytest.fail("it was called"))
        assert torch.equal(method.embedding(layer, ids), expected)
    assert not hasattr(UnquantizedEmbeddingMethod.embedding, "__nfp_original__")


def test_a_single_token_is_looked_up_like_two(gpu: None) -> None:
    """For one PyTorch takes a kernel whose module is tens of MiB."""
    table, asked = torch.randn(50, 8), []

    class Weight:
        def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
            asked.append(ids.tolist())
            return table[ids]

    method, layer = UnquantizedEmbeddingMethod(), SimpleNamespace(weight=Weight())
    with light_ops():
        one = method.embedding(layer, torch.tensor([7], dtype=torch.int32))
        three = method.embedding(layer, torch.tensor([7, 3, 9], dtype=torch.int32))
    assert torch.equal(one, table[[7]]) and torch.equal(three, table[[7, 3, 9]])
    assert asked == [[7, 7], [7, 3, 9]]


def test_rotary_embeddings_of_the_layers_take_vllms_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)

    class Rotary(RotaryEmbeddingBase):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self._forward_method = self.forward_native

        def forward_native(self, *_: object) -> str:
            return "plain"

        def forward_cuda(self, *_: object) -> str:
            return "kernel"

    timed, other = Rotary(), Rotary()
    layer = DecoderLayer(0, torch.nn.Sequential(timed, timed), (), (), None)
    before = timed._forward_method
    with fused_ops([layer, layer]):
        assert (timed(), other()) == ("kernel", "plain")
    assert timed() == "plain"
    assert timed._forward_method == before


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


def test_activations_are_quantized_by_the_kernel_and_compile_nothing(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plain implementation would be compiled in the middle of a probe."""
    from vllm.model_executor.custom_op import CustomOp
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8

    op, other = (kind.__new__(kind) for kind in (QuantFP8, CustomOp))
    for made in (op, other):
        torch.nn.Module.__init__(made)
        made._forward_method = lambda x: ("as it was set", x)
    monkeypatch.setattr(QuantFP8, "forward_cuda", lambda _, x: ("kernel", x))
    with light_ops():
        assert op(3) == ("kernel", 3)
        assert other(3) == ("as it was set", 3)
    assert op(3) == ("as it was set", 3)
