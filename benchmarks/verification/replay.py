"""Puts recorded drafts in the place of a model's own, in vLLM's V2 runner.

Dummy weights give confidences that say nothing. With this, a request whose prompt begins with the
token of a stream (:mod:`benchmarks.verification.streams`) meets that stream's drafts:

- what is drafted and sampled are the stream's tokens, in the order of the places;
- as many of the drafts that are verified are accepted as the stream says of the request's place,
  whatever the logits are, so that every way of choosing drafts meets the same acceptances;
- the feature that vLLM's acceptance estimator reads is the stream's. The estimator's fit, the
  prediction from it and all choices stay vLLM's own.

The model, the drafter, the sampler and the estimator run as ever before their results are
replaced. All is done on the GPU, without waiting for it: one kernel after sampling, one after
drafting, and one where drafts are verified adaptively (:mod:`benchmarks.verification.kernels`).
vLLM 0.32 and 0.33, V2 runner, one GPU. :mod:`benchmarks.verification.extension` puts it into a
server.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.verification.streams import FIRST_TOKEN, Streams


class Substitution(Protocol):
    """What stands in the place of a model's own drafts."""

    def judge(self, slots: Tensor, ends: Tensor | None, sampled: Any) -> None:
        """See :meth:`Replay.judge`."""

    def draft(self, slots: Tensor, drafts: Tensor) -> Tensor:
        """See :meth:`Replay.draft`."""

    def grade(self, slots: Tensor, estimator: Any, confidences: Tensor) -> None:
        """See :meth:`Replay.grade`."""


def substitution(states: Any, streams: Streams, device: torch.device) -> Substitution:
    """The one for a device: kernels of its own on a GPU, where each launch takes the host time."""
    plain = Replay(states, streams, device)
    if device.type != "cuda":
        return plain
    from benchmarks.verification.kernels import Kernels

    return Kernels(states, *plain.recorded)


class Replay:
    """The substitution in one runner, with PyTorch's operations.

    Args:
        states: the runner's ``RequestState``.
        streams: what requests meet.
        device: of the runner.
    """

    def __init__(self, states: Any, streams: Streams, device: torch.device) -> None:
        self._states = states
        self._log_odds = torch.from_numpy(streams.log_odds).to(device)
        self._accepted = torch.from_numpy(streams.accepted).to(device)
        self._tokens = torch.from_numpy(streams.tokens).to(device)
        self._later = torch.arange(streams.log_odds.shape[2] + 1, device=device)

    @property
    def recorded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log odds, accepted drafts and tokens of the streams, on the device."""
        return self._log_odds, self._accepted, self._tokens

    def _places(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Streams of the requests in these slots, and tokens that their answers have so far."""
        states = self._states
        streams = (states.all_token_ids.gpu[slots, 0].long() - FIRST_TOKEN) % len(self._tokens)
        return streams, (states.total_len.gpu[slots] - states.prompt_len.gpu[slots]).long()

    def _next_tokens(self, streams: Tensor, places: Tensor, number: int) -> Tensor:
        at = (places[:, None] + self._later[:number]) % self._tokens.shape[1]
        return self._tokens[streams[:, None], at]

    def _rows(self, places: Tensor) -> Tensor:
        """Row i of a trace is what is drafted once i + 1 tokens are there."""
        return (places - 1) % self._accepted.shape[1]

    def judge(self, slots: Tensor, ends: Tensor | None, sampled: Any) -> None:
        """Replace a step's tokens and how many of them there are, in place.

        Args:
            slots: of the batch's requests.
            ends: [requests + 1], where the logits of each begin and end; None without drafts.
            sampled: the step's ``SamplerOutput``; it says of a request that still reads its
                prompt that nothing was sampled.
        """
        streams, places = self._places(slots)
        tokens = sampled.sampled_token_ids
        tokens.copy_(self._next_tokens(streams, places, tokens.shape[1]))
        if ends is None:
            return
        drafts = ends[1:] - ends[:-1] - 1
        right = torch.minimum(self._accepted[streams, self._rows(places)], drafts)
        reads = sampled.num_sampled == 0
        sampled.num_sampled.copy_(torch.where(reads, 0, right + 1))
        sampled.num_rejected.copy_(torch.where(reads, 0, drafts - right))

    def draft(self, slots: Tensor, drafts: Tensor) -> Tensor:
        """The drafts that stand in the place of these, [requests, drafts]."""
        return self._next_tokens(*self._places(slots), drafts.shape[1]).to(drafts.dtype)

    def grade(self, slots: Tensor, estimator: Any, confidences: Tensor) -> None:
        """Give vLLM's acceptance estimator the recorded features, and predict from them anew."""
        streams, places = self._places(slots)
        features = self._log_odds[streams, self._rows(places)][:, : confidences.shape[1]]
        predicted = torch.sigmoid(estimator.slope * features + estimator.intercepts)
        estimator.features[slots] = features
        estimator.predictions[slots] = predicted
        confidences[: len(slots)] = predicted


OWN_COSTS_AT = (*(2**n for n in range(10)), 513, 640, 768, 896, 1024)
"""Tokens, up to the largest graph and beyond it."""


def own_costs(manager: Any) -> dict[str, list[tuple[int, float]]]:
    """Some of the costs that vLLM's adaptive verification has timed at its start.

    Returns:
        dict: ``draft_ms`` by requests and ``verify_ms`` by tokens, as (size, milliseconds).
    """
    if manager.cost_tables is None:
        return {}
    return {
        name: [(at, float(table[at])) for at in OWN_COSTS_AT if at < len(table)]
        for name, table in zip(("draft_ms", "verify_ms"), manager.cost_tables, strict=True)
    }


def install(runner: Any, replay: Substitution) -> None:
    """Put it into a V2 runner that has warmed up."""
    sample = runner.sample

    def judged(hidden_states: Any, batch: Any, grammar: Any) -> Any:
        output, number, rejected = sample(hidden_states, batch, grammar)
        verified = batch.num_draft_tokens > 0
        replay.judge(batch.idx_mapping, batch.cu_num_logits if verified else None, output)
        return output, number, rejected

    runner.sample = judged
    if runner.speculator is None:
        return
    propose = runner.speculator.propose

    def drafted(*args: Any, **kwargs: Any) -> Any:
        drafts = propose(*args, **kwargs)
        # The batch of a real step is the first argument; dummy steps name theirs.
        return drafts if kwargs.get("dummy_run") else replay.draft(args[0].idx_mapping, drafts)

    runner.speculator.propose = drafted
    manager = runner.adaptive_verification
    if manager is None:
        return
    record, estimator = manager.record_confidences, runner.speculator.acceptance_estimator

    def graded(confidences: Tensor, batch: Any) -> None:
        replay.grade(batch.idx_mapping, estimator, confidences)
        record(confidences, batch)

    manager.record_confidences = graded
