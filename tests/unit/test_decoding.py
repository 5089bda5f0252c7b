"""How many positions each of vLLM's metadata builders decodes, by its sources and by itself."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.decoding import BUILDERS, COMPOSITE, WRAPPERS, Bound, decoding_bound
from vllm_nfp.adapter.state_kinds import KNOWN_BUILDERS

BACKENDS = Path(__file__).parents[2] / "docs" / "backends.toml"
ROOTS = ("v1/attention", "model_executor/layers/attention", "models")
BASE = "AttentionMetadataBuilder"
NOT_PROBED = {
    # Recurrent states have a list of their own; these are not in it.
    "Mamba1AttentionMetadataBuilder", "LinearAttentionMetadataBuilder",
    "PleShortConvAttentionMetadataBuilder", "KimiK3KDAMetadataBuilder",
    "KimiK3ROCmKDAMetadataBuilder", "BaseMambaAttentionMetadataBuilder",
    # Of encoders, and of models that are passive.
    "CrossAttentionBuilder", "EncoderOnlyAttentionBuilder", "KpoolTailMetadataBuilder",
    "QSAMetadataBuilder", "Qwen4ExpQSAMetadataBuilder", "Step5CSATailRingMetadataBuilder",
    "Step5DSAMetadataBuilder", "Step5SparseSummaryMetadataBuilder",
    "DeepseekV41SparseSWAMetadataBuilder", "DeepseekV41SparseIndexerMetadataBuilder",
    "DeepseekV41RocmMxfp4IndexerMetadataBuilder", "DeepseekV41ROCMAiterMLASparseMetadataBuilder",
    "DeepseekV41ROCMAiterSparseSWAMetadataBuilder",
    # Bases of others.
    "SparseMLACommonMetadataBuilder", "MiniMaxM3IndexerMetadataBuilder",
    # Its kernels are planned for one draft length.
    "B12xPagedMetadataBuilder",
}  # fmt: skip
OTHER_RELEASES = {"RocmOctaveMetadataBuilder", "FlashAttnMLASparseFA4MetadataBuilder"}
"""Of 0.33 alone."""
NAMES_NONE = {"TRITON_FLASH_ATTN", "TRITON_FLASHINFER", "FLASHMLA_MEGA_ATTN_DSV41"}
"""Two are composed by a function; the sources of DeepSeek V4.1 are left out here."""
STORES_ALONE = {"CompressorMetadataBuilder"}
"""Divides tokens for kernels that store them."""


@functools.cache
def classes(word: str = "Builder") -> dict[str, list[ast.ClassDef]]:
    """vLLM's classes with such a name, of which some are given twice."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    top = Path(spec.submodule_search_locations[0])
    found: dict[str, list[ast.ClassDef]] = {}
    for path in sorted(path for root in ROOTS for path in (top / root).rglob("*.py")):
        text = path.read_text()
        if word in text and "deepseek_v41" not in path.parts:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and word in node.name:
                    found.setdefault(node.name, []).append(node)
    return found


def line_of(name: str, known: dict[str, list[ast.ClassDef]]) -> Iterator[ast.ClassDef]:
    """A class and those that it is derived from."""
    for node in known.get(name, []):
        yield node
        for base in node.bases:
            yield from line_of(ast.unparse(base).partition("[")[0], known)


def bases_of(node: ast.ClassDef) -> str:
    return " ".join(map(ast.unparse, node.bases))


def splits(node: ast.ClassDef) -> Iterator[str]:
    """By what a class divides a step into decodes and prompts."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and "split_decodes" in ast.unparse(call.func):
            given = [word.value for word in call.keywords if word.arg == "decode_threshold"]
            yield ast.unparse(given[0]) if given else "1"


def test_each_bound_is_what_the_sources_divide_by() -> None:
    known = classes()
    for name, decoding in BUILDERS.items():
        if name not in known:  # of another release
            continue
        found = {each for node in line_of(name, known) for each in splits(node)}
        own = {each.removesuffix(" or 1").removeprefix("self.") for each in found}
        if name == "RocmOctaveMetadataBuilder":
            own = {"reorder_batch_threshold"} if own == {"1"} else own
        expected = set() if decoding.bound is None else {decoding.bound}
        assert own - ({"1"} if name in STORES_ALONE else set()) == expected, name


def test_every_builder_of_the_installed_vllm_was_looked_at() -> None:
    known = classes()
    builders = {
        name for name in known if any(node.name == BASE for node in line_of(name, known))
    } | {name for name, nodes in known.items() if "underlying" in bases_of(nodes[0])}
    looked_at = {*BUILDERS, *WRAPPERS, *KNOWN_BUILDERS, *NOT_PROBED, COMPOSITE, BASE}
    assert builders - looked_at == set(), "read its sources: how many positions does it decode?"
    if versions.installed_release() == (0, 32):
        assert set(BUILDERS) - builders <= OTHER_RELEASES


def builders_of(backend: str) -> set[str]:
    """The metadata builders that a backend may return."""
    for node in line_of(backend, classes("Backend")):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "get_builder_cls":
                returned = [each for each in ast.walk(method) if isinstance(each, ast.Return)]
                return {ast.unparse(each.value) for each in returned if each.value}
    return set()


def test_the_docs_name_each_backends_builders() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    for row in tomllib.loads(BACKENDS.read_text())["backend"]:
        assert set(row["builders"]) <= {*BUILDERS, *NOT_PROBED}
        for name in set(row["names"]) & set(AttentionBackendEnum.__members__):
            kind = str(AttentionBackendEnum[name].value).rpartition(".")[2]
            assert builders_of(kind) <= set(row["builders"]), name
            assert builders_of(kind) or name in NAMES_NONE, f"{name} names none"


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
