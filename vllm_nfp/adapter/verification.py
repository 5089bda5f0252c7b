"""vLLM's adaptive verification: its cost tables, and what it admits at each step.

The V2 runner has a manager of it in 0.32 and 0.33, one on each tensor-parallel rank. At every step
with drafts, ``get_num_tokens`` reads both tables and chooses how many drafts are verified; each
rank chooses for itself, from the same numbers. No other runner has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.adapter import runner_v2, targets, versions
from vllm_nfp.adapter.patch import PatchSet

FIRST_RELEASE = (0, 32)
"""The first with adaptive verification."""
WITHOUT_CONFIDENCES = ("ngram", "ngram_gpu", "suffix")
"""Draft methods that vLLM 0.32 and 0.33 never verify adaptively: no draft model gives them
confidences (sources, ``v1/worker/gpu/spec_decode/speculator.py``)."""
Tables: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64]]"
"""Milliseconds of drafting by requests, and of verifying by tokens."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What became of the drafts of one step."""

    requests: int
    scheduled: int
    """Drafts that were there."""
    drafts: int
    """Those of them that are verified."""
    tokens: int
    """All tokens of the step."""


class AdaptiveVerification:
    """One rank's manager.

    Args:
        manager: vLLM's ``AdaptiveVerificationManager``.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    @property
    def positions(self) -> int:
        """Most positions per sequence of a step."""
        return int(self._manager.num_speculative_steps + self._manager.num_bonus_tokens)

    @property
    def tables(self) -> Tables | None:
        """The tables in force; None before vLLM has timed its dummy steps."""
        found: Tables | None = self._manager.cost_tables
        return found

    @tables.setter
    def tables(self, tables: Tables | None) -> None:
        self._manager.cost_tables = tables

    def expected(self, request_ids: list[str], admitted: Admitted) -> float:
        """Drafts that vLLM expects to be accepted in the step that it has just planned."""
        if not admitted.drafts:
            return 0.0
        manager = self._manager
        slots = [manager.req_states.req_id_to_index[name] for name in request_ids]
        confidences = manager._stale_confidences[manager._stale_idx].np[slots]
        survival = np.cumprod(confidences.astype(np.float64), axis=1)
        scheduled, _, _ = manager._batch_budget
        lengths = np.array([scheduled[name] for name in request_ids])
        there = np.arange(survival.shape[1]) < lengths[:, None]
        return float(np.sort(survival[there])[::-1][: admitted.drafts].sum())

    def hook(
        self,
        patches: PatchSet,
        before: Callable[[Mapping[str, int]], None],
        after: Callable[[list[str], Admitted], None],
    ) -> None:
        """Call both around each choice; they must not raise.

        Args:
            before: takes the tokens that the scheduler has planned, by request.
            after: takes the requests and what was admitted.
        """

        def get_num_tokens(original: Any) -> Any:
            def wrapped(num_tokens: Mapping[str, int], draft_tokens: Any) -> int:
                before(num_tokens)
                tokens: int = original(num_tokens, draft_tokens)
                drafts, _, budget = self._manager._batch_budget
                scheduled = sum(drafts.values())
                after(list(num_tokens), Admitted(len(num_tokens), scheduled, budget, tokens))
                return tokens

            return wrapped

        patches.wrap(targets.GET_NUM_TOKENS, get_num_tokens, on=self._manager)


def verification_of(runner: Any) -> AdaptiveVerification | None:
    """The adaptive verification of a model runner; None if it has none."""
    modules = {cls.__module__ for cls in type(runner).__mro__}
    if runner_v2.MODULE not in modules or not versions.is_since(FIRST_RELEASE):
        return None
    manager = runner.adaptive_verification
    return None if manager is None else AdaptiveVerification(manager)


def verifies_adaptively(speculation: Any) -> bool:
    """Whether vLLM itself chooses at every step which drafts are verified."""
    return versions.is_since(FIRST_RELEASE) and bool(speculation.enable_adaptive_verification)
