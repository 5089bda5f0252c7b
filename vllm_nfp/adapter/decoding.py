"""How many positions of a sequence each attention backend decodes in a step.

Many metadata builders divide a step's sequences into decodes and prompts by their number of
positions. A longer sequence runs in kernels for prompts, which may not be captured in a CUDA graph,
and which a server does not verify drafts with. A probe of so many positions would be one of a
prompt. Read in the sources of 0.29.0 to 0.33.0, ``v1/attention/backends/``,
``model_executor/layers/attention/`` and ``models/``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_nfp.adapter.bindings import UnknownVllmError


@dataclass(frozen=True, slots=True)
class Decoding:
    """Which sequences a kind of metadata builder takes for decoding."""

    bound: str | None = None
    """Where it keeps the most positions of one; None: it does not tell decodes from prompts."""
    words: str = "any"
    """The most positions, for the docs."""
    drafts_raise_it: bool = False
    """A server that speculates takes as many as its drafts need."""
    least: int = 1
    """What the bound is at least, in any server."""


_THRESHOLD = "reorder_batch_threshold"
_OWN_THRESHOLD = "decode_threshold"
"""Of builders that leave the order of the batch to others."""

_ANY = Decoding()
_DRAFTS = Decoding(_THRESHOLD, "1 + drafts", drafts_raise_it=True)
_OWN_DRAFTS = Decoding(_OWN_THRESHOLD, "1 + drafts", drafts_raise_it=True)
_ONE = Decoding(_THRESHOLD, "1")
_BY_HEADS = Decoding(_THRESHOLD, "128 to 1024, by heads", drafts_raise_it=True, least=128)

BUILDERS: dict[str, Decoding] = {
    "FlashAttentionMetadataBuilder": _ANY,
    "TritonAttentionMetadataBuilder": _ANY,
    "TritonAttentionDiffKVMetadataBuilder": _ANY,
    "FlexAttentionMetadataBuilder": _ANY,
    "CPUAttentionMetadataBuilder": _ANY,
    "RocmAttentionMetadataBuilder": _ANY,
    "RocmAiterUnifiedAttentionMetadataBuilder": _ANY,
    "RocmSegmentedAttentionMetadataBuilder": _ANY,
    "XPUMLASparseMetadataBuilder": _ANY,
    "InklingSconvMetadataBuilder": _ANY,
    # Its split chooses between kernels that store, alike in a server that speculates.
    "CompressorMetadataBuilder": _ANY,
    # Whether its kernels verify drafts depends on the GPU; where not, they run as prompts.
    "FlashInferMetadataBuilder": Decoding(_THRESHOLD, "1; 1 + drafts in TRT-LLM's and XQA kernels"),
    "HpcAttnMetadataBuilder": _DRAFTS,
    "TurboQuantMetadataBuilder": _ONE,
    "RocmOctaveMetadataBuilder": _ONE,
    "AiterFlashAttentionMetadataBuilder": _DRAFTS,
    # Dense latent attention. Triton's decodes drafts since 0.31.
    "MLACommonMetadataBuilder": _ONE,
    "AMXMLAMetadataBuilder": _ONE,
    "CutlassMLAMetadataBuilder": _ONE,
    "XPUFlashAttnMLAMetadataBuilder": _ONE,
    "TritonMLAMetadataBuilder": Decoding(
        _THRESHOLD, "1 + drafts; 1 before vLLM 0.31", drafts_raise_it=True
    ),
    "Dots3NoteMLAMetadataBuilder": _DRAFTS,
    "FlashInferMLAMetadataBuilder": _DRAFTS,
    "TokenspeedMLAMetadataBuilder": _DRAFTS,
    "AiterMLAMetadataBuilder": _DRAFTS,
    "FlashAttnMLAMetadataBuilder": Decoding(_THRESHOLD, "512", drafts_raise_it=True, least=512),
    "FlashMLAMetadataBuilder": Decoding(_THRESHOLD, "128", drafts_raise_it=True, least=128),
    # Sparse attention. Each model has a group for its indexer as well.
    "FlashMLASparseMetadataBuilder": _BY_HEADS,
    "FlashAttnMLASparseMetadataBuilder": _BY_HEADS,
    "FlashAttnMLASparseFA4MetadataBuilder": _BY_HEADS,
    "FlashInferMLASparseMetadataBuilder": _BY_HEADS,
    "FlashInferMLASparseTRTLLMMetadataBuilder": _BY_HEADS,
    "FlashInferMLASparseSM90Builder": _BY_HEADS,
    "ROCMAiterMLASparseMetadataBuilder": _DRAFTS,
    "DeepseekV32IndexerMetadataBuilder": _OWN_DRAFTS,
    "RocmMxfp4IndexerMetadataBuilder": _OWN_DRAFTS,
    "DeepseekSparseSWAMetadataBuilder": _OWN_DRAFTS,
    "DeepseekSparseSWAFlashMLAMetadataBuilder": _OWN_DRAFTS,
    "DeepseekSparseSWAFlashInferMetadataBuilder": _OWN_DRAFTS,
    "DeepseekV4ROCMAiterSparseSWAMetadataBuilder": _OWN_DRAFTS,
    "DeepseekV4CPUSparseSWAMetadataBuilder": _OWN_DRAFTS,
    "DeepseekV4CPUIndexerMetadataBuilder": _OWN_DRAFTS,
    "DeepseekV4SparseMLAMetadataBuilder": _DRAFTS,
    "DeepseekV4FlashMLAMetadataBuilder": _DRAFTS,
    "DeepseekV4FlashInferSparseMLAMetadataBuilder": _DRAFTS,
    "DeepseekV4ROCMAiterMLASparseMetadataBuilder": _DRAFTS,
    "DeepseekV4CPUFlashMLAMetadataBuilder": _DRAFTS,
    "MiniMaxM3SparseMetadataBuilder": _DRAFTS,
    "MiniMaxM3SparseMSAMetadataBuilder": _DRAFTS,
    "MiniMaxM3SparseAiterPAMetadataBuilder": _DRAFTS,
    "MiniMaxM3IndexerTritonMetadataBuilder": _DRAFTS,
    "MiniMaxM3IndexerMSAMetadataBuilder": _DRAFTS,
    "MiniMaxM3IndexerAiterMetadataBuilder": _DRAFTS,
}
"""Builders that a probe may use. Those that are not here, and why:

