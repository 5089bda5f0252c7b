"""The draft methods of vLLM: what each runs in a step, and at a draft length of 0.

Read in the sources of vLLM 0.32.0 and 0.33.0: ``config/speculative.py``, ``config/vllm.py``,
``v1/spec_decode/`` (V1 runner) and ``v1/worker/gpu/spec_decode/`` (V2 runner).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from vllm_nfp.text import same_name

DraftMethod = Literal[
    "ngram", "ngram_gpu", "suffix", "eagle", "eagle3", "mtp", "draft_model", "dflash", "dspark"
]
DRAFT_METHODS: tuple[str, ...] = get_args(DraftMethod)


class Drafts(StrEnum):
    """How often a method runs to make the drafts of a step."""

    LOOKUP = "lookup"
    """Once, in the text so far, without weights."""
    BLOCK = "block"
    """Once: one pass makes the whole draft."""
    TOKEN = "token"
    """Once for each drafted token."""


@dataclass(frozen=True, slots=True)
class Method:
    """A draft method."""

    drafts: Drafts
    at_zero: str
    """What runs at K = 0, in words."""
    needs_model: bool = False
    """Its weights are a checkpoint of their own."""
    follows_table: bool = True
    """Its draft length may change between steps; otherwise vLLM keeps num_speculative_tokens."""
    table_needs_v2: bool = False
    """The V1 runner stops at the first step whose draft length is not num_speculative_tokens."""
    always_longest: bool = False
    """The V2 runner makes num_speculative_tokens drafts whatever the table says, and drops those
    beyond K."""


_SYNC = "one pass of the drafter runs, to keep its KV cache in sync"
_BLOCK = "with vLLM 0.32 the whole pass runs; with 0.33 its KV cache alone is kept in sync"
METHODS: dict[str, Method] = {
    "ngram": Method(Drafts.LOOKUP, "nothing is looked up"),
    # NgramProposerGPU.propose of the V1 runner asserts that the length is its own (0.29 to 0.33).
    "ngram_gpu": Method(Drafts.LOOKUP, "the lookup runs", table_needs_v2=True),
    # SuffixDecodingProposer asserts that the length is num_speculative_tokens.
    "suffix": Method(Drafts.LOOKUP, "vLLM never runs it with K = 0", follows_table=False),
    "eagle": Method(Drafts.TOKEN, _SYNC, needs_model=True),
    "eagle3": Method(Drafts.TOKEN, _SYNC, needs_model=True),
    "mtp": Method(Drafts.TOKEN, _SYNC),
    "draft_model": Method(
        Drafts.TOKEN,
        "the V1 runner runs one pass, the V2 runner all num_speculative_tokens passes",
        needs_model=True,
        always_longest=True,
    ),
    "dflash": Method(Drafts.BLOCK, _BLOCK, needs_model=True),
    # Its weights may be a part of the target's checkpoint.
    "dspark": Method(Drafts.BLOCK, _BLOCK),
}
LOOKUPS = frozenset(name for name, of in METHODS.items() if of.drafts is Drafts.LOOKUP)
"""Methods that look drafts up in the text so far, once a step, without weights."""
NEEDS_MODEL = frozenset(name for name, of in METHODS.items() if of.needs_model)
"""Methods whose drafts come from weights of their own."""
ONE_LENGTH = frozenset(name for name, of in METHODS.items() if not of.follows_table)
"""Methods that vLLM runs with one draft length for every batch size."""
TABLE_NEEDS_V2 = frozenset(name for name, of in METHODS.items() if of.table_needs_v2)
"""Methods whose draft length only the V2 runner can change between steps."""
PARALLEL = frozenset({"eagle", "eagle3", "draft_model"})
"""Methods with a drafter that may be trained to make all drafts in one pass (P-EAGLE, PARD)."""

MTP_NAMES = frozenset(
    f"{model}_mtp"
    for model in (
        "bailing_hybrid", "bailing_hybrid_v3", "deepseek", "dots3_note", "ernie", "exaone4_5",
        "exaone_moe", "gemma4", "glm4_moe", "glm4_moe_lite", "glm5_next", "glm_ocr", "hy_v3",
        "hy_v4", "inkling", "kimi_k3", "longcat_flash", "mimo", "mimo_v2", "minimax_m3",
        "nemotron_h", "pangu_ultra_moe", "qwen3_5", "qwen3_next", "qwen4_exp", "step3p5", "step5",
    )
)  # fmt: skip
"""Older names of mtp, one for each model family (``MTPModelTypes``)."""


def known_method(name: str) -> str | None:
    """The method that is meant, however it is spelled, older names of mtp included; None: none."""
    found = same_name(name, DRAFT_METHODS)
    if found is None and same_name(name, MTP_NAMES) is not None:
        return "mtp"
    return found


def drafts_of(method: str, parallel: bool = False) -> Drafts:
    """How often a method runs; an unknown one is assumed to run for each token.

    Args:
        parallel: ``parallel_drafting`` of vLLM's speculative config.
    """
    known = METHODS.get(method)
    if known is None:
        return Drafts.TOKEN
    return Drafts.BLOCK if parallel and method in PARALLEL else known.drafts
