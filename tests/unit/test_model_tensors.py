"""The uncompiled run of the timed modules leaves the tensors that compiled code holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")
pytest.importorskip("vllm.model_executor.layers.layernorm")

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope

from vllm_nfp.adapter.model_tensors import ModelTensors

POSITIONS = torch.tensor([3, 60])


class Layer(nn.Module):
    """Exchanges tensors in the ways in which a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("later", None)
        self.register_buffer("table", torch.arange(4))
        self.plain = torch.zeros(2)
        self.made = 0

    def forward(self) -> None:
        if self.table.dtype is not torch.int16:
            self.made += 1
            self.table = self.table.to(torch.int16)
            self.weight = nn.Parameter(2 * self.weight, requires_grad=False)
            self.later = torch.ones(3)
            self.plain = torch.ones(2)


def held(layer: Layer) -> list[object]:
    return [layer.weight, layer.table, layer.later, layer.plain]


def test_a_table_of_another_type_is_not_exchanged() -> None:
    """The rotary embedding of gpt-oss: its table has 32 bits, and its queries have 16."""
    with set_current_vllm_config(VllmConfig()):
        rotary = get_rope(64, 131072, rope_parameters={"rope_theta": 1e4}, dtype=torch.float32)
    model = nn.Sequential(rotary)
    table, address = rotary.cos_sin_cache, rotary.cos_sin_cache.data_ptr()
    query = torch.randn(2, 64, dtype=torch.bfloat16)
    expected = rotary.forward_static(
        POSITIONS, query.clone(), None, 64, 64, table.to(torch.bfloat16), True
    )[0]
    tensors = ModelTensors(model)
    for _ in range(2):
        with tensors.kept():
            found, _ = rotary.forward_native(POSITIONS, query.clone())
            assert rotary.cos_sin_cache.dtype is torch.bfloat16, "vLLM exchanges it"
        assert torch.equal(found, expected)
        assert rotary.cos_sin_cache is table
        assert (table.dtype, table.data_ptr()) == (torch.float32, address)


def test_whatever_a_run_puts_in_the_place_of_a_tensor_is_taken_back() -> None:
    layer = Layer()
    before, tensors = held(layer), ModelTensors(nn.Sequential(layer))
    with tensors.kept():
        layer()
    assert all(one is other for one, other in zip(held(layer), before, strict=True))
    with pytest.raises(RuntimeError, match="out of memory"), tensors.kept():
        layer()
        raise RuntimeError("out of memory")
    assert all(one is other for one, other in zip(held(layer), before, strict=True))


def test_it_is_lent_to_the_next_run() -> None:
    layer = Layer()
    tensors = ModelTensors(layer)
    with tensors.kept():
        layer()
        after = held(layer)
    with tensors.kept():
        assert all(one is other for one, other in zip(held(layer), after, strict=True))
        layer()
    assert layer.made == 1


def test_weights_that_were_loaded_anew_stay() -> None:
    """A server that is trained takes new weights: nothing that was made of the old ones is lent."""
    layer = Layer()
    tensors = ModelTensors(layer)
    with tensors.kept():
        layer()
    layer.table = fresh = torch.arange(4) + 5
    with tensors.kept():
        layer()
        assert layer.made == 2
        assert layer.table.tolist() == [5, 6, 7, 8]
    assert layer.table is fresh
    with tensors.kept():
        assert layer.table.tolist() == [5, 6, 7, 8]
        layer()
    assert layer.made == 2


def test_what_is_lent_stays_though_a_module_makes_it_anew_each_time() -> None:
    """CUDA graphs of earlier runs read it."""

    class Anew(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2))

        def forward(self) -> torch.Tensor:
            self.table = self.table + 1
            return self.table

    module = Anew()
    tensors, seen = ModelTensors(module), []
    for _ in range(3):
        with tensors.kept():
            seen.append(module.table)
            module()
    assert seen[1] is seen[2] is not seen[0]
    assert seen[2].tolist() == [1.0, 1.0]
    assert module.table.tolist() == [0.0, 0.0]
