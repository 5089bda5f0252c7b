"""Which CUDA graphs the first pass of a drafter runs in, on the model's attention metadata.

An EAGLE or MTP drafter takes over the metadata that the model's step was prepared with
(``spec_decode/target_dependent_ar/speculator.py``, ``propose``). They are those of as many requests
as the model's graph has. A FULL graph of another number of requests reads parts that are not set
(:mod:`vllm_nfp.draft.length_graphs`). So two things are done here:

- The first pass replays a FULL graph only with the number of requests that the metadata are of. It
  runs as PIECEWISE or without a graph otherwise, as it does in vLLM beside prompts.
- Under adaptive verification the model's FULL graphs take any mix of lengths, and have as many
  requests as tokens. vLLM captures the drafter's for uniform steps alone, of other numbers of
  requests. None of them fits the model's, so that each first pass is launched in pieces: 0.9 to
  2.1 ms of the host's time in place of 0.03 (docs/adaptive-verification.md). There the drafter's
  graphs are captured like the model's.

Ranks of several data-parallel engines agree on what they run, so that none may choose alone: their
drafters are left as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet

LeftAlone = Callable[[str], None]
"""Says once why vLLM's choice stays."""

PREPARED = "nfp_prepared"
"""Attribute of a drafter's manager of graphs, :class:`Prepared` while drafts are made; of a method
that tells it: True."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The step that the attention metadata were made for."""

    requests: int
    """With padding."""
    longest: int | None
    """Most tokens of a request; None beside prompts. vLLM looks for the model's graph with it."""


def prepared(batch: Any) -> Prepared:
    """What the metadata of a batch were made for."""
    longest = None if batch.has_prefill else int(batch.num_scheduled_tokens.max())
    return Prepared(batch.num_reqs_after_padding, longest)


def put_in_place(patches: PatchSet, left_alone: LeftAlone) -> None:
    """For the V2 runner of a release that is known to have both faults."""
    patches.wrap(targets.DRAFTER_GRAPHS, lambda original: _mixing(original, left_alone))
    patches.wrap(targets.DRAFTER_PROPOSE, lambda original: _telling(original, left_alone))
    patches.wrap(targets.DRAFTER_DISPATCH, _guarded)


def _mixing(original: Any, left_alone: LeftAlone) -> Any:
    """``init_cudagraph_manager``: graphs of any mix of lengths where the model has such."""

    @functools.wraps(original)
    def init_cudagraph_manager(self: Any, cudagraph_mode: Any, *args: Any, **kwargs: Any) -> None:
        original(self, cudagraph_mode, *args, **kwargs)
        try:
            if _mixes(self):
                made = self.prefill_cudagraph_manager
                self.prefill_cudagraph_manager = type(made)(
                    self.vllm_config,
                    self.device,
                    cudagraph_mode,
                    self.num_speculative_steps + 1,
                    varlen_decode=True,
                )
        except Exception as error:
            left_alone(f"{type(error).__name__}: {error}")

    return init_cudagraph_manager


def _mixes(drafter: Any) -> bool:
    """Whether the model's graphs take any mix of lengths, and this drafter can have such too.

    A drafter that cannot tell its confidences takes adaptive verification back when it is loaded.
    """
    if not drafter.enable_adaptive_verification or not _tells(type(drafter)):
        return False
    return drafter.dp_size == 1 and drafter.pcp_manager is None and _replay_any_mix(drafter)


def _replay_any_mix(drafter: Any) -> bool:
    """Whether graphs of all attention layers can; vLLM has asked the model's alone."""
    from vllm.v1.worker.gpu.attn_utils import get_varlen_cudagraph_unsupported_backend

    longest = drafter.num_speculative_steps + 1
    groups = drafter.target_attn_groups
    return get_varlen_cudagraph_unsupported_backend(groups, drafter.vllm_config, longest) is None


def _tells(kind: type[Any]) -> bool:
    """Whether drafters of this kind propose by the method that is followed."""
    return getattr(kind.propose, PREPARED, False)


def _telling(original: Any, left_alone: LeftAlone) -> Any:
    """``propose``: tells the manager which step the attention metadata were made for."""

    @functools.wraps(original)
    def propose(self: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            manager = self.prefill_cudagraph_manager if self.dp_size == 1 else None
            step = prepared(input_batch)
        except AttributeError as error:
            left_alone(str(error))
            manager = None
        if manager is None:
            return original(self, input_batch, *args, **kwargs)
        setattr(manager, PREPARED, step)
        try:
            return original(self, input_batch, *args, **kwargs)
        finally:
            setattr(manager, PREPARED, None)

    setattr(propose, PREPARED, True)
    return propose


def _guarded(original: Any) -> Any:
    """``dispatch``: of a drafter's first pass; that of every other pass is vLLM's."""

    @functools.wraps(original)
    def dispatch(
        self: Any, num_reqs: int, num_tokens: int, uniform_token_count: int | None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        step: Prepared | None = getattr(self, PREPARED, None)
        if step is not None and self.varlen_decode:
            kwargs["max_query_len"] = step.longest
        found = original(self, num_reqs, num_tokens, uniform_token_count, *args, **kwargs)
        if step is None or _fits(found, step):
            return found
        kwargs.pop("max_query_len", None)
        other = original(self, num_reqs, num_tokens, None, *args, **kwargs)
        if other.cg_mode.name != "FULL" and other.num_tokens == num_tokens:
            return other
        # Slots of the KV cache were made for these tokens, no more.
        return dataclasses.replace(
            found,
            cg_mode=type(found.cg_mode).NONE,
            num_tokens=num_tokens,
            num_reqs=num_reqs,
            uniform_token_count=None,
            max_query_len=None,
        )

    return dispatch


def _fits(found: Any, step: Prepared) -> bool:
    return bool(found.cg_mode.name != "FULL" or found.num_reqs == step.requests)
