"""Questions and observations as weighted sums of the parts' errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from vllm_nfp.give_way import in_pieces
from vllm_nfp.surface.functionals import Functionals
from vllm_nfp.surface.parts import FloatArray, IntArray, Part
from vllm_nfp.surface.prior import Prior
from vllm_nfp.types import Module, Shape

AT_A_TIME = 24
"""Rows that are made before a pause: some 0.3 ms."""
Key: TypeAlias = "tuple[object, ...]"
"""What shapes have in common of which a pair of one is a pair of the other."""


def rows_at(
    prior: Prior,
    modules: Sequence[Module],
    shapes: Sequence[Shape],
    over_one: bool,
    content: Sequence[bool] | None = None,
) -> tuple[Functionals, FloatArray]:
    """Rows of log t of a module at a shape, or of log t(N) / t(1), and what the prior says.

    Args:
        modules: one for each shape.
        over_one: ratios.
        content: of each, whether the KV blocks that it reads have content; None: they all have.
    """
    at = np.zeros((len(shapes), 2, 3), dtype=np.int64)
    tokens = np.ones((len(shapes), 2), dtype=np.int64)
    padded = np.ones((len(shapes), 2), dtype=np.int64)
    weights = np.zeros((len(shapes), 2, len(Part)))
    expected = np.zeros(len(shapes))
    asked = zip(modules, shapes, content or [True] * len(shapes), strict=True)
    for i, (module, shape, has) in enumerate(in_pieces(asked, AT_A_TIME)):
        cell = prior(shape.batch_size, shape.context)
        log_seconds, part = cell.log_seconds(module, has), cell.weights(module, has)
        for j, n in enumerate((shape.positions, 1)):
            at[i, j] = shape.batch_size, n, shape.context
            tokens[i, j], padded[i, j] = cell.tokens[n - 1], cell.padded[n - 1]
        weights[i, 0] = part[:, shape.positions - 1]
        expected[i] = log_seconds[shape.positions - 1]
        if over_one:
            weights[i, 1] = -part[:, 0]
            expected[i] -= log_seconds[0]
    return Functionals(at, tokens, padded, weights), expected


def cell_rows(
    prior: Prior, module: Module, cell: tuple[int, int], counts: IntArray
) -> tuple[Functionals, FloatArray]:
    """Rows of log t(N) / t(1) at each N of a cell, and what the prior says."""
    known = prior(*cell)
    at = counts - 1
    log_seconds, weights = known.log_seconds(module), known.weights(module)
    shapes = np.ones((len(at), 2, 3), dtype=np.int64)
    shapes[:, :, 0], shapes[:, :, 2] = cell
    shapes[:, 0, 1] = counts
    tokens = np.stack([known.tokens[at], np.full(len(at), known.tokens[0])], axis=1)
    padded = np.stack([known.padded[at], np.full(len(at), known.padded[0])], axis=1)
    both = np.zeros((len(at), 2, len(Part)))
    both[:, 0], both[:, 1] = weights[:, at].T, -weights[:, 0]
    return Functionals(shapes, tokens, padded, both), log_seconds[at] - log_seconds[0]


def keys_of(
    modules: Sequence[Module], rows: Functionals, content: Sequence[bool] | None = None
) -> list[Key]:
    """The key of each row; an FFN's and a recurrent layer's know no context.

    A whole step on KV blocks without content is no measurement of the one with content.

    Args:
        content: as of :func:`rows_at`.
    """
    asked = zip(modules, content or [True] * len(modules), strict=True)
    return [
        (module, *_place(module, rows, i), *(() if has or module is not Module.MODEL else (has,)))
        for i, (module, has) in enumerate(asked)
    ]


def _place(module: Module, rows: Functionals, i: int) -> list[int]:
    if module is Module.MOE_FFN:
        return list(rows.tokens[i].tolist())
    if module in (Module.DENSE_FFN, Module.COMMUNICATION):
        return list(rows.padded[i].tolist())
    if module is Module.LINEAR_ATTENTION:
        return list(rows.shapes[i, 0, :2].tolist())
    return list(rows.shapes[i, 0].tolist())
