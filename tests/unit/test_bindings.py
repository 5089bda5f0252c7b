"""What the probe relies on in vLLM is looked up by name, and nothing is dropped in silence."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_engine import config as accepted

from vllm_nfp.adapter import bindings, inputs, support, versions
from vllm_nfp.adapter.attention_groups import AttentionGroup, CellDoesNotFitError, own_groups
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.decoding import BUILDERS, Decoding
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.kv_blocks import BlockReader
from vllm_nfp.probe.token_pool import TokenPool

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def builders_here_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Builder", "Scratch", "Latent", "Wide"):
        monkeypatch.setitem(BUILDERS, name, Decoding())


class Builder:
    """Keeps what it is given; called as vLLM's builders are."""

    requires_block_table_width = False

    def __init__(self, *_: Any) -> None:
        self.kv_cache_spec = SimpleNamespace(block_size=16)
        self.given: Any = None

    def build(self, common_prefix_len: int, common_attn_metadata: Any) -> Any:
        self.given = common_attn_metadata
        return common_attn_metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        return common_attn_metadata


class OtherBuilder(Builder):
    def build(self, common_attn_metadata: Any) -> Any:  # type: ignore[override]
        return common_attn_metadata


def metadata_class(*names: str) -> type:
    return dataclasses.make_dataclass("Metadata", [(name, Any) for name in names])


def metadata_of(kind: type, host_lengths: bool = False) -> Any:
    batch = ProbeBatch(2, 3, Placement(Execution.FULL, 9, 3), widths=[8], device=CPU)
    group = AttentionGroup(Builder(), ("a",), block_tokens=16, num_blocks=100)
    batch.fill(50, [BlockReader(group, CPU, 0)], TokenPool(1000, 64, CPU, 0))
    extra = {"host_lengths": True} if host_lengths else {}
    return batch.attention_metadata([group], kind, 53, False, padded=True, **extra)["a"]


def test_a_metadata_field_that_vllm_lacks_is_an_error_and_not_left_out() -> None:
    found = metadata_of(metadata_class(*versions.METADATA_FIELDS))
    assert found.causal is True and found.num_actual_tokens == 9
    for missing in ("is_prefilling", "seq_lens_cpu_upper_bound", "positions", "causal"):
        rest = [name for name in versions.METADATA_FIELDS if name != missing]
        with pytest.raises(TypeError, match=missing):
            metadata_of(metadata_class(*rest))


def test_older_metadata_is_given_its_lengths_on_the_host() -> None:
    """vLLM 0.29 would else copy them from the GPU and wait."""
    names = (*versions.METADATA_FIELDS, *versions.HOST_LENGTH_FIELDS)
    found = metadata_of(metadata_class(*names), host_lengths=True)
    assert found._seq_lens_cpu.tolist() == [53, 53, 0]
    assert found._num_computed_tokens_cpu.tolist() == [50, 50, 0]


@pytest.mark.parametrize(("version", "has_lengths"), [("0.29.0", True), ("0.30.0", False)])
def test_the_fields_follow_the_release(
    version: str, has_lengths: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: version)
    assert ("_seq_lens_cpu" in versions.metadata_fields()) is has_lengths
    assert versions.is_since((0, 31)) is False


def test_the_installed_vllm_takes_what_a_probe_gives() -> None:
    from vllm.forward_context import set_forward_context
    from vllm.v1.attention.backend import CommonAttentionMetadata

    fields = versions.metadata_fields()
    assert not list(bindings.field_problems(CommonAttentionMetadata, fields))
    arguments = bindings.FORWARD_CONTEXT_ARGUMENTS
    assert not list(bindings.argument_problems(set_forward_context, arguments))


def test_fields_that_vllm_lacks_or_requires_are_named() -> None:
    kind = metadata_class(*versions.METADATA_FIELDS[1:], "drafts")
    found = list(bindings.field_problems(kind, versions.METADATA_FIELDS))
    assert found == ["Metadata has no query_start_loc", "Metadata requires drafts"]
    only_read = list(bindings.field_problems(kind, ["drafts", "gone"], required=False))
    assert only_read == ["Metadata has no gone"]


def test_arguments_that_vllm_lacks_or_requires_are_named() -> None:
    def set_forward_context(attn_metadata: Any, ranks: int, *, flags: int, more: int = 0) -> None:
        pass

    found = list(bindings.argument_problems(set_forward_context, ["attn_metadata", "is_padding"]))
    assert found == [
        "set_forward_context takes no is_padding",
        "set_forward_context requires ranks",
        "set_forward_context requires flags",
    ]


