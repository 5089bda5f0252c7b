"""What the probe does under each command line, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.recipes.commands import Command
from benchmarks.recipes.configuration import UnreadableFlagsError, configuration
from benchmarks.recipes.model_facts import ModelFacts
from vllm_nfp.adapter import support, versions
from vllm_nfp.adapter.feature_list import features_of
from vllm_nfp.adapter.runner_v2 import KNOWN_STATES
from vllm_nfp.adapter.versions import Mode

UNREAD = "unread"
"""Not a verdict: this vLLM does not serve the model, or refuses the flags."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one command line."""

    model: str
    kind: str
    mode: str
    """``active``, ``passive``, ``off``, or :data:`UNREAD`."""
    reason: str
    """The feature that keeps the probe off; empty where none does."""

    @property
    def probes(self) -> bool:
        """The probe runs."""
        return self.mode == Mode.ACTIVE


def verdict(command: Command, facts: ModelFacts | None) -> Verdict:
    """By the check of the server, and by what the server would find out at its start."""
    if facts is None:
        return _of(command, UNREAD, "a model that this vLLM does not serve")
    try:
        config = configuration(command, facts)
    except UnreadableFlagsError:
        return _of(command, UNREAD, "flags that this vLLM does not read")
    decision = support.decide(config)
    if decision.mode is not Mode.ACTIVE:
        against = (f.name for f in features_of(config) if f.mode is decision.mode)
        return _of(command, str(decision.mode), next(against, decision.reason))
    for name in facts.model_states:
        if name not in KNOWN_STATES:
            return _of(command, Mode.PASSIVE, f"inputs prepared in a way of their own ({name})")
    for name in facts.kv_kinds:
        if name not in versions.KV_CACHE_KINDS:
            return _of(command, Mode.PASSIVE, f"a KV cache of kind {name}")
    return _of(command, Mode.ACTIVE, "")


def _of(command: Command, mode: str, reason: str) -> Verdict:
    return Verdict(command.model, command.kind, str(mode), reason)


def reasons(found: Iterable[Verdict]) -> Mapping[str, int]:
    """What keeps the probe off, and in how many."""
    return dict(Counter(each.reason for each in found if not each.probes).most_common())
