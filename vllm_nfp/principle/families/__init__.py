"""The model families that a config.json may name, one table entry each.

An entry says only how a family differs from Llama: a causal decoder whose layers all have
attention and a gated feed-forward block, whose config.json has Llama's field names. Field names
and the defaults of fields that may be left out are those of the configuration classes in
transformers, or of the model's own remote code where transformers lacks the family.
"""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.families.classes import BY_CLASS
from vllm_nfp.principle.families.dense import DENSE
from vllm_nfp.principle.families.diffusion import DIFFUSION
from vllm_nfp.principle.families.language_parts import LANGUAGE_PARTS
from vllm_nfp.principle.families.recurrent import RECURRENT
from vllm_nfp.principle.families.routed import ROUTED_FAMILIES
from vllm_nfp.principle.families.unlike import UNLIKE
from vllm_nfp.principle.family import Family

__all__ = ["BY_CLASS", "FAMILIES", "UNDESCRIBED", "named_families"]

FAMILIES: Mapping[str, Family] = {
    **DENSE,
    **LANGUAGE_PARTS,
    **ROUTED_FAMILIES,
    **UNLIKE,
    **RECURRENT,
    **DIFFUSION,
}
"""By model_type in lower case."""


def named_families() -> list[str]:
    """The families that a message lists: without parts of wrappers and variants of one name."""
    variants = {entry.variant[1] for entry in FAMILIES.values() if entry.variant is not None}
    return sorted(name for name in set(FAMILIES) - variants if not name.endswith("_text"))


UNDESCRIBED: Mapping[str, str] = {
    "mllama_text_model": "some of its layers attend to an image's tokens alone, and vLLM 0.32 "
    "serves it no more",
}
"""Families that a shape cannot describe, with the reason; not even as dense."""
