"""Checks of how the flags of a server that speculates fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_nfp import releases
from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.doctor.facts import Facts
from vllm_nfp.doctor.findings import Finding, Status
from vllm_nfp.doctor.graph_lint import missing_graphs
from vllm_nfp.draft import lints
from vllm_nfp.draft.missed_graphs import overlooked
from vllm_nfp.principle.graphs import CapturedGraphs

_DECODE_GRAPHS = ("FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
_PIECEWISE_TOO = "FULL_AND_PIECEWISE"
_MENDED_BY = ("--nfp-draft-control", "--nfp-verification-costs")
_MENDED_BY_SETTING = re.compile(r'"mend_graphs"\s*:\s*true')
"""Flags with which vLLM overlooks no graphs of a table (adapter/length_graphs.py)."""


def server_flags(facts: Facts) -> Iterator[Finding]:
    """What in the flags keeps drafts from paying, or decode steps from CUDA graphs."""
    values = facts.answer.values
    if facts.question.model is None or not values:
        return
    v2_follows = releases.draft_schedule_warning(facts.version or "") is None
    lengths = _lengths(values, v2_follows)
    for name, advice in (
        ("capture sizes", _graphs(facts, lengths)),
        ("graphs of the table", _overlooked(facts, lengths)),
        ("tokens of a step", _step(values, lengths)),
        ("table on the V1 runner", _table_on_v1(values, v2_follows)),
        ("table with ngram_gpu", _fixed_on_v1(values, lengths, v2_follows)),
        ("attention of drafts", _attention(values)),
    ):
        if advice is not None:
            yield Finding(name, Status.WARNING, _FOUND[name], advice)


_FOUND = {
    "capture sizes": "some batch sizes run without a full CUDA graph",
    "graphs of the table": "vLLM overlooks some of them",
    "tokens of a step": "too few for all sequences with their drafts",
    "table on the V1 runner": "costs the FULL CUDA graphs",
    "table with ngram_gpu": "stops the engine",
    "attention of drafts": "FlashAttention 2",
}


def drafting(values: Mapping[str, Any]) -> Finding:
    """How the server drafts."""
    name, method = "drafting of this server", values["speculative"]
    if method is None:
        return Finding(name, Status.OK, "no speculative decoding")
    if not values["draft_lengths_by_batch_size"]:
        return Finding(
            name,
            Status.OK,
            f"{method}, one draft length for all batch sizes",
            "vllm-nfp recommend gives lengths by batch size",
        )
    ignored = lints.ignored_table(values["draft_length"], values["data_parallel"])
    if ignored is not None:
        return Finding(name, Status.WARNING, f"{method}, draft lengths by batch size", ignored)
    return Finding(name, Status.OK, f"{method}, draft lengths by batch size")


def _lengths(values: Mapping[str, Any], v2_follows: bool) -> lints.Tiers:
    if values["speculative"] is None:
        return ((1, values["max_num_seqs"], 0),)
    followed = values["data_parallel"] == 1 and (v2_follows or not values["use_v2"])
    table = values["draft_table"] if followed else ()
    return lints.tiers(table, values["draft_length"], values["max_num_seqs"])


def _graphs(facts: Facts, lengths: lints.Tiers) -> str | None:
    values, graphs = facts.answer.values, facts.answer.values["graphs"]
    if graphs["eager"] or graphs["mode"] not in _DECODE_GRAPHS or not graphs["sizes"]:
        return None
    if values["speculative"] is not None and values["adaptive_verification"]:
        return None  # its graphs take any mix of lengths
    rules = GraphRules(
        full_decode=True,
        full_mixed=graphs["mode"] == "FULL",
        piecewise=graphs["mode"] == _PIECEWISE_TOO,
        multi_position=True,
        graphs=CapturedGraphs(tuple(graphs["sizes"])),
        max_num_seqs=values["max_num_seqs"],
    )
    return missing_graphs(facts.version or "", rules, lengths, values["max_num_batched_tokens"])


def _overlooked(facts: Facts, lengths: lints.Tiers) -> str | None:
    values, graphs = facts.answer.values, facts.answer.values["graphs"]
    if not values["use_v2"] or values["speculative"] is None or values["adaptive_verification"]:
        return None
    if graphs["eager"] or graphs["mode"] not in ("FULL_DECODE_ONLY", _PIECEWISE_TOO):
        return None
    flags = facts.question.flags
    if any(flag.partition("=")[0].replace("_", "-") in _MENDED_BY for flag in flags):
        return None
    if _MENDED_BY_SETTING.search(" ".join(flags)):
        return None
    piecewise = graphs["mode"] == _PIECEWISE_TOO
    return overlooked(
        facts.version or "", values["speculative"], graphs["sizes"], lengths, piecewise
    )


def _step(values: Mapping[str, Any], lengths: lints.Tiers) -> str | None:
    if values["speculative"] is None:
        return None
    return lints.crowded_step(lengths, values["draft_slots"], values["max_num_batched_tokens"])


def _table_on_v1(values: Mapping[str, Any], v2_follows: bool) -> str | None:
    followed = values["draft_lengths_by_batch_size"] and values["data_parallel"] == 1
    if values["platform"] == "cpu" or values["graphs"]["eager"] or not followed:
        return None
    return lints.piecewise_table(values["use_v2"], v2_follows)


def _fixed_on_v1(values: Mapping[str, Any], lengths: lints.Tiers, v2_follows: bool) -> str | None:
    if values["speculative"] is None or not values["draft_lengths_by_batch_size"]:
        return None
    return lints.fixed_on_v1(
        values["speculative"], lengths, values["draft_length"], values["use_v2"], v2_follows
    )


def _attention(values: Mapping[str, Any]) -> str | None:
    if values["speculative"] is None or values["backend"] != "FLASH_ATTN":
        return None
    return lints.unsplit_cache(values["max_model_len"]) if values["flash_attention"] == 2 else None
