"""What a draft length is chosen for: acceptance, the cost of drafts, and bounds on the length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypeAlias

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.curve import StepCurve

LARGEST_DRAFT_LENGTH = 512
LARGEST_DRAFT_COST = 1e6
"""Seconds, or steps without drafts: far above any draft model, and sums of it stay finite."""
TWO_SIDED_95 = 1.96
"""Standard errors on either side of a normal value's 95 % interval."""
DEFAULT_SLACK = 0.005
"""Fraction of the goodput that is given up for a shorter draft. That costs less memory and sampling
time, which the curve does not include. On recorded H100 steps, replayed, 96.7 % of the lengths were
within 2 % of the best with it, 97.5 % without any slack, and 93.0 % with 0.01
(docs/draft-lengths.md)."""


StepSeconds: TypeAlias = Callable[[int, int, int], float]
"""Seconds that drafting adds to a step: of (batch size, context, K)."""


@dataclass(frozen=True, slots=True)
class DraftCost:
    """Time to make the drafts of one step: t_draft(K).

    A lookup counts nothing at K = 0. A head or draft model runs on every step, even at K = 0, to
    keep its KV cache in sync; that pass costs one drafted token (vLLM 0.32, both runners).
    :mod:`vllm_nfp.draft.methods` says what each method runs.

    Raises:
        ValueError: for a cost below 0 or above :data:`LARGEST_DRAFT_COST`.
    """

    seconds_once: float = 0.0
    share_once: float = 0.0
    """As a fraction of t(1)."""
    seconds_per_token: float = 0.0
    share_per_token: float = 0.0
    """As a fraction of t(1), for each drafted token."""
    once_at_zero: bool = False
    """What is spent once a step is spent at K = 0 too: one pass of a drafter, not a lookup."""
    by_batch: tuple[tuple[int, float], ...] = ()
    """(batch size, seconds of a drafted token there), ascending; the nearest batch size goes before
    ``seconds_per_token``."""
    steps: StepSeconds | None = field(default=None, compare=False)
    """Predicted: beside the others, at each batch size, context and K, 0 included."""
    note: str | None = field(default=None, compare=False)
    """What ``steps`` rests on, in words."""

    def __post_init__(self) -> None:
        for name, value in self.numbers().items():
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"a draft's cost must be 0 or more, not {value:g} ({name})")
            if value > LARGEST_DRAFT_COST:
                raise ValueError(
                    f"a draft's cost must be at most {LARGEST_DRAFT_COST:g}, not {value:g} ({name})"
                )

    def numbers(self) -> dict[str, float]:
        """The cost as it was given, JSON-serializable."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type == "float"}

    def ratio(self, draft_length: int, curve: StepCurve) -> float:
        """t_draft(K) / t(1) at the curve's batch size and context."""
        one = curve.seconds_at_one
        once = self.share_once + self.seconds_once / one
        each = self.share_per_token + self._token_seconds(curve.batch_size) / one
        ratio = once + draft_length * each
        if draft_length == 0:
            ratio = once if self.once_at_zero else each
        if self.steps is None:
            return ratio
        return ratio + self.steps(curve.batch_size, curve.context, draft_length) / one

    def _token_seconds(self, batch_size: int) -> float:
        """Of the nearest batch size that was measured, in octaves; the larger of two."""
        if not self.by_batch:
            return self.seconds_per_token
        return min(self.by_batch, key=lambda of: (abs(math.log2(of[0] / batch_size)), -of[0]))[1]


FREE = DraftCost()