- ``B12xPagedMetadataBuilder``: its kernels are planned for one draft length, and any other number
  of positions runs as a prompt.
- Those of Step 5, of Qwen 4 and of DeepSeek V4.1: such models are passive for other reasons.
"""

WRAPPERS = (
    "ChunkedLocalAttentionBuilder",
    "StaticSinkAttentionBuilder",
    "FastPrefillAttentionBuilder",
)
"""Classes that vLLM derives from a backend's own builder, and that split nothing themselves."""
COMPOSITE = "CompositeAttentionMetadataBuilder"
"""One that hands each step to one of two others."""
DEPENDS_ON_GPU = ("FlashInferMetadataBuilder",)
"""Builders whose kernels for drafts are chosen by the GPU."""
INDEXED = "index_topk"
"""Field of the configuration of models whose attention reads the tokens that an indexer chose."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most positions of a sequence that a builder decodes."""

    most: int
    builder: str
    drafts_raise_it: bool

    def refusal(self, positions: int) -> str | None:
        """Why so many are not probed; None if they are decoded."""
        if positions <= self.most:
            return None
        drafts, other = f"{positions - 1} or more speculative tokens", "another --attention-backend"
        remedy = drafts if self.drafts_raise_it else other
        if self.builder in DEPENDS_ON_GPU:
            remedy = f"{drafts}, if this GPU's kernels verify drafts, or with {other}"
        count = "1 position" if self.most == 1 else f"{self.most} positions"
        return (
            f"the attention backend ({self.builder}) decodes at most {count} of a sequence in a "
            f"step and takes {positions} for a prompt: serve with {remedy}"
        )


def decoding_bound(builder: Any) -> Bound | None:
    """The most positions that a metadata builder decodes; None: any number.

    Raises:
        UnknownVllmError: naming a builder that is not known.
    """
    bounds = [
        Bound(int(getattr(each, known.bound)), type(each).__name__, _raised(each, known))
        for each, known in _known(builder)
        if known.bound is not None
    ]
    return min(bounds, key=lambda bound: bound.most, default=None)


def _known(builder: Any) -> Iterator[tuple[Any, Decoding]]:
    if type(builder).__name__ == COMPOSITE:
        yield from _known(builder.general_builder)
        yield from _known(builder.causal_builder)
        return
    yield builder, _decoding(type(builder))


def _decoding(kind: type) -> Decoding:
    name = next(each.__name__ for each in kind.__mro__ if each.__name__ not in WRAPPERS)
    if name not in BUILDERS:
        raise UnknownVllmError(
            f"the attention backend with {name} is unknown to this vllm-nfp, which cannot tell how "
            f"many positions it decodes: real steps are timed, nothing is probed"
        )
    return BUILDERS[name]


def expected_refusal(vllm_config: Any, backend: Any) -> str | None:
    """Why a server will probe nothing, as far as its attention tells before it is started.

    Args:
        backend: vLLM's class of the attention backend that it would select.
    """
    speculation = vllm_config.speculative_config
    drafts = int(speculation.num_speculative_tokens) if speculation is not None else 0
    kinds = [backend.get_builder_cls()]
    if hasattr(vllm_config.model_config.hf_text_config, INDEXED):
        from vllm.v1.attention.backends.mla.indexer import DeepseekV32IndexerMetadataBuilder

        kinds.append(DeepseekV32IndexerMetadataBuilder)
    if any(kind.__name__ == COMPOSITE for kind in kinds):
        return None
    try:
        found = [(kind, _decoding(kind)) for kind in kinds]
    except UnknownVllmError as error:
        return str(error)
    refusals = (
        Bound(_expected(kind, known, drafts), kind.__name__, _raised(kind, known)).refusal(2)
        for kind, known in found
        if known.bound is not None and not (drafts and kind.__name__ in DEPENDS_ON_GPU)
    )
    return next(filter(None, refusals), None)


def _expected(kind: type, known: Decoding, drafts: int) -> int:
    return max(known.least, 1 + drafts) if _raised(kind, known) else known.least


def _raised(builder: Any, known: Decoding) -> bool:
    """Whether the installed vLLM's builder follows the draft length.

    Those of dense latent attention say so themselves, and have changed it.
    """
    support = "query_len_support"
    if hasattr(builder, support):
        return str(getattr(builder, support).name) != "SINGLE_ONLY"
    return known.drafts_raise_it
