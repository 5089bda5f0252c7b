"""How many positions each of vLLM's metadata builders decodes, by itself."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.decoding import (
    COMPOSITE,
    Bound,
    decoding_bound,
    expected_refusal,
)


def config(drafts: int) -> Any:
    """As much of vLLM's as these builders read."""
    speculative = SimpleNamespace(
        num_speculative_tokens=drafts, enable_adaptive_verification=False, parallel_drafting=False,
        use_dspark=lambda: False,
    )  # fmt: skip
    text = SimpleNamespace(index_topk=64, sliding_window=64, compress_ratios=[1])
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(
            max_num_seqs=8, max_num_batched_tokens=64, async_scheduling=False
        ),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, prefill_context_parallel_size=1,
            tensor_parallel_size=1, cp_kv_cache_interleave_size=1,
        ),
        model_config=SimpleNamespace(
            max_model_len=256, hf_config=text, hf_text_config=text,
            get_num_attention_heads=lambda _: 16, get_num_kv_heads=lambda _: 2, dtype="float32",
        ),
        attention_config=SimpleNamespace(
            sparse_mla_prefill_workspace_factor=5, hisparse_config=None,
            resolve_indexer_kv_dtype=lambda _: "fp8",
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        speculative_config=speculative if drafts else None,
        num_speculative_tokens=drafts, use_v2_model_runner=True,
        compilation_config=SimpleNamespace(static_forward_context={}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name", "bounds"),
    [
        ("v1.attention.backends.mla.indexer", "DeepseekV32IndexerMetadataBuilder", (1, 4)),
        ("v1.attention.backends.mla.sparse_swa", "DeepseekSparseSWAMetadataBuilder", (1, 4)),
        ("models.deepseek_v4.sparse_mla", "DeepseekV4SparseMLAMetadataBuilder", (1, 4)),
        ("v1.attention.backends.turboquant_attn", "TurboQuantMetadataBuilder", (1, 1)),
        ("v1.attention.backends.cpu_attn", "CPUAttentionMetadataBuilder", (None, None)),
    ],
)
def test_a_real_builder_decodes_up_to_its_bound_and_no_more(
    module: str, name: str, bounds: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.attention.backends import utils
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

    place = importlib.import_module(f"vllm.{module}")
    if hasattr(place, "num_compute_units"):
        monkeypatch.setattr(place, "num_compute_units", lambda *_: 4)
    kind = getattr(place, name)
    latent = MLAAttentionSpec if "Deepseek" in name else FullAttentionSpec
    spec = latent(block_size=16, num_kv_heads=1, head_size=64, dtype=torch.float32)
    extra = {"block_table_width": 16} if kind.requires_block_table_width else {}
    for drafts, most in zip((0, 3), bounds, strict=True):
        builder = kind(spec, ["a"], config(drafts), torch.device("cpu"), **extra)
        bound = decoding_bound(builder)
        assert (bound and bound.most) == most
        if bound is None:
            continue
        assert bound.drafts_raise_it is (bounds[0] != bounds[1])
        for positions in (bound.most, bound.most + 1):
            starts = torch.arange(3, dtype=torch.int32) * positions
            step = CommonAttentionMetadata(
                query_start_loc=starts, query_start_loc_cpu=starts, num_reqs=2,
                seq_lens=torch.full((2,), 32), num_actual_tokens=2 * positions,
                max_query_len=positions, max_seq_len=32, is_prefilling=torch.zeros(2).bool(),
                block_table_tensor=torch.zeros((2, 4), dtype=torch.int32),
                slot_mapping=torch.full((2 * positions,), -1),
            )  # fmt: skip
            decodes, prompts, _, _ = utils.split_decodes_and_prefills(step, bound.most)
            assert (decodes, prompts) == ((2, 0) if positions == bound.most else (0, 2))


class FlashAttentionMetadataBuilder:
    """Stands for vLLM's, by its name."""


class FlashMLAMetadataBuilder:
    reorder_batch_threshold = 128
    query_len_support = SimpleNamespace(name="UNIFORM")


class CutlassMLAMetadataBuilder:
    reorder_batch_threshold = 1
    query_len_support = SimpleNamespace(name="SINGLE_ONLY")


def test_a_builder_derived_by_vllm_is_that_which_it_is_derived_from() -> None:
    wrapped = type("ChunkedLocalAttentionBuilder", (FlashAttentionMetadataBuilder,), {})
    assert decoding_bound(wrapped()) is None
    wrapped = type("StaticSinkAttentionBuilder", (FlashMLAMetadataBuilder,), {})
    assert decoding_bound(wrapped()) == Bound(128, "StaticSinkAttentionBuilder", True)


def test_of_a_composite_the_smaller_bound_holds() -> None:
    composite = type(COMPOSITE, (), {})()
    composite.general_builder = FlashMLAMetadataBuilder()
    composite.causal_builder = CutlassMLAMetadataBuilder()
    assert decoding_bound(composite) == Bound(1, "CutlassMLAMetadataBuilder", False)
    composite.causal_builder = FlashAttentionMetadataBuilder()
    assert decoding_bound(composite) == Bound(128, "FlashMLAMetadataBuilder", True)


def test_an_unknown_builder_is_named_even_if_it_is_derived_from_a_known_one() -> None:
    new = type("SomeNewMetadataBuilder", (FlashMLAMetadataBuilder,), {})
    with pytest.raises(UnknownVllmError, match="SomeNewMetadataBuilder is unknown"):
        decoding_bound(new())


@pytest.mark.parametrize(
    ("kind", "drafts", "refusal"),
    [
        (FlashAttentionMetadataBuilder, 0, None),
        (FlashMLAMetadataBuilder, 0, None),
        (CutlassMLAMetadataBuilder, 0, "serve with another --attention-backend"),
        (CutlassMLAMetadataBuilder, 3, "serve with another --attention-backend"),
        (type("HpcAttnMetadataBuilder", (), {}), 0, "serve with 1 or more speculative tokens"),
        (type("HpcAttnMetadataBuilder", (), {}), 3, None),
        (
            type("FlashInferMetadataBuilder", (), {}),
            0,
            "serve with 1 or more speculative tokens, if this GPU's kernels verify drafts, or with "
            "another --attention-backend",
        ),
        # Its kernels are chosen by the GPU.
        (type("FlashInferMetadataBuilder", (), {}), 3, None),
        (type(COMPOSITE, (), {}), 0, None),
        (type("B12xPagedMetadataBuilder", (), {}), 3, "B12xPagedMetadataBuilder is unknown"),
    ],
)
def test_a_server_is_told_before_its_start(kind: type, drafts: int, refusal: str | None) -> None:
    backend = SimpleNamespace(get_builder_cls=lambda: kind)
    given = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace()),
    )
    found = expected_refusal(given, backend)
    assert found is None if refusal is None else refusal in str(found)


@pytest.mark.parametrize(("drafts", "probed"), [(0, False), (3, True)])
def test_an_indexer_decodes_drafts_alone(drafts: int, probed: bool) -> None:
    pytest.importorskip("vllm")
    given = config(drafts)
    backend = SimpleNamespace(get_builder_cls=lambda: FlashMLAMetadataBuilder)
    refusal = expected_refusal(given, backend)
    assert (refusal is None) is probed
    assert probed or "(DeepseekV32IndexerMetadataBuilder) decodes at most 1" in str(refusal)
