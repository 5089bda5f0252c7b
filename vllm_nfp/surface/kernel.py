"""How the errors of the prior hang together: the covariance of a Gaussian process over its parts.

The error of a part is log(measured / expected). A part that works on tokens errs alike at
neighbouring counts of tokens: a common factor, a smooth part, and a short-range part for the jumps
between kernels. Those are small while weights are read, and large once arithmetic bounds a product,
where the library picks kernels by their M. Attention errs alike at neighbouring B, N and L.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.prior import FloatArray, IntArray, Part

MUCH = 10_000
"""Covariances of which one part takes some tenths of a millisecond."""


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
class Hyperparameters:
    """Of every part, and of the observations; benchmarks/replay_fit.py says where they are from."""

    dense_ffn: TokenKernel
    moe_ffn: TokenKernel
    communication: TokenKernel
    other: TokenKernel
    attention: ShapeKernel
    step: ShapeKernel
    launch: float
    """Standard deviation of the log time of launches."""

    def of(self, part: Part) -> TokenKernel | ShapeKernel:
        """The kernel of a part other than LAUNCH."""
        kernels: dict[Part, TokenKernel | ShapeKernel] = {
            Part.DENSE_FFN: self.dense_ffn,
            Part.MOE_FFN: self.moe_ffn,
            Part.COMMUNICATION: self.communication,
            Part.OTHER: self.other,
            Part.ATTENTION: self.attention,
            Part.STEP: self.step,
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
        )


def matern(apart: FloatArray) -> FloatArray:
    """Matern correlation with smoothness 3/2."""
    scaled = np.sqrt(3.0) * apart
    return np.asarray((1.0 + scaled) * np.exp(-scaled))


@dataclass(frozen=True, slots=True)
class Functionals:
    """Rows that are weighted sums of the parts' errors at two shapes each.

    Attributes:
        shapes: (B, N, L), shape [rows, 2, 3].
        tokens: B N, shape [rows, 2].
        padded: the same with the padding to a CUDA graph.
        weights: shape [rows, 2, parts].
    """

    shapes: IntArray
    tokens: IntArray
    padded: IntArray
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.tokens)

    def scaled(self, factors: FloatArray) -> Functionals:
        """With errors of another size; one factor for each part."""
        return Functionals(self.shapes, self.tokens, self.padded, self.weights * factors)

    def __getitem__(self, rows: slice | IntArray) -> Functionals:
        return Functionals(
            self.shapes[rows], self.tokens[rows], self.padded[rows], self.weights[rows]
        )


def stacked(parts: list[Functionals]) -> Functionals:
    """All rows, one after the other."""
    return Functionals(
        np.concatenate([p.shapes for p in parts]),
        np.concatenate([p.tokens for p in parts]),
        np.concatenate([p.padded for p in parts]),
        np.concatenate([p.weights for p in parts]),
    )


def covariance(some: Functionals, others: Functionals, hyper: Hyperparameters) -> FloatArray:
    """Covariance between rows; shape [some, others]."""
    total = np.zeros((len(some), len(others)))
    for part in Part:
        left, right = some.weights[:, :, part], others.weights[:, :, part]
        mine, theirs = np.flatnonzero(left.any(axis=1)), np.flatnonzero(right.any(axis=1))
        if not (len(mine) and len(theirs)):
            continue
        if part is Part.LAUNCH:
            found = hyper.launch**2 * np.outer(left[mine].sum(axis=1), right[theirs].sum(axis=1))
        else:
            x, sums_x = _places(some, part, mine)
            y, sums_y = _places(others, part, theirs)
            found = sums_x @ hyper.of(part)(x, y) @ sums_y.T
        total[np.ix_(mine, theirs)] += found
        if total.size > MUCH:
            give_way()
    return total


def _places(rows: Functionals, part: Part, mine: IntArray) -> tuple[IntArray, FloatArray]:
    """The distinct places at which some rows ask for the part, and their sums over these.

    Returns:
        places [u] or [u, 3], and weights [mine, u].
    """
    if part in (Part.ATTENTION, Part.STEP):
        flat = rows.shapes[mine].reshape(-1, 3)
        keys = (flat[:, 0] << 44) | (flat[:, 1] << 32) | flat[:, 2]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        places = flat[first]
    else:
        tokens = rows.tokens if part is Part.MOE_FFN else rows.padded
        places, inverse = np.unique(tokens[mine].reshape(-1), return_inverse=True)
    sums = np.zeros((len(mine), len(places)))
    at, row = inverse.reshape(-1, 2), np.arange(len(mine))
    sums[row, at[:, 0]] = rows.weights[mine, 0, part]
    sums[row, at[:, 1]] += rows.weights[mine, 1, part]
    return places, sums
