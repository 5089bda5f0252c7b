"""What runs give a model that takes embeddings, or positions of several dimensions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.adapter.inputs import TokenEmbedding, written_rows
from vllm_nfp.adapter.runner import StepBuffers
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.inputs import StepInputs

CPU = torch.device("cpu")
TOKENS, HIDDEN, LAYERS = 32, 4, 2


class Model:
    """Embeds ids, and keeps embeddings for each layer in a buffer of its own, as Gemma 4 does."""

    requires_raw_input_tokens = False

    def __init__(self) -> None:
        self.table = torch.arange(100.0).repeat(HIDDEN, 1).T.contiguous()
        self.per_layer = torch.full((TOKENS, LAYERS, HIDDEN), -1.0)
        self.calls: list[dict[str, Any]] = []

    def embed_input_ids(self, ids: torch.Tensor, **told: Any) -> torch.Tensor:
        self.calls.append(told)
        found = self.table[ids.long()]
        doubled = found.mul(2)
        doubled += 1  # into what the call has made
        self.per_layer[: len(ids)].copy_(doubled[:, None].expand(-1, LAYERS, -1))
        return found


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0")


def buffers_of(rotary: bool = False, embeds: bool = True) -> StepBuffers:
    return StepBuffers(
        input_ids=torch.full((TOKENS,), 9, dtype=torch.int32),
        positions=torch.full((TOKENS,), 8),
        is_padding=torch.ones(TOKENS, dtype=torch.bool),
        slots=(torch.full((TOKENS,), 7),),
        embeds=torch.full((TOKENS, HIDDEN), 6.0) if embeds else None,
        rotary=torch.full((3, TOKENS + 1), 5) if rotary else None,
    )


def inputs_of(model: Any, buffers: StepBuffers, multimodal: bool = True) -> StepInputs:
    told = SimpleNamespace(
        supports_multimodal_inputs=multimodal, enable_prompt_embeds=not multimodal
    )
    compilation = SimpleNamespace(cudagraph_capture_sizes=[4, 16])
    config = SimpleNamespace(model_config=told, compilation_config=compilation)
    view: Any = SimpleNamespace(model=model, vllm_config=config, device=CPU)
    return StepInputs(view, buffers)


def batch_of(execution: Execution, padded: int = 8) -> ProbeBatch:
    """Two sequences of three positions."""
    batch = ProbeBatch(2, 3, Placement(execution, padded, 2), [4], CPU)
    batch.input_ids[:6] = torch.arange(20, 26, dtype=torch.int32)
    batch.positions[:6] = torch.tensor([50, 51, 52] * 2)
    return batch


def test_a_graph_of_the_probes_own_reads_embeddings_that_were_made_before_it() -> None:
    model, buffers = Model(), buffers_of()
    inputs, batch = inputs_of(model, buffers), batch_of(Execution.FULL)
    captured = inputs.own(batch)
    assert captured["input_ids"] is None
    assert captured["inputs_embeds"].shape == (8, HIDDEN)
    with inputs.in_place(batch):
        inputs.embed(batch)
        assert captured["inputs_embeds"][:6, 0].tolist() == [20, 21, 22, 23, 24, 25]
        batch.input_ids[:6] = 3  # the same addresses, for the next run
        inputs.embed(batch)
    assert captured["inputs_embeds"][:6, 0].tolist() == [3] * 6
    assert (buffers.embeds == 6).all(), "the runner's are left alone"


def test_a_piecewise_graph_reads_the_runners_embeddings_and_the_next_step_finds_its_own() -> None:
    model, buffers = Model(), buffers_of(rotary=True)
    inputs, batch = inputs_of(model, buffers), batch_of(Execution.PIECEWISE)
    before = [tensor.clone() for tensor in buffers.tensors]
    inputs.fill(batch)
    live = inputs.live(batch)
    assert buffers.embeds is not None
    assert live["inputs_embeds"].data_ptr() == buffers.embeds.data_ptr()
    with inputs.in_place(batch):
        inputs.embed(batch)
        assert live["inputs_embeds"][:6, 0].tolist() == [20, 21, 22, 23, 24, 25]
        assert [row[:6].tolist() for row in live["positions"]] == [[50, 51, 52] * 2] * 3
        assert set(buffers.slots[0][:8].tolist()) == {-1}
        assert buffers.is_padding is not None
        assert buffers.is_padding[:8].tolist() == [False] * 6 + [True] * 2
    assert all(map(torch.equal, buffers.tensors, before))


@pytest.mark.parametrize("execution", Execution)
def test_what_the_model_keeps_for_its_next_step_is_put_back(execution: Execution) -> None:
    model = Model()
    inputs, batch = inputs_of(model, buffers_of()), batch_of(execution)
    model.per_layer.copy_(torch.arange(TOKENS)[:, None, None].expand_as(model.per_layer))
    before = model.per_layer.clone()
    with inputs.in_place(batch):
        inputs.embed(batch)
        inputs.fresh(batch)
        assert model.per_layer[0, 0, 0] == 41, "it reads the probe's meanwhile"
    assert torch.equal(model.per_layer, before)
    with inputs.kept(batch):
        inputs.fresh(batch)
    assert torch.equal(model.per_layer, before)


def test_a_model_that_takes_images_is_told_that_there_are_none() -> None:
    model = Model()
    inputs = inputs_of(model, buffers_of())
    found = inputs.fresh(batch_of(Execution.NONE, padded=6))
    told = model.calls[-1]
    assert told["multimodal_embeddings"] == []
    assert told["is_multimodal"].tolist() == [False] * 6
    assert found["inputs_embeds"][:, 0].tolist() == [20, 21, 22, 23, 24, 25]


def test_prompts_as_embeddings_are_no_images_and_some_models_take_ids_as_well() -> None:
    model = Model()
    inputs_of(model, buffers_of(), multimodal=False).fresh(batch_of(Execution.NONE))
    assert model.calls[-1] == {}
    model.requires_raw_input_tokens = True
    batch = batch_of(Execution.FULL)
    assert inputs_of(model, buffers_of()).own(batch)["input_ids"][:6].tolist() == list(
        range(20, 26)
    )


def test_token_ids_and_plain_positions_are_given_where_the_runner_gives_them() -> None:
    inputs, batch = inputs_of(Model(), buffers_of(embeds=False)), batch_of(Execution.FULL)
    found = inputs.own(batch)
    assert found["inputs_embeds"] is None
    assert found["input_ids"].data_ptr() == batch.input_ids.data_ptr()
    assert found["positions"].data_ptr() == batch.positions.data_ptr()


def test_rotary_positions_lie_as_far_apart_as_the_runners() -> None:
    buffers = buffers_of(rotary=True, embeds=False)
    inputs, batch = inputs_of(Model(), buffers), batch_of(Execution.FULL)
    inputs.fill(batch)
    assert buffers.rotary is not None
    positions = inputs.own(batch)["positions"]
    assert positions.stride() == buffers.rotary.stride()
    assert positions[:, :6].tolist() == [[50, 51, 52] * 2] * 3
    assert (buffers.rotary == 5).all()


def test_a_write_that_cannot_be_put_back_keeps_the_probe_off() -> None:
    class Counting(Model):
        seen = torch.zeros(1)

        def embed_input_ids(self, ids: torch.Tensor, **told: Any) -> torch.Tensor:
            self.seen += len(ids)
            return super().embed_input_ids(ids, **told)

    with pytest.raises(UnknownVllmError, match=r"changes a tensor of the model's own, \[1\]"):
        TokenEmbedding(Counting(), True, TOKENS, CPU)


def test_what_a_call_makes_itself_is_not_taken_for_the_models() -> None:
    with torch.inference_mode():
        kept = torch.zeros(8, 3)

        def call() -> torch.Tensor:
            made = torch.zeros(3, 3)
            made[1] = 5
            made.t().add_(1)
            kept[:3] = made
            return made

        (rows,) = written_rows(call, 3)
        assert rows.first(5).data_ptr() == kept.data_ptr()
        assert rows.first(5).shape == (5, 3)
