"""The substitution of :mod:`benchmarks.verification_replay`, one kernel for each part of a step.

With PyTorch's operations it takes the host some fifty launches a step, eighteen of them in ways
that verify adaptively alone. Steps of few requests are as fast as their host, so that the benchmark
would slow down what it compares, and one way more than the other. Imported on GPUs alone, and by a
test that has Triton interpret it.
"""

# Triton reads the annotations of kernels: constexpr is one, a Python type is none.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.verification_streams import FIRST_TOKEN


@triton.jit
def _place(slot, all_tokens, stride, total, prompt, streams, FIRST: tl.constexpr):
    """The stream of the request in a slot, and tokens that its answer has so far."""
    first = tl.load(all_tokens + slot * stride).to(tl.int64)
    stream = ((first - FIRST) % streams + streams) % streams
    return stream, (tl.load(total + slot) - tl.load(prompt + slot)).to(tl.int64)


@triton.jit
def _row(place, rows):
    return ((place - 1) % rows + rows) % rows


@triton.jit
def _judge(
    slots, ends, all_tokens, stride, total, prompt, streams, places, recorded, accepted,
    tokens, token_stride, sampled, rejected,
    VERIFIED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    slot = tl.load(slots + request).to(tl.int64)
    stream, place = _place(slot, all_tokens, stride, total, prompt, streams, FIRST)
    later = tl.arange(0, BLOCK)
    found = tl.load(recorded + stream * places + (place + later) % places, mask=later < WIDTH)
    tl.store(tokens + request * token_stride + later, found, mask=later < WIDTH)
    if VERIFIED:
        drafts = (tl.load(ends + request + 1) - tl.load(ends + request) - 1).to(tl.int64)
        right = tl.minimum(tl.load(accepted + stream * places + _row(place, places)), drafts)
        reads = tl.load(sampled + request) == 0
        tl.store(sampled + request, tl.where(reads, 0, right + 1))
        tl.store(rejected + request, tl.where(reads, 0, drafts - right))


@triton.jit
def _draft(
    slots, all_tokens, stride, total, prompt, streams, places, recorded, drafts, draft_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    slot = tl.load(slots + request).to(tl.int64)
    stream, place = _place(slot, all_tokens, stride, total, prompt, streams, FIRST)
    later = tl.arange(0, BLOCK)
    found = tl.load(recorded + stream * places + (place + later) % places, mask=later < WIDTH)
    tl.store(drafts + request * draft_stride + later, found, mask=later < WIDTH)


@triton.jit
def _grade(
    slots, all_tokens, stride, total, prompt, streams, places, log_odds, kept, slope, intercepts,
    features, feature_stride, predictions, prediction_stride, confidences, confidence_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    slot = tl.load(slots + request).to(tl.int64)
    stream, place = _place(slot, all_tokens, stride, total, prompt, streams, FIRST)
    step = tl.arange(0, BLOCK)
    mask = step < WIDTH
    feature = tl.load(log_odds + (stream * places + _row(place, places)) * kept + step, mask=mask)
    bias = tl.load(intercepts + step, mask=mask)
    predicted = tl.sigmoid(tl.load(slope) * feature + bias)
    tl.store(features + slot * feature_stride + step, feature, mask=mask)
    tl.store(predictions + slot * prediction_stride + step, predicted, mask=mask)
    tl.store(confidences + request * confidence_stride + step, predicted, mask=mask)


class Kernels:
    """Like :class:`benchmarks.verification_replay.Replay`, whose methods' texts hold here.

    Args:
        states: the runner's ``RequestState``.
        log_odds: [streams, places, drafts], on the GPU, as all of these.
        accepted: [streams, places]
        tokens: [streams, places]
    """

    def __init__(self, states: Any, log_odds: Tensor, accepted: Tensor, tokens: Tensor) -> None:
        self._states = states
        self._log_odds, self._accepted, self._tokens = (
            one.contiguous() for one in (log_odds, accepted, tokens)
        )

    def _common(self) -> tuple[Any, ...]:
        states = self._states
        tokens = states.all_token_ids.gpu
        return (tokens, tokens.stride(0), states.total_len.gpu, states.prompt_len.gpu,
                *self._tokens.shape)  # fmt: skip

    @staticmethod
    def _sizes(width: int) -> dict[str, int]:
        return {"WIDTH": width, "BLOCK": triton.next_power_of_2(width), "FIRST": FIRST_TOKEN}

    def judge(self, slots: Tensor, ends: Tensor | None, sampled: Any) -> None:
        """Replace a step's tokens and how many of them there are, in place."""
        tokens = sampled.sampled_token_ids
        _judge[(len(slots),)](
            slots, slots if ends is None else ends, *self._common(), self._tokens,
            self._accepted, tokens, tokens.stride(0), sampled.num_sampled, sampled.num_rejected,
            VERIFIED=ends is not None, **self._sizes(tokens.shape[1]),
        )  # fmt: skip

    def draft(self, slots: Tensor, drafts: Tensor) -> Tensor:
        """The drafts that stand in the place of these, [requests, drafts]."""
        made = torch.empty_like(drafts)
        _draft[(len(slots),)](
            slots, *self._common(), self._tokens, made, made.stride(0),
            **self._sizes(made.shape[1]),
        )  # fmt: skip
        return made

    def grade(self, slots: Tensor, estimator: Any, confidences: Tensor) -> None:
        """Give vLLM's acceptance estimator the recorded features, and predict from them anew."""
        _grade[(len(slots),)](
            slots, *self._common(), self._log_odds, self._log_odds.shape[2], estimator.slope,
            estimator.intercepts, estimator.features, estimator.features.stride(0),
            estimator.predictions, estimator.predictions.stride(0), confidences,
            confidences.stride(0), **self._sizes(confidences.shape[1]),
        )  # fmt: skip
