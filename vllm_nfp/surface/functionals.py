"""Rows as weighted sums of the parts' errors, and the covariance between rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.parts import FloatArray, IntArray, Part

ALIKE = np.ones(len(Part))
OF_SHAPES = (Part.ATTENTION, Part.LINEAR_ATTENTION, Part.STEP, Part.CONTEXT)
OF_TOKENS = (Part.MOE_FFN, Part.ROUTING)
"""Padding is not routed."""
AT_A_TIME = 8
"""Rows whose variances are taken before a pause."""
MUCH = 2_000
"""Covariances of which one part takes some 0.1 ms."""


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


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows with the distinct places at which they ask for each part: what covariances are made of.

    Attributes:
        count: rows.
        parts: of each part that some row asks for: those rows [m], the places [u] or [u, 3], where
            among them each row asks [m, 2], and with what weights [m, 2].
    """

    count: int
    parts: Mapping[Part, tuple[IntArray, IntArray, IntArray, FloatArray]]


def placed(rows: Functionals) -> Placed:
    """The places of some rows; keep them where the same rows are asked for again and again."""
    parts = {}
    for part in Part:
        weights = rows.weights[:, :, part]
        mine = np.flatnonzero(weights.any(axis=1))
        if len(mine):
            parts[part] = (mine, *_places(rows, part, mine), weights[mine])
    return Placed(len(rows), parts)


def _places(rows: Functionals, part: Part, mine: IntArray) -> tuple[IntArray, IntArray]:
    if part in OF_SHAPES:
        flat = rows.shapes[mine].reshape(-1, 3)
        keys = (flat[:, 0] << 44) | (flat[:, 1] << 32) | flat[:, 2]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        return flat[first], inverse.reshape(-1, 2)
    tokens = rows.tokens if part in OF_TOKENS else rows.padded
    places, inverse = np.unique(tokens[mine].reshape(-1), return_inverse=True)
    return places, inverse.reshape(-1, 2)


def by_part(
    some: Placed, others: Placed, hyper: Hyperparameters
) -> Iterator[tuple[Part, IntArray, IntArray, FloatArray]]:
    """Covariance that each part gives, between those rows of both that ask for it."""
    for part, (mine, here, at, weights) in some.parts.items():
        if part not in others.parts:
            continue
        theirs, there, to, across = others.parts[part]
        if part is Part.LAUNCH:
            yield (
                part, mine, theirs,
                hyper.launch**2 * np.outer(weights.sum(axis=1), across.sum(axis=1)),
            )  # fmt: skip
            continue
        kernel = hyper.of(part)(here, there)
        left = weights[:, :1] * kernel[at[:, 0]] + weights[:, 1:] * kernel[at[:, 1]]
        found = left.take(to[:, 0], axis=1) * across[:, 0]
        found += left.take(to[:, 1], axis=1) * across[:, 1]
        yield part, mine, theirs, found


def covariance(
    some: Placed, others: Placed, hyper: Hyperparameters, factors: FloatArray = ALIKE
) -> FloatArray:
    """Covariance between rows; shape [some, others].

    Args:
        factors: on the standard deviation of each part's errors.
    """
    total = np.zeros((some.count, others.count))
    for part, mine, theirs, found in by_part(some, others, hyper):
        total[np.ix_(mine, theirs)] += factors[part] ** 2 * found
        if total.size > MUCH:
            give_way()
    return total


def variances(rows: Functionals, hyper: Hyperparameters, factors: FloatArray) -> FloatArray:
    """The variance of each row; shape [rows]."""
    blocks = [placed(rows[i : i + AT_A_TIME]) for i in range(0, len(rows), AT_A_TIME)]
    found = [np.diag(covariance(one, one, hyper, factors)) for one in in_pieces(blocks, 1)]
    return np.concatenate([np.zeros(0), *found])
