"""The states that a probe lends are those that vLLM's own builders tell the kernels to use."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import state_layers
from vllm_nfp.adapter.state_kinds import KNOWN_BUILDERS
from vllm_nfp.adapter.state_layers import StateGroup
from vllm_nfp.probe.state_room import StateRoom
from vllm_nfp.probe.states import ProbeStates

pytest.importorskip("vllm")

CPU = torch.device("cpu")
PLACES = {
    "GDNAttentionMetadataBuilder": "gdn_attn",
    "Mamba2AttentionMetadataBuilder": "mamba2_attn",
    "ShortConvAttentionMetadataBuilder": "short_conv_attn",
    "BailingLinearAttentionMetadataBuilder": "linear_attn",
}
LARGE = 64
"""Sequences of the server's largest batch."""


def config(drafts: int, graphs: bool = False) -> Any:
    """As much of vLLM's as these builders read."""
    speculative = SimpleNamespace(
        num_speculative_tokens=drafts, parallel_drafting=False, use_eagle_block_drop=lambda: False
    )
    return SimpleNamespace(
        speculative_config=speculative if drafts else None,
        num_speculative_tokens=drafts, use_v2_model_runner=True, kv_transfer_config=None,
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=LARGE if graphs else None,
            cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: graphs),
        ),
        cache_config=SimpleNamespace(
            use_replayssm=False, use_kda_recoverssm=False, replayssm_buffer_len=0,
            mamba_cache_mode="none", enable_prefix_caching=False,
        ),
        mamba_config=SimpleNamespace(backend=None),
        scheduler_config=SimpleNamespace(
            max_num_seqs=LARGE, max_num_batched_tokens=256, async_scheduling=True
        ),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, tensor_parallel_size=1
        ),
        model_config=SimpleNamespace(get_mamba_chunk_size=lambda: 64),
        additional_config={},
    )  # fmt: skip


class Layer:
    """A convolution's inputs, which widen with drafts, and a matrix."""

    num_spec = 0
    kv_cache: Any = None

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return (3 + self.num_spec, 4), (4, 4)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return torch.float32, torch.float32


def lend(builder: str, monkeypatch: pytest.MonkeyPatch, graphs: bool) -> ProbeStates:
    """A probe's states for a layer whose metadata the real builder makes."""
    from vllm.v1.kv_cache_interface import MambaSpec

    kind = getattr(
        importlib.import_module(f"vllm.v1.attention.backends.{PLACES[builder]}"), builder
    )
    monkeypatch.setattr(
        "vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn._resolve_gdn_prefill_backend",
        lambda _: ("triton", "triton"),
    )
    monkeypatch.setattr(state_layers, "_with_drafts", lambda _, drafts: config(drafts, graphs))
    layer = Layer()
    spec = MambaSpec(block_size=16, shapes=layer.get_state_shape(), dtypes=layer.get_state_dtype())
    group = StateGroup("a kind", (layer,), ("l0",), 8, kind, spec, config(0), CPU)
    return ProbeStates([group], StateRoom(1, 1, 128, 16), [(1, 1)], CPU)


def common(batch_size: int, positions: int, rows: int) -> dict[str, Any]:
    """A batch of a probe; rows behind its sequences are padding."""
    starts = torch.clamp(torch.arange(rows + 1) * positions, max=batch_size * positions).int()
    lengths = torch.zeros(rows, dtype=torch.int32)
    lengths[:batch_size] = 32 + positions
    return {
        "query_start_loc": starts, "query_start_loc_cpu": starts, "seq_lens": lengths,
        "seq_lens_cpu_upper_bound": lengths, "num_reqs": rows,
        "num_actual_tokens": batch_size * positions, "max_query_len": positions,
        "max_seq_len": 512, "is_prefilling": torch.zeros(rows, dtype=torch.bool),
        "slot_mapping": torch.full((rows * positions,), -1),
    }  # fmt: skip


def named(built: Any, positions: int) -> torch.Tensor:
    """The states that the metadata names for decoding, [sequences, positions]."""
    if type(built).__name__.startswith("GDN"):
        found = (
            built.non_spec_state_indices_tensor if positions == 1
            else built.spec_state_indices_tensor
        )  # fmt: skip
    else:
        found = built.state_indices_tensor_d
    return found.reshape(len(found), -1)


def test_there_is_a_case_for_every_builder_that_is_known() -> None:
    assert set(PLACES) == set(KNOWN_BUILDERS)


@pytest.mark.parametrize("builder", PLACES)
@pytest.mark.parametrize(("batch_size", "positions"), [(1, 1), (4, 1), (1, 4), (3, 8)])
@pytest.mark.parametrize("capture", [False, True])
def test_kernels_are_told_the_probes_states_and_no_others(
    builder: str, batch_size: int, positions: int, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.attention.backend import CommonAttentionMetadata

    own = lend(builder, monkeypatch, capture)
    rows = 4
    given = common(batch_size, positions, rows if capture else batch_size)
    first = own.metadata(batch_size, positions, CommonAttentionMetadata, given, capture)["l0"]
    # A graph that was captured reads the buffers of its builder, which the next build fills.
    built = own.metadata(batch_size, positions, CommonAttentionMetadata, given, False)["l0"]
    numbers = torch.tensor(own.numbers(batch_size, positions)).view(batch_size, positions)
    table = named(built, positions)
    assert torch.equal(table[:batch_size].long(), numbers)
    assert (table[batch_size:] <= 0).all(), "padding has a state"
    assert built.num_prefills == 0, "positions are taken for a prompt"
    if positions == 1:
        assert built.num_accepted_tokens is None
        return
    assert (built.num_accepted_tokens[:batch_size] == 1).all(), "drafts count as accepted before"
    starts = built.spec_query_start_loc if builder.startswith("GDN") else built.query_start_loc_d
    expected = torch.arange(batch_size + 1) * positions
    assert torch.equal(starts[: batch_size + 1].long(), expected)
    if capture:
        graph, now = named(first, positions), table
        assert graph.data_ptr() == now.data_ptr(), "a graph would read another table"
        accepted = first.num_accepted_tokens, built.num_accepted_tokens
        assert accepted[0].data_ptr() == accepted[1].data_ptr()


@pytest.mark.parametrize("builder", PLACES)
def test_the_servers_own_builder_keeps_what_its_graphs_read(
    builder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.attention.backend import CommonAttentionMetadata

    own = lend(builder, monkeypatch, True)
    group = own.groups[0]
    live = group.builder(4)
    table = torch.full((2, 4), 7, dtype=torch.int32)
    given = common(2, 4, 2)
    accepted, drafts = torch.full((2,), 3, dtype=torch.int32), torch.full((2,), 3)
    kept = live.build(
        0, CommonAttentionMetadata(**given, block_table_tensor=table),
        num_accepted_tokens=accepted, num_decode_draft_tokens_cpu=drafts,
    )  # fmt: skip
    own.metadata(2, 4, CommonAttentionMetadata, given, False)
    assert (named(kept, 4) == 7).all()
    assert (kept.num_accepted_tokens == 3).all()
