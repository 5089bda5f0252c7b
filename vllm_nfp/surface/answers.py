"""The posterior of the curves t(N) / t(1) of cells, with intervals and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.functionals import Placed, by_part, placed, stacked
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.parts import FloatArray, IntArray, Part, SingleArray
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.surface.prior import Prior
from vllm_nfp.surface.rows import Key, cell_rows, keys_of
from vllm_nfp.types import Basis, Module

DRAWS = 256
"""Curves that are drawn of a cell. The same random numbers for all: an answer changes with what is
measured, never by chance."""
NORMAL_TAIL = 1.959964
TAIL = 0.025
"""Chance of each side of an interval to miss."""
WIDER = 1.15
"""Factor on standard deviations: errors have longer tails than a normal distribution's. Chosen on
the replays of qwen2.5-7b, llama-3.2-1b, qwen3-235b-a22b, qwen3-14b and phi-3-mini."""
INFERRED = 0.5
"""Part of the prior's variance that must be gone for an answer to rest on measurements."""
AT_A_TIME = 8
"""Answers that are made before a pause: some 0.3 ms."""
DRAWN_AT_A_TIME = 24
"""Cells whose curves are drawn or sorted before a pause: some 0.3 ms."""
JITTER = 3e-6
"""Relative to the largest variance of a cell: it moves no curve by more than some 1e-4."""

