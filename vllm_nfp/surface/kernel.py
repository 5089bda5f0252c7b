"""How the errors of the prior hang together: the covariance of a Gaussian process over its parts.

The error of a part is log(measured / expected). A part that works on tokens errs alike at
neighbouring counts of tokens: a common factor, a smooth part, and a short-range part for the jumps
between kernels. Those are small while weights are read, and large once arithmetic bounds a product,
where the library picks kernels by their M. Attention errs alike at neighbouring B, N and L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from vllm_nfp.surface.parts import FloatArray, IntArray, Part


@dataclass(frozen=True, slots=True)
class TokenKernel:
    """Of a part whose time depends on the tokens of the step alone.

    Standard deviations are of log time, lengths of log tokens.
    """

    scale: float
    smooth: float
    smooth_length: float
    short: float
    """At few tokens."""
    short_many: float
    """What comes on top at many tokens."""
    knee: float
    """Tokens at which half of it is there."""
    short_length: float

    def __call__(self, some: IntArray, others: IntArray) -> FloatArray:
        """Covariance between counts of tokens; shape [some, others]."""
        x, y = np.log(some), np.log(others)
        apart = np.abs(x[:, None] - y[None, :])
        jumps = self._jumps(some)[:, None] * self._jumps(others)[None, :]
        return np.asarray(
            self.scale**2
            + self.smooth**2 * matern(apart / self.smooth_length)
            + jumps * np.exp(-apart / self.short_length)
        )

    def scaled(self, factor: float) -> TokenKernel:
        """The standard deviations times ``factor``."""
        return replace(
            self,
            scale=self.scale * factor,
            smooth=self.smooth * factor,
            short=self.short * factor,
            short_many=self.short_many * factor,
        )

    def _jumps(self, tokens: IntArray) -> FloatArray:
        reached = 1.0 / (1.0 + (self.knee / tokens) ** 3)
        return np.asarray(self.short + self.short_many * reached)


@dataclass(frozen=True, slots=True)
class ShapeKernel:
    """Of a part whose time depends on B, N and L; lengths are of their logarithms."""

    scale: float
    smooth: float
    batch_length: float
    positions_length: float
    context_length: float
    short: float
    short_length: float
    """Of log N."""

    def __call__(self, some: IntArray, others: IntArray) -> FloatArray:
        """Covariance between shapes (B, N, L), each [n, 3]; shape [some, others]."""
        x, y = np.log(np.maximum(some, 1)), np.log(np.maximum(others, 1))
        batch, positions, context = (
            np.abs(x[:, None, i] - y[None, :, i])
            / (self.batch_length, self.positions_length, self.context_length)[i]
            for i in range(3)
        )
        cell = batch**2 + context**2
        smooth = matern(np.sqrt(cell + positions**2))
        jumps = np.exp(-positions * self.positions_length / self.short_length - np.sqrt(cell))
        return np.asarray(self.scale**2 + self.smooth**2 * smooth + self.short**2 * jumps)

    def scaled(self, factor: float) -> ShapeKernel:
        """The standard deviations times ``factor``."""
        return replace(
            self,
            scale=self.scale * factor,
            smooth=self.smooth * factor,
            short=self.short * factor,
        )


@dataclass(frozen=True, slots=True)
class RoutingKernel:
    """Of how many experts a probe activates on KV blocks without content, as log time of experts.

    One token activates a known number. Several activate fewer than independent ones would where
    their hidden states are alike, which grows with depth: a few layers that are timed alone do not
    show it.
    """

    smooth: float
    """At many tokens."""
    smooth_length: float
    """Of log tokens."""

    def __call__(self, some: IntArray, others: IntArray) -> FloatArray:
        """Covariance between counts of tokens; shape [some, others]."""
        apart = np.abs(np.log(some)[:, None] - np.log(others)[None, :])
        sizes = (1.0 - 1.0 / some)[:, None] * (1.0 - 1.0 / others)[None, :]
        return np.asarray(self.smooth**2 * sizes * matern(apart / self.smooth_length))

    def scaled(self, factor: float) -> RoutingKernel:
        """The standard deviation times ``factor``."""
        return replace(self, smooth=self.smooth * factor)


ROUTING = RoutingKernel(0.15, 6.0)
"""A choice, not a fit. Blocks that no real sequence has written hold zeros, or anything. With dummy
weights the experts of a whole step of Qwen3-30B-A3B took as long there as its layers do that are
timed alone (an H200), or at 8 to 64 tokens alike 0.26 to 0.31 less in log time (an H100:
benchmarks/results/2026-11-28-h100-at-defaults)."""
CONTEXT = ShapeKernel(0.3, 0.15, 2.0, 1.0, 2.0, 0.0, 1.0)
"""Of the share s of :mod:`vllm_nfp.surface.whole_step`: how independent a sequence's positions are.

A choice, not a fit, after a look at the only true measurements so far, of a deep model with dummy
weights (benchmarks/results/2026-11-28-h200x4-at-defaults, moe and moe-again): s was 0.2 to 0.3 at
nearly all shapes, and 0.25 to 0.55 at two positions.
"""
LINEAR_ATTENTION = ShapeKernel(0.0723, 0.0714, 2.11, 6.0, math.inf, 0.0122, 0.312)
"""A choice, not a fit: attention's, but for the context, of which a state knows nothing. No
recorded run has timed such layers."""


AnyKernel: TypeAlias = TokenKernel | ShapeKernel | RoutingKernel


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Of every part, and of the observations; benchmarks/answers/replay_fit.py fits them."""

    dense_ffn: TokenKernel
    moe_ffn: TokenKernel
    communication: TokenKernel
    other: TokenKernel
    attention: ShapeKernel
    step: ShapeKernel
    launch: float
    """Standard deviation of the log time of launches."""
    routing: RoutingKernel = ROUTING
    context: ShapeKernel = CONTEXT
    linear_attention: ShapeKernel = LINEAR_ATTENTION

    def of(self, part: Part) -> AnyKernel:
        """The kernel of a part other than LAUNCH."""
        kernels: dict[Part, AnyKernel] = {
            Part.DENSE_FFN: self.dense_ffn,
            Part.MOE_FFN: self.moe_ffn,
            Part.COMMUNICATION: self.communication,
            Part.OTHER: self.other,
            Part.ATTENTION: self.attention,
            Part.STEP: self.step,
            Part.ROUTING: self.routing,
            Part.CONTEXT: self.context,
            Part.LINEAR_ATTENTION: self.linear_attention,
        }
        return kernels[part]

    def wider(self, factor: float) -> Hyperparameters:
        """All parts' standard deviations times ``factor``: for a prior that knows little."""
        return Hyperparameters(
            self.dense_ffn.scaled(factor),
            self.moe_ffn.scaled(factor),
            self.communication.scaled(factor),
            self.other.scaled(factor),
            self.attention.scaled(factor),
            self.step.scaled(factor),
            self.launch * factor,
            self.routing.scaled(factor),
            self.context.scaled(factor),
            self.linear_attention.scaled(factor),
        )


def matern(apart: FloatArray) -> FloatArray:
    """Matern correlation with smoothness 3/2."""
    scaled = np.sqrt(3.0) * apart
    return np.asarray((1.0 + scaled) * np.exp(-scaled))
