"""Gives the drafts of a step that cuts some to requests in one CUDA graph.

vLLM's adaptive verification has a compiled ranking and some ten small operations for that
(``spec_decode/adaptive_verification.py``, ``reallocate_drafts``): 0.8 to 1.0 ms of the host's time
at 16 and more requests (H200, vLLM 0.33, 2026-11-29, benchmarks/results/2026-11-29-h200-tensors).
Here the same is done by one copy to the device, one on it, and one graph, for steps of up to
MOST_SLOTS drafts. vLLM's ranking takes the number of drafts to admit as an argument of the host's,
so that no graph could hold it: here all drafts are sorted, and that number is read on the device.

Before it is put in place each size has given out some drafts as vLLM does; else vLLM's way stays.
Among drafts of equal confidence, those of earlier requests come first, in place of any. So ranks
that must cut alike all have this way, or none has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

logger = logging.getLogger("vllm.nfp")

MOST_SLOTS = 1024
"""Requests times drafts of each, of a step. PyTorch sorts so many in one kernel, in the memory of
one block of threads (``Sort.cu``)."""
DIFFERS = "vLLM cuts drafts in another way than in 0.32 and 0.33"
ON_HOST = "this server needs each request's admitted drafts on the host"
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes operations on the device; returns what does them once more. It may hold the addresses of
tensors that they read, and not the tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class Size:
    """Steps of so many requests and fewer.

    Attributes:
        planned: [1 + 2 * requests] int32: drafts to admit, then of each request the drafts that
            are there, then its other tokens. Both are 0 for requests that are not there.
        slots: [requests] int64, where the manager keeps each request's confidences.
        ranking: kept because a CUDA graph reads its tensors, and holds only their addresses.
        give_out: fills the manager's buffers from these.
    """

    planned: torch.Tensor
    slots: torch.Tensor
    ranking: Ranking
    give_out: Callable[[], None]

    @property
    def requests(self) -> int:
        """Most of a step."""
        return len(self.slots)


def prepared(manager: Any, capture: Capture) -> CutSteps | None:
    """For one rank's ``AdaptiveVerificationManager``; vLLM compiles its ranking meanwhile.

    Returns:
        None if vLLM's own way stays; the log says why.
    """
    steps = CutSteps(manager)
    try:
        with torch.inference_mode():  # as steps run
            why = steps.prepare(capture)
    except Exception as error:
        why = repr(error)
    if why:
        logger.warning("vllm-nfp: drafts are cut as vLLM does it: %s", why)
    return None if why else steps


class CutSteps:
    """Gives the drafts out where some are cut, with vLLM's results.

    Args:
        manager: vLLM's ``AdaptiveVerificationManager``.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._sizes: tuple[Size, ...] = ()
        self._others: tuple[Any, ...] = ()
        """What vLLM returns beside the three results that are known: nothing in 0.32."""

    def prepare(self, capture: Capture) -> str:
        """Make all sizes; why vLLM's way stays, empty if each gives drafts out as vLLM does."""
        manager = self._manager
        if getattr(manager, "_copy_admitted_drafts_to_host", False):
            return ON_HOST
        self._sizes = tuple(self._made(requests, capture) for requests in _sizes(manager))
        with _other_confidences(manager):
            alike = all(self._alike(size.requests) for size in self._sizes)
        return "" if alike else DIFFERS

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``reallocate_drafts`` with this in front."""

        def reallocate_drafts(req_ids: Sequence[str], idx_mapping: Any) -> Any:
            try:
                found = self.give_out(req_ids, idx_mapping)
            except Exception as error:  # what no other rank meets is the device's, and ends it
                self._sizes = ()
                logger.warning("vllm-nfp: drafts are cut as vLLM does it: %r", error)
                found = None
            return original(req_ids, idx_mapping) if found is None else found

        return reallocate_drafts

    def give_out(self, req_ids: Sequence[str], idx_mapping: Any) -> tuple[Any, ...] | None:
        """vLLM's results; None for a step that has more requests, or verifies all its drafts."""
        from vllm.utils.torch_utils import async_tensor_h2d

        manager, count = self._manager, len(req_ids)
        size = next((one for one in self._sizes if one.requests >= count), None)
        if size is None:
            return None
        drafts, others, admitted = manager._batch_budget
        if admitted >= sum(drafts.values()):
            return None
        numbers = np.zeros(len(size.planned), dtype=np.int32)
        numbers[0] = admitted
        numbers[1 : 1 + count] = [drafts[name] for name in req_ids]
        numbers[1 + size.requests :][:count] = [others[name] for name in req_ids]
        async_tensor_h2d(numbers, out=size.planned)
        size.slots[:count].copy_(idx_mapping)
        size.give_out()
        manager._batch_budget = None
        return manager._cu_num_logits[: count + 1], manager.query_start_loc, admitted, *self._others

    def _made(self, requests: int, capture: Capture) -> Size:
        manager = self._manager
        device = manager._confidence_probs.device
        planned = torch.zeros(1 + 2 * requests, dtype=torch.int32, device=device)
        slots = torch.zeros(requests, dtype=torch.int64, device=device)
        ranking = Ranking(requests, manager.num_speculative_steps, device)
        give_out = capture(lambda: _give_out(manager, ranking, planned, slots))
        return Size(planned, slots, ranking, give_out)

    def _alike(self, requests: int) -> bool:
        """Whether vLLM fills its buffers as this does, for full and for smaller steps.

        Every second request lacks its last draft.
        """
        steps = self._manager.num_speculative_steps
        for count in sorted({requests, max(1, requests - 1)}):
            drafts = [steps - index % 2 for index in range(count)]
            there = sum(drafts)
            trials = (n for n in sorted({0, 1, there // 2, there - 1}) if n < there)
            if not all(self._alike_for(drafts, admitted) for admitted in trials):
                return False
        return True

    def _alike_for(self, of_each: Sequence[int], admitted: int) -> bool:
        manager, count = self._manager, len(of_each)
        names = [str(index) for index in range(count)]
        # Not in the batch's order, as in a server that has run for a while.
        slots = torch.arange(count, device=manager._confidence_probs.device).flip(0)
        drafts = dict(zip(names, of_each, strict=True))
        others = {name: 1 + index % 2 for index, name in enumerate(names)}
        manager._batch_budget = drafts, others, admitted
        own = self._copied(manager.reallocate_drafts(names, slots))
        manager._batch_budget = drafts, others, admitted
        found = self.give_out(names, slots)
        return found is not None and own == self._copied(found)

    def _copied(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Results of a step as lists; a wait for the device."""
        ends, query_start_loc, admitted, *others = given
        if any(other is not None for other in others):
            raise RuntimeError(DIFFERS)
        self._others = tuple(others)
        return ends.tolist(), query_start_loc.tolist(), admitted


class Ranking:
    """Ranks all drafts of a step by how probably they are reached and accepted.

    Args:
        requests: most of a step.
        steps: drafts of a request.
    """

    def __init__(self, requests: int, steps: int, device: Any) -> None:
        slots = requests * steps
        self._steps = torch.arange(steps, device=device)
        self._ranks = torch.arange(slots, device=device)
        self._earlier_first = self._ranks.flip(0)
        """[slots]: of equally probable drafts the earlier request's come first."""

    def admit(
        self, confidences: torch.Tensor, drafts: torch.Tensor, budget: torch.Tensor, out: Any
    ) -> None:
        """How many drafts of each request are among the best of all.

        Args:
            confidences: [requests, steps] float32, that a draft is accepted if the ones before are.
            drafts: [requests], that are there.
            budget: [1], drafts to admit; no more than there are.
            out: [requests], filled.
        """
        there = self._steps < drafts[:, None]
        survival = confidences.cumprod(dim=1).flatten()
        # Floats that are not negative are ordered like the whole numbers of the same bits. Others
        # count as 0: as many drafts as were counted on must come before those that are not there.
        bits = survival.view(torch.int32).clamp(min=0).masked_fill(~there.flatten(), -1)
        order = bits.to(torch.int64) * len(bits) + self._earlier_first
        best_first = order.argsort(descending=True)
        among = torch.empty_like(there).flatten().scatter_(0, best_first, self._ranks < budget)
        admitted = among.view_as(there) & there
        torch.sum(admitted, dim=1, dtype=out.dtype, out=out)


def _give_out(manager: Any, ranking: Ranking, planned: torch.Tensor, slots: torch.Tensor) -> None:
    """All that ``reallocate_drafts`` leaves on the device."""
    count = len(slots)
    drafts, others = planned[1 : 1 + count], planned[1 + count :]
    admitted = manager._batch_draft_capacity[:count]
    ranking.admit(manager._confidence_probs[slots], drafts, planned[:1], admitted)
    _ends(admitted + manager.num_bonus_tokens, manager._cu_num_logits)
    _ends(admitted + others, manager.query_start_loc)
    # Requests that are not there begin where the last one ends.
    rest = manager.query_start_loc[count + 1 :]
    rest.copy_(manager.query_start_loc[count].expand_as(rest))


def _ends(lengths: torch.Tensor, out: torch.Tensor) -> None:
    """Where each length ends, behind a 0."""
    out[:1].zero_()
    torch.cumsum(lengths, dim=0, out=out[1 : len(lengths) + 1])


def _sizes(manager: Any) -> Iterator[int]:
    """Powers of two and the manager's own, in order."""
    most, steps = len(manager._confidence_probs), manager.num_speculative_steps
    powers = (1 << power for power in range(most.bit_length()))
    for requests in sorted({*powers, most}):
        if requests <= most and requests * steps <= MOST_SLOTS:
            yield requests


@contextmanager
def _other_confidences(manager: Any) -> Iterator[None]:
    """Confidences that all differ, for as long as this is open."""
    there, budget = manager._confidence_probs.clone(), manager._batch_budget
    count, steps = there.shape
    made = torch.linspace(0.5, 0.99, count * steps, device=there.device)
    # Neighbours in memory are far apart in rank.
    apart = torch.arange(count * steps, device=there.device) * 7919 % (count * steps)
    try:
        manager._confidence_probs.copy_(made[apart].view(count, steps))
        yield
    finally:
        manager._confidence_probs.copy_(there)
        manager._batch_budget = budget