@dataclass(frozen=True, slots=True)
class Gain:
    """Tokens per second at one draft length over those at another, with a 95 % interval."""

    value: float
    lower: float | None
    """None: not known, as the upper end."""
    upper: float | None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a draft length is chosen for."""

    acceptance: Acceptance
    cost: DraftCost = FREE
    max_draft_length: int | None = None
    """None: as far as the curve and the acceptance are known, up to LARGEST_DRAFT_LENGTH."""
    epsilon: float = 0.1
    slack: float = DEFAULT_SLACK
    draft_lengths: tuple[int, ...] | None = None
    """Lengths to choose from, ascending, besides K = 0; None: every length."""

    running: int | None = None
    """Draft length that the server runs now; None: not known."""

    host_seconds: float = 0.0
    """What a server's real step takes beyond its work on the device, whatever K."""

    drafted_fraction: float | None = None
    """Fraction of a server's steps, by sequence, that had a draft; None: not known. Gains are of
    steps with a draft."""

    def knows(self, draft_length: int) -> bool:
        """Whether the acceptance of drafts of this length is known."""
        return self.acceptance.longest is None or draft_length <= self.acceptance.longest

    def longest(self, curve: StepCurve) -> int:
        """Largest K that may be chosen on this curve."""
        return self.lengths(curve)[-1]

    def lengths(self, curve: StepCurve) -> tuple[int, ...]:
        """Every K that may be chosen on this curve, ascending from 0 on."""
        limits = (
            curve.largest - 1,
            self.acceptance.longest,
            self.max_draft_length,
            LARGEST_DRAFT_LENGTH,
        )
        most = min(limit for limit in limits if limit is not None)
        if self.draft_lengths is None:
            return tuple(range(most + 1))
        return (0, *(k for k in self.draft_lengths if 0 < k <= most))

    def is_cap(self, draft_length: int) -> bool:
        """Whether this is the longest draft that was allowed."""
        return draft_length == self.max_draft_length or (
            self.draft_lengths is not None and draft_length == max((0, *self.draft_lengths))
        )

    def gain(self, curve: StepCurve, draft_length: int, over: int | None = None) -> float:
        """Tokens per second over those of a server without speculation.

        Never more than the tokens of a step: no step with drafts is quicker than one without,
        whatever noisy pairs say.

        Args:
            over: compare with a server that drafts so many tokens instead.
        """
        gain = self._gain(curve, draft_length, curve.ratio(draft_length + 1))
        return gain if over is None else gain / self.gain(curve, over)

    def gain_interval(
        self, curve: StepCurve, draft_length: int, over: int | None = None
    ) -> tuple[float, float]:
        """95 % interval of the gain: of the step's time, and of acceptance that was counted.

        Two compared steps count as independent, which they mostly are not: rather too wide than
        too narrow. 0 and infinite where an end is not known.
        """
        other = over or 0
        down, up = self._spread(curve, draft_length)
        their_down, their_up = self._spread(curve, other) if other else (0.0, 0.0)
        error = TWO_SIDED_95 * self.acceptance.relative_error(draft_length, other)
        gain = self.gain(curve, draft_length, over)
        return (
            gain * math.exp(-math.hypot(down, their_up, error)),
            gain * math.exp(math.hypot(up, their_down, error)),
        )

    def gain_over(self, curve: StepCurve, draft_length: int, running: int | None) -> Gain | None:
        """The gain over the draft length that a server runs; None where that is not known."""
        if running is None or running >= curve.largest or not self.knows(running):
            return None
        if draft_length == running:
            return Gain(1.0, 1.0, 1.0)
        lower, upper = self.gain_interval(curve, draft_length, running)
        return Gain(
            self.gain(curve, draft_length, running),
            lower or None,
            upper if upper < math.inf else None,
        )

    def _spread(self, curve: StepCurve, draft_length: int) -> tuple[float, float]:
        """How far the step's time lets the gain's logarithm be lower, and higher."""
        lower, upper = curve.interval(draft_length + 1)
        gain, least, most = (
            self._gain(curve, draft_length, ratio)
            for ratio in (curve.ratio(draft_length + 1), upper, lower)
        )
        up = math.log(max(1.0, most / gain)) if lower else math.inf
        return math.log(gain / least) if least else math.inf, up

    def work_ratio(self, curve: StepCurve, verified: int) -> float:
        """A step that verifies so many drafts, over t(1): without the time of drafting."""
        return self._whole(curve, curve.ratio(verified + 1))

    def _gain(self, curve: StepCurve, draft_length: int, ratio: float) -> float:
        host = self.host_seconds / curve.seconds_at_one
        whole = self._whole(curve, ratio, self.cost.ratio(draft_length, curve))
        return self.acceptance.expected_tokens(draft_length) * (1.0 + host) / whole

    def _whole(self, curve: StepCurve, ratio: float, drafting: float = 0.0) -> float:
        """A step over t(1), with the host's time; none is quicker than one without drafts."""
        return max(1.0, ratio) + drafting + self.host_seconds / curve.seconds_at_one
