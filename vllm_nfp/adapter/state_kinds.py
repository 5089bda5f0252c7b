"""Kinds of recurrent layers, and the models made of them, that a probe knows."""

from __future__ import annotations

from typing import Any

STATE_SPEC = "MambaSpec"
"""vLLM's kind of KV cache for every layer with a recurrent state."""
KNOWN_LAYERS = {
    "QwenGatedDeltaNetAttention": "Gated DeltaNet",
    "OlmoHybridGatedDeltaNetAttention": "Gated DeltaNet",
    "KimiGatedDeltaNetAttention": "KDA",
    "MambaMixer2": "Mamba 2",
    "ShortConv": "short convolutions",
    "BailingMoeV3KimiDeltaAttention": "KDA",
    "BailingMoELinearAttention": "linear attention of Ling and Ring 2.6",
}
"""vLLM's layers that a probe can run -> what they are called. Each looks up ``kv_cache`` and its
draft length inside a custom op that every compiled graph is split at, or, KDA, where a capture is
broken off (sources of 0.32.0 and 0.33.0, ``model_executor/layers/mamba/`` and
``models/bailing_moe_v3.py`` there; ``_attention_ops`` in ``config/compilation.py``)."""
DRAFT_LENGTH = "num_spec"
"""Where a layer keeps the server's draft length, by which its state is shaped."""
OTHER_DRAFT_LENGTHS: dict[str, str | None] = {
    "BailingMoeV3KimiDeltaAttention": "num_speculative_tokens",
    "BailingMoELinearAttention": None,
}
"""Layers that keep it elsewhere; None: the shape of their state does not depend on it."""
KNOWN_MODELS = frozenset(
    {
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "OlmoHybridForCausalLM",
        "KimiLinearForCausalLM",
        "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "GraniteMoeHybridForCausalLM",
        "FalconH1ForCausalLM",
        "Zamba2ForCausalLM",
        "Lfm2ForCausalLM",
        "Lfm2MoeForCausalLM",
        "Lfm2VlForConditionalGeneration",
        "InternS2PreviewForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration",
        "NemotronH_Nano_VL_V2",
        "NemotronH_Nano_Omni_Reasoning_V3",
        "NemotronH_Super_Omni_Reasoning_V3",
        "NemotronH_Omni_Reasoning_V3",
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "BailingMoeV3VLForConditionalGeneration",
    }
)
"""Architectures made of such layers (the same sources, ``model_executor/models/``): what can be
told before a model is loaded. The layers themselves are looked at when it is."""
KNOWN_BUILDERS = (
    "GDNAttentionMetadataBuilder",
    "Mamba2AttentionMetadataBuilder",
    "ShortConvAttentionMetadataBuilder",
    "BailingLinearAttentionMetadataBuilder",
)
"""Their metadata builders, which take ``num_accepted_tokens`` and ``num_decode_draft_tokens_cpu``
(the same sources, ``v1/attention/backends/``)."""
KNOWN_MODES = ("none", "align")
"""How states may be kept for prefix caching. With ``all``, kernels read and write other blocks."""


def draft_length(layer: Any) -> int:
    """The draft length that a layer's state is shaped by; 0 if it is by none."""
    name = _draft_length_name(layer)
    return 0 if name is None else int(getattr(layer, name))


def set_draft_length(layer: Any, drafts: int) -> None:
    """Let a layer shape its state by this draft length."""
    name = _draft_length_name(layer)
    if name is not None:
        setattr(layer, name, drafts)


def _draft_length_name(layer: Any) -> str | None:
    return OTHER_DRAFT_LENGTHS.get(type(layer).__name__, DRAFT_LENGTH)