def group_of(spec_name: str, builder: Any, module: str = "vllm.v1.attention.backends.own") -> Any:
    spec = type(spec_name, (), {"block_size": 16})()
    builder.kv_cache_spec = spec
    backend = type("Backend", (), {"__module__": module, "get_name": lambda: "OWN"})
    return SimpleNamespace(
        layer_names=["a"], kv_cache_spec=spec, metadata_builders=[builder], kernel_block_stride=0,
        backend=backend, kv_cache_group_id=0,
    )  # fmt: skip


def test_an_attention_backend_that_was_registered_with_vllm_is_named() -> None:
    group = group_of("FullAttentionSpec", Builder(), "vllm_other.backend")
    with pytest.raises(UnknownVllmError, match=r"attention backend OWN \(vllm_other\.backend\)"):
        own_groups([[group]], 100, SimpleNamespace(), CPU)


def test_an_unknown_kind_of_kv_cache_or_builder_is_named() -> None:
    config = SimpleNamespace()
    made = own_groups([[group_of("FullAttentionSpec", Builder())]], 100, config, CPU)
    assert made[0].num_blocks == 100
    with pytest.raises(UnknownVllmError, match="KV cache of kind RingSpec is unknown"):
        own_groups([[group_of("RingSpec", Builder())]], 100, config, CPU)
    with pytest.raises(UnknownVllmError, match=r"OtherBuilder\.build .* too many positional"):
        own_groups([[group_of("FullAttentionSpec", OtherBuilder())]], 100, config, CPU)


def test_layers_that_share_blocks_are_refused_where_vllm_packs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = group_of("FullAttentionSpec", Builder())
    group.kernel_block_stride = 2
    with pytest.raises(CellDoesNotFitError, match="packs layers of different page sizes"):
        own_groups([[group]], 100, SimpleNamespace(), CPU)
    monkeypatch.setattr(versions, "installed_version", lambda: "0.31.0")
    del group.kernel_block_stride
    assert own_groups([[group]], 100, SimpleNamespace(), CPU)[0].num_blocks == 100


@pytest.mark.parametrize("shared", [True, False])
def test_builders_share_one_scratch_buffer_where_they_have_one(shared: bool) -> None:
    class Scratch(Builder):
        taken: Any = None

        def _get_workspace_buffer(self) -> str:
            return "scratch of the live one"

        def set_workspace_buffer(self, buffer: Any) -> None:
            self.taken = buffer

    live = Scratch() if shared else Builder()
    made = own_groups([[group_of("FullAttentionSpec", live)]], 100, SimpleNamespace(), CPU)
    assert made[0].builder is not live
    assert getattr(made[0].builder, "taken", None) == (
        "scratch of the live one" if shared else None
    )


def test_builders_of_latent_attention_share_the_scratch_of_prompts() -> None:
    class Latent(Builder):
        chunked_prefill_workspace = "made anew"

    live = Latent()
    live.chunked_prefill_workspace = "scratch of the live one"
    made = own_groups([[group_of("FullAttentionSpec", live)]], 100, SimpleNamespace(), CPU)
    assert made[0].builder is not live
    assert made[0].builder.chunked_prefill_workspace == "scratch of the live one"


@pytest.mark.parametrize(("width", "given"), [(True, 7), (False, None)])
def test_builders_that_ask_for_the_width_of_the_block_table_get_it(
    width: bool, given: int | None
) -> None:
    class Wide(Builder):
        requires_block_table_width = width

        def __init__(self, *_: Any, block_table_width: int | None = None) -> None:
            super().__init__()
            self.width = block_table_width

    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=100))
    made = own_groups([[group_of("FullAttentionSpec", Wide())]], 100, config, CPU)
    assert made[0].builder.width == given


@pytest.mark.parametrize(("version", "multimodal"), [("0.29.0", True), ("0.31.0", False)])
def test_older_releases_do_not_say_that_a_model_is_served_without_its_images(
    version: str, multimodal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: version)
    config = accepted(
        model_config__is_multimodal_model=True, model_config__supports_multimodal_inputs=False
    )
    assert inputs.is_multimodal(config.model_config) is multimodal


def test_a_setting_that_vllm_does_not_have_keeps_the_probe_passive() -> None:
    config = accepted()
    del config.model_config.uses_mrope
    found = support.decide(config)
    assert found.mode is Mode.PASSIVE
    assert (
        "differs from what this vllm-nfp supports" in found.reason and "uses_mrope" in found.reason
    )
