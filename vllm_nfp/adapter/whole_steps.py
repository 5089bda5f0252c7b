"""Spares a step that verifies all its drafts the work of giving them out.

After vLLM's adaptive verification has chosen a number of drafts, the manager gives them to requests
on the device (``spec_decode/adaptive_verification.py``, ``reallocate_drafts``): some ten small
operations. Where all drafts are verified, none has to be ranked. ``prepare_inputs`` has just copied
where each request's tokens begin to the device, and where its logits begin follows from the planned
drafts. So one copy does what these operations do. They take 0.22 ms of the host's time a step
(H200, vLLM 0.33, 1 request, at even speed; benchmarks/results/2026-11-29-h200/turns).

The first such step runs vLLM's own way, and both results are compared. If they differ, vLLM's own
way stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

logger = logging.getLogger("vllm.nfp")

DIFFERS = "vLLM gives drafts out in another way than in 0.32 and 0.33"


class WholeSteps:
    """Gives the drafts out where none is cut, with vLLM's results.

    Args:
        manager: vLLM's ``AdaptiveVerificationManager``.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._others: tuple[Any, ...] | None = None
        """What vLLM returns beside the three results that are known: nothing in 0.32."""
        self._left_alone = False

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``reallocate_drafts`` with this in front."""

        def reallocate_drafts(req_ids: Sequence[str], idx_mapping: Any) -> Any:
            try:
                drafts = self._all_drafts(req_ids)
                if drafts is not None and self._others is not None:
                    return self._give_out(drafts, self._others)
            except Exception as error:
                self._leave_alone(repr(error))
                drafts = None
            if drafts is None:
                return original(req_ids, idx_mapping)
            return self._first(original, drafts, req_ids, idx_mapping)

        return reallocate_drafts

    def _all_drafts(self, req_ids: Sequence[str]) -> list[int] | None:
        """Drafts of each request, in the batch's order; None unless the step verifies all."""
        if self._left_alone:
            return None
        planned, _, verified = self._manager._batch_budget
        return [planned[name] for name in req_ids] if sum(planned.values()) == verified else None

    def _give_out(self, drafts: Sequence[int], others: tuple[Any, ...]) -> tuple[Any, ...]:
        from vllm.utils.torch_utils import async_tensor_h2d

        manager, starts = self._manager, self._logit_starts(drafts)
        ends = async_tensor_h2d(starts, out=manager._cu_num_logits[: len(starts)])
        manager._batch_budget = None
        return ends, manager.query_start_loc, sum(drafts), *others

    def _logit_starts(self, drafts: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """[requests + 1], where the logits of each begin, and where the last one's end."""
        starts = np.zeros(len(drafts) + 1, dtype=np.int32)
        np.cumsum(np.asarray(drafts) + self._manager.num_bonus_tokens, out=starts[1:])
        return starts

    def _first(
        self, original: Callable[..., Any], drafts: Sequence[int], *args: Any
    ) -> tuple[Any, ...]:
        """vLLM's own way, compared with this one."""
        there = self._manager.query_start_loc.clone()
        given: tuple[Any, ...] = original(*args)
        try:
            # A wait for the device, once in a server's life.
            alike = _alike(given, there, self._logit_starts(drafts), sum(drafts))
        except Exception as error:
            self._leave_alone(repr(error))
            return given
        if alike:
            self._others = given[3:]
        else:
            self._leave_alone(DIFFERS)
        return given

    def _leave_alone(self, why: str) -> None:
        self._left_alone = True
        logger.warning("vllm-nfp: drafts are given out as vLLM does it: %s", why)


def _alike(given: tuple[Any, ...], there: Any, starts: Any, drafts: int) -> bool:
    """Whether vLLM has made what was there already, and what is known beforehand."""
    ends, query_start_loc, verified, *others = given
    known = query_start_loc.shape == there.shape and bool((query_start_loc == there).all())
    return bool(
        known
        and verified == drafts
        and all(other is None for other in others)
        and np.array_equal(ends.cpu().numpy(), starts)
    )
