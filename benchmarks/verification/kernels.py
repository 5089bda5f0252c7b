"""The substitution of :mod:`benchmarks.verification.replay`, one kernel for each part of a step.

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

from benchmarks.verification.streams import FIRST_TOKEN


@triton.jit
def _met(slots, all_tokens, stride, total, prompt, streams, FIRST: tl.constexpr):
    """This program's request: its slot, its stream, and tokens that its answer has so far."""
    slot = tl.load(slots + tl.program_id(0)).to(tl.int64)
    first = tl.load(all_tokens + slot * stride).to(tl.int64)
    stream = ((first - FIRST) % streams + streams) % streams
    return slot, stream, (tl.load(total + slot) - tl.load(prompt + slot)).to(tl.int64)


@triton.jit
def _row(place, rows):
    return ((place - 1) % rows + rows) % rows


@triton.jit
def _tokens(
    slots, all_tokens, stride, total, prompt, streams, places, recorded, tokens, token_stride,
    ends, accepted, sampled, rejected,
    VERIFIED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """The stream's next tokens; of a step that verifies drafts also how many are accepted."""
    request = tl.program_id(0)
    _, stream, place = _met(slots, all_tokens, stride, total, prompt, streams, FIRST)
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
def _grade(
    slots, all_tokens, stride, total, prompt, streams, places, log_odds, kept, slope, intercepts,
    features, feature_stride, predictions, prediction_stride, confidences, confidence_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    slot, stream, place = _met(slots, all_tokens, stride, total, prompt, streams, FIRST)
    step = tl.arange(0, BLOCK)
    mask = step < WIDTH
    feature = tl.load(log_odds + (stream * places + _row(place, places)) * kept + step, mask=mask)
    bias = tl.load(intercepts + step, mask=mask)
    predicted = tl.sigmoid(tl.load(slope) * feature + bias)
    tl.store(features + slot * feature_stride + step, feature, mask=mask)
    tl.store(predictions + slot * prediction_stride + step, predicted, mask=mask)
    tl.store(confidences + request * confidence_stride + step, predicted, mask=mask)


class Kernels:
    """Like :class:`benchmarks.verification.replay.Replay`, whose methods' texts hold here.

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
        if ends is None:
            self._replace(slots, tokens, (slots,) * 4, verified=False)
            return
        counts = ends, self._accepted, sampled.num_sampled, sampled.num_rejected
        self._replace(slots, tokens, counts, verified=True)

    def draft(self, slots: Tensor, drafts: Tensor) -> Tensor:
        """The drafts that stand in the place of these, [requests, drafts]."""
        made = torch.empty_like(drafts)
        self._replace(slots, made, (slots,) * 4, verified=False)
        return made

    def _replace(
        self, slots: Tensor, tokens: Tensor, counts: tuple[Tensor, ...], verified: bool
    ) -> None:
        """Fill in the tokens; without a verified draft the counts are not looked at."""
        _tokens[(len(slots),)](
            slots, *self._common(), self._tokens, tokens, tokens.stride(0), *counts,
            VERIFIED=verified, **self._sizes(tokens.shape[1]),
        )  # fmt: skip

    def grade(self, slots: Tensor, estimator: Any, confidences: Tensor) -> None:
        """Give vLLM's acceptance estimator the recorded features, and predict from them anew."""
        _grade[(len(slots),)](
            slots, *self._common(), self._log_odds, self._log_odds.shape[2], estimator.slope,
            estimator.intercepts, estimator.features, estimator.features.stride(0),
            estimator.predictions, estimator.predictions.stride(0), confidences,
            confidences.stride(0), **self._sizes(confidences.shape[1]),
        )  # fmt: skip
