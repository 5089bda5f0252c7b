"""States of the probe's own stand in for a layer's, and metadata names them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import state_kinds, versions
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.state_layers import (
    StateGroup,
    on_other_states,
    state_groups,
    without_states,
)
from vllm_nfp.probe.state_room import StateRoom
from vllm_nfp.probe.states import ProbeStates

CPU = torch.device("cpu")
LIVE_BLOCKS = 6


class Layer:
    """Like vLLM's: a convolution's inputs that widen with drafts, and a matrix."""

    def __init__(self) -> None:
        self.num_spec = 0
        self.bind_kv_cache(torch.zeros((LIVE_BLOCKS, 1, 1, 3 * 4 * 2 + 64), dtype=torch.uint8))

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return (3 + self.num_spec, 4), (4, 4)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return torch.bfloat16, torch.float32

    def bind_kv_cache(self, pages: torch.Tensor) -> None:
        rows, conv = pages.squeeze(dim=(1, 2)), (3 + self.num_spec) * 4 * 2
        self.kv_cache = (
            rows[:, :conv].view(torch.bfloat16).view(-1, 3 + self.num_spec, 4),
            rows[:, conv : conv + 64].view(torch.float32).view(-1, 4, 4),
        )


@dataclass
class Metadata:
    num_reqs: int
    block_table_tensor: torch.Tensor


class Builder:
    def __init__(self, drafts: int) -> None:
        self.drafts = drafts

    def build(self, _: int, metadata: Metadata, **more: Any) -> Any:
        return SimpleNamespace(table=metadata.block_table_tensor, drafts=self.drafts, **more)


def states(layers: list[Layer], monkeypatch: pytest.MonkeyPatch, limit: int = 1) -> ProbeStates:
    group: Any = StateGroup(
        "Gated DeltaNet", tuple(layers), tuple(f"l{i}" for i in range(len(layers))), LIVE_BLOCKS,
        None, None, None, CPU,
    )  # fmt: skip
    monkeypatch.setattr(StateGroup, "builder", lambda _, positions: Builder(positions - 1))
    first, second = group.state_bytes(1), group.state_bytes(2)
    assert (first, second) == (24 + 64, 32 + 64)
    room = StateRoom(limit, len(layers), first, second - first)
    return ProbeStates([group], room, [(1, 1), (2, 3)], CPU)


def test_layers_work_on_other_states_and_get_theirs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [Layer(), Layer()]
    live = [layer.kv_cache for layer in layers]
    made = states(layers, monkeypatch)
    with made.lent(2, 3):
        for number, layer in enumerate(layers):
            conv, matrix = layer.kv_cache
            assert conv.shape == (7, 5, 4) and matrix.shape == (7, 4, 4)
            assert layer.num_spec == 2
            conv.fill_(1 + number)
            matrix.fill_(1 + number)
        assert all((cache == 1).all() for cache in layers[0].kv_cache), "layers share states"
    for layer, before in zip(layers, live, strict=True):
        assert layer.kv_cache is before and layer.num_spec == 0
        assert not any(cache.any() for cache in layer.kv_cache)


def test_a_run_that_fails_gives_the_states_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    live, made = layer.kv_cache, states([layer], monkeypatch)
    with pytest.raises(ValueError, match="in the run"), made.lent(1, 1):
        raise ValueError("in the run")
    assert layer.kv_cache is live and layer.num_spec == 0
    layer.bind_kv_cache = lambda _: 1 // 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), made.lent(2, 3):
        pass
    assert layer.kv_cache is live and layer.num_spec == 0


def test_metadata_names_a_state_for_each_position_and_none_for_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = states([Layer()], monkeypatch)
    built = made.metadata(2, 3, Metadata, {"num_reqs": 4}, for_capture=False)["l0"]
    assert built.table.tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]
    assert built.drafts == 2
    assert built.num_accepted_tokens.tolist() == [1, 1, 1, 1]
    assert built.num_decode_draft_tokens_cpu.tolist() == [2, 2, -1, -1]
    alone = made.metadata(2, 1, Metadata, {"num_reqs": 2}, for_capture=False)["l0"]
    assert alone.table.tolist() == [[1], [2]]
    assert not hasattr(alone, "num_accepted_tokens"), "a step without drafts verifies nothing"


def test_what_the_states_take_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm.nfp")
    made = states([Layer(), Layer()], monkeypatch)
    assert made.held_bytes == 2 * 7 * 256
    assert "Gated DeltaNet; state_memory_mib 1" in caplog.text
    assert "2 of 2 shapes fit, and 2 of 2 layers" in caplog.text
    made.close()
    assert made.held_bytes == 0


def config(**cache: Any) -> Any:
    kept = {"mamba_cache_mode": "align", "use_replayssm": False, "use_kda_recoverssm": False}
    return SimpleNamespace(
        cache_config=SimpleNamespace(**{**kept, **cache}),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )


def group_of(layer: str, builder: str, config: Any) -> list[list[Any]]:
    config.compilation_config.static_forward_context["l0"] = type(layer, (), {})()
    live = type(builder, (), {"kv_cache_spec": None})()
    spec = type(state_kinds.STATE_SPEC, (), {})()
    return [[SimpleNamespace(metadata_builders=[live], layer_names=["l0"], kv_cache_spec=spec)]]


@pytest.mark.parametrize(
    ("layer", "builder", "cache", "release", "reason"),
    [
        ("NewMixer", "GDNAttentionMetadataBuilder", {}, "0.32.0", "kind NewMixer is unknown"),
        ("ShortConv", "NewBuilder", {}, "0.32.0", "kind NewBuilder is unknown"),
        ("ShortConv", "ShortConvAttentionMetadataBuilder", {}, "0.31.0", "0.32 or later"),
        (
            "MambaMixer2", "Mamba2AttentionMetadataBuilder", {"mamba_cache_mode": "all"}, "0.32.0",
            "--mamba-cache-mode all",
        ),
        (
            "MambaMixer2", "Mamba2AttentionMetadataBuilder", {"use_replayssm": True}, "0.33.0",
            "replayed",
        ),
    ],
)  # fmt: skip
def test_layers_that_are_not_known_are_named(
    layer: str, builder: str, cache: dict[str, Any], release: str, reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(versions, "installed_version", lambda: release)
    made = config(**cache)
    with pytest.raises(UnknownVllmError, match=reason):
        state_groups(group_of(layer, builder, made), 100, made, CPU)


def test_ling_3s_layer_shapes_its_state_by_a_draft_length_of_another_name() -> None:
    """vLLM's own layer, of which only what shapes its state is set."""
    from torch import nn
    from vllm.model_executor.models.bailing_moe_v3 import BailingMoeV3KimiDeltaAttention

    layer = BailingMoeV3KimiDeltaAttention.__new__(BailingMoeV3KimiDeltaAttention)
    nn.Module.__init__(layer)
    layer.tp_size, layer.num_heads, layer.head_dim, layer.conv_size = 1, 2, 8, 4
    layer.num_speculative_tokens, layer.kv_cache = 1, "the server's"
    shape = layer.get_state_shape()
    with on_other_states([layer], ["the probe's"], 3):
        assert layer.kv_cache == "the probe's" and layer.num_speculative_tokens == 3
        assert layer.get_state_shape() != shape
    assert layer.kv_cache == "the server's" and layer.get_state_shape() == shape


def test_a_layer_without_convolutions_has_one_shape_for_all_drafts() -> None:
    layer = type("BailingMoELinearAttention", (), {"kv_cache": "the server's"})()
    with on_other_states([layer], ["the probe's"], 3):
        assert layer.kv_cache == "the probe's"
        assert state_kinds.draft_length(layer) == 0
    assert vars(layer) == {"kv_cache": "the server's"}


def test_known_models_are_names_of_vllms_registry() -> None:
    from vllm.model_executor.models.registry import _VLLM_MODELS

    assert not state_kinds.KNOWN_MODELS - _VLLM_MODELS.keys()


@pytest.mark.parametrize("layer", state_kinds.KNOWN_LAYERS)
def test_known_layers_are_grouped_apart_from_those_with_a_cache(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.33.0")
    made = config()
    groups = group_of(layer, "GDNAttentionMetadataBuilder", made)
    attention = SimpleNamespace(kv_cache_spec=object())
    groups[0].append(attention)
    (found,) = state_groups(groups, 100, made, CPU)
    assert found.kind == state_kinds.KNOWN_LAYERS[layer]
    assert found.num_blocks == 100 and found.layer_names == ("l0",)
    assert without_states(groups) == [[attention]]