_BASES = np.array([Basis.PREDICTED, Basis.INFERRED, Basis.MEASURED], dtype=object)
_DRAWN = np.random.default_rng(19).standard_normal((513, DRAWS)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """log t(N) / t(1) of one module at one batch size and context.

    Attributes:
        positions: N, ascending from 1, shape [n].
        log_ratio: its mean, 0 at N = 1, shape [n].
        covariance: shape [n, n].
        basis: of each N.
        curves: drawn t(N) / t(1), shape [draws, n].
        limits: for each N, what 97.5 %, half and 2.5 % of the curves do not pass up to it, and what
            97.5 % do not pass at it; shape [4, n].
    """

    module: Module
    batch_size: int
    context: int
    positions: IntArray
    log_ratio: FloatArray
    covariance: FloatArray
    basis: tuple[Basis, ...]
    curves: SingleArray
    limits: tuple[tuple[float, ...], ...]

    @property
    def ratio(self) -> FloatArray:
        """Median t(N) / t(1), shape [n]."""
        return np.asarray(np.exp(self.log_ratio))

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """Both ends of the 95 % interval of t(N) / t(1), each of shape [n]."""
        reach = NORMAL_TAIL * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        return np.exp(self.log_ratio - reach), np.exp(self.log_ratio + reach)


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """What is asked again and again: all that depends on no measurement is computed once.

    Attributes:
        asked: (module, batch size, context) of each block of rows.
        counts: N, the same in all blocks, shape [n].
        rows: of log t(N) / t(1), one block after the other.
        expected: what the prior says, shape [blocks, n].
        before: prior covariance by part at factor 1, shape [parts, blocks, n, n].
        keys: of each row.
    """

    asked: tuple[tuple[Module, int, int], ...]
    counts: IntArray
    rows: Placed
    expected: FloatArray
    before: FloatArray
    keys: tuple[Key, ...]


def questions(
    prior: Prior,
    hyper: Hyperparameters,
    asked: Sequence[tuple[Module, int, int]],
    positions: Sequence[int],
) -> Questions:
    """Ask for modules in cells, all at the same positions.

    Args:
        asked: (module, batch size, context).
        positions: N, ascending from 1, up to the prior's last.
    """
    counts = np.array(positions, dtype=np.int64)
    distinct = tuple(dict.fromkeys(_alike(*one) for one in asked))
    # Each may evaluate the prior in one more cell: a millisecond.
    blocks = [
        cell_rows(prior, module, (b, context), counts)
        for module, b, context in in_pieces(distinct, 1)
    ]
    before = np.zeros((len(Part), len(blocks), len(counts), len(counts)))
    for i, (rows, _) in enumerate(in_pieces(blocks, 1)):
        alone = placed(rows)
        for part, mine, theirs, found in by_part(alone, alone, hyper):
            before[part, i][np.ix_(mine, theirs)] = found
    at = placed(stacked([rows for rows, _ in blocks]))
    give_way()
    keys = [
        key
        for (module, *_), (rows, _) in in_pieces(zip(distinct, blocks, strict=True), AT_A_TIME)
        for key in keys_of([module] * len(counts), rows)
    ]
    expected = np.array([expected for _, expected in blocks])
    return Questions(distinct, counts, at, expected, before, tuple(keys))


def answers(posterior: Posterior, asked: Questions) -> dict[tuple[Module, int, int], CellAnswer]:
    """An answer for each block of the questions; :func:`block_of` names a cell's."""
    blocks, width = asked.expected.shape
    book = posterior.book
    cross = book.towards(posterior.slots, asked, asked.rows)
    give_way()
    mean = asked.expected + (posterior.solved @ cross).reshape(blocks, width)
    told = posterior.root.times(cross).reshape(-1, blocks, width)
    prior = np.tensordot(book.factors**2, asked.before, axes=1)
    give_way()
    before = np.diagonal(prior, axis1=1, axis2=2)
    after = np.array(prior, dtype=np.float64)
    for at in in_pieces(range(0, blocks, DRAWN_AT_A_TIME), 1):
        some = told[:, at : at + DRAWN_AT_A_TIME]
        after[at : at + DRAWN_AT_A_TIME] -= some.transpose(1, 2, 0) @ some.transpose(1, 0, 2)
    near = np.diagonal(after, axis1=1, axis2=2) < INFERRED * before
    give_way()
    after *= WIDER**2
    curves = _draws(mean, after)
    limits = [
        limit
        for at in in_pieces(range(0, blocks, DRAWN_AT_A_TIME), 1)
        for limit in limits_of(curves[at : at + DRAWN_AT_A_TIME]).tolist()
    ]
    bases = _bases(posterior.measured, asked.keys, near)
    give_way()
    found = {}
    for i, block in enumerate(in_pieces(asked.asked, AT_A_TIME)):
        found[block] = CellAnswer(
            *block, asked.counts, mean[i], after[i], tuple(bases[i]), curves[i].T, tuple(limits[i])
        )
    give_way()
    return found


def block_of(module: Module, batch_size: int, context: int) -> tuple[Module, int, int]:
    """The block that answers for a cell: only attention knows a context."""
    return _alike(module, batch_size, context)


def _alike(module: Module, batch_size: int, context: int) -> tuple[Module, int, int]:
    known = module in (Module.ATTENTION, Module.MODEL)
    return module, batch_size, context if known else 0


def _draws(mean: FloatArray, spread: FloatArray) -> SingleArray:
    """Drawn curves of each cell; shape [cells, n, draws]."""
    size = mean.shape[1]
    # N = 1 has no variance, and rounding may take some from others.
    jitter = JITTER * np.maximum(1e-3, np.diagonal(spread, axis1=1, axis2=2).max(axis=1))
    roots = np.linalg.cholesky(spread + jitter[:, None, None] * np.eye(size))
    give_way()
    drawn = np.empty((len(mean), size, DRAWS), dtype=np.float32)
    for at in in_pieces(range(0, len(mean), DRAWN_AT_A_TIME), 1):
        some = drawn[at : at + DRAWN_AT_A_TIME]
        np.matmul(roots[at : at + DRAWN_AT_A_TIME].astype(np.float32), _DRAWN[:size], out=some)
        some += mean[at : at + DRAWN_AT_A_TIME, :, None].astype(np.float32)
        some[:, 0] = 0.0
        np.exp(some, out=some)
    return drawn


def limits_of(curves: SingleArray) -> SingleArray:
    """Of curves [cells, n, draws], see :class:`CellAnswer`; shape [cells, 4, n]."""
    last = curves.shape[2] - 1
    ends = [last - round(share * last) for share in (TAIL, 0.5, 1.0 - TAIL)]
    alone = np.sort(curves, axis=2)[:, :, ends[0]]
    give_way()
    so_far = curves.copy()
    for n in range(1, curves.shape[1]):  # much faster than maximum.accumulate
        np.maximum(so_far[:, n - 1], curves[:, n], out=so_far[:, n])
    give_way()
    so_far.sort(axis=2)
    give_way()
    return np.stack([*(so_far[:, :, end] for end in ends), alone], axis=1)


def _bases(
    measured: frozenset[Key], keys: Sequence[Key], near: NDArray[np.bool_]
) -> list[list[Basis]]:
    """What the answers of each block rest on, [blocks][n].

    t(1) / t(1) is 1 and has no variance. It rests on the pairs of its cell, which all ran N = 1.
    Without one it rests on what the next N rests on: a boundary at N = 1 says that this one is over
    the line.

    Args:
        keys: of each row, block by block.
        near: whether measurements say much of it, shape [blocks, n].
    """
    run = np.array([key in measured for key in keys], dtype=bool).reshape(near.shape)
    rests = np.where(run, 2, near.astype(np.int64))
    rests[:, 0] = np.where(run.any(axis=1), 2, rests[:, :2].max(axis=1))
    found: list[list[Basis]] = _BASES[rests].tolist()
    return found
