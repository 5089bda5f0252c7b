"""vLLM's adaptive verification: its cost tables, and what it admits at each step.

The V2 runner has a manager of it in 0.32 and 0.33, one on each tensor-parallel rank. At every step
with drafts, ``get_num_tokens`` reads both tables and chooses how many drafts are verified; each
rank chooses for itself, from the same numbers. No other runner has it.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.adapter import runner_v2, targets, versions
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.whole_steps import WholeSteps

if TYPE_CHECKING:
    from vllm_nfp.adapter.cut_steps import Capture, CutSteps

logger = logging.getLogger("vllm.nfp")

CHOOSE = "_assign_draft_token_budget_compiled"
"""vLLM's compiled choice of the drafts that are verified, in the manager's module."""
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

    def compile_choice(self) -> None:
        """Have vLLM compile its choice of drafts for all kinds of steps; takes seconds.

        vLLM compiles it at the first step that cuts drafts, and the step waits for that: 0.3 to
        2.5 s for each kind (H200, vLLM 0.33, 2026-11-28). What is computed here is not used.
        """
        import torch  # the flags' side of this module does without

        manager = self._manager
        choose = getattr(sys.modules[type(manager).__module__], CHOOSE, None)
        if choose is None:
            logger.warning("vllm-nfp: this vLLM has no %s to compile early", CHOOSE)
            return
        try:
            steps, confidences = manager.num_speculative_steps, manager._confidence_probs
            with torch.inference_mode():  # as steps run
                for requests, drafts in _kinds(steps, len(confidences)):
                    slots = torch.arange(requests, device=confidences.device)
                    capacities = manager._batch_draft_capacity[:requests]
                    capacities.fill_(steps)
                    choose(confidences, slots, capacities, drafts, steps)
        except Exception as error:  # steps compile it then, as without this
            logger.warning("vllm-nfp: vLLM's choice of drafts is not compiled early: %r", error)

    def cut_steps(self, capture: Capture) -> CutSteps | None:
        """A way to cut drafts that spares the host most of what vLLM's takes.

        vLLM compiles its ranking meanwhile, if it has not yet.

        Returns:
            None if vLLM's own way stays; the log says why.
        """
        from vllm_nfp.adapter import cut_steps  # with torch, as above

        return cut_steps.prepared(self._manager, capture)

    def spare_giving_out(self, patches: PatchSet, cut: CutSteps | None) -> None:
        """Spare the host most of what giving the admitted drafts to requests takes.

        Args:
            cut: gives them out where some are cut; None: vLLM does it.
        """
        whole = WholeSteps(self._manager)

        def around(original: Any) -> Any:
            return whole.around(original if cut is None else cut.around(original))

        patches.wrap(targets.REALLOCATE_DRAFTS, around, on=self._manager)

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


def _kinds(steps: int, most_requests: int) -> Iterator[tuple[int, int]]:
    """(requests, drafts to choose) of each kind that PyTorch compiles apart.

    It compiles for exactly 1 of either, and once for all larger numbers (PyTorch 2.13, seen in its
    log of recompilations). Numbers that happen to be equal would be taken to be so always.
    """
    taken = {steps, most_requests}
    requests = next(n for n in itertools.count(3) if n not in taken)
    for some in (min(requests, most_requests), 1):
        several = next(n for n in itertools.count(2) if n not in taken | {some})
        for drafts in (several, 1):
            if drafts < some * steps:  # else vLLM verifies all, and chooses none
                yield some, drafts


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
