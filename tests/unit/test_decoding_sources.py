"""How many positions vLLM's metadata builders decode, by its sources; none of them is imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.decoding import BUILDERS, COMPOSITE, WRAPPERS
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
