"""The posterior of the curves t(N) / t(1) of cells, with intervals and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.kernel import Functionals, Hyperparameters, covariance, stacked
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.surface.prior import FloatArray, IntArray, Part, Prior
from vllm_nfp.surface.rows import Key, cell_rows, keys_of
from vllm_nfp.types import Basis, Module

DRAWS = 256
"""Curves that are drawn of a cell. The same random numbers for all: an answer changes with what is
measured, never by chance."""
NORMAL_TAIL = 1.959964
WIDER = 1.15
"""Factor on standard deviations: errors have longer tails than a normal distribution's. Chosen on
the replays of qwen2.5-7b, llama-3.2-1b, qwen3-235b-a22b, qwen3-14b and phi-3-mini."""
INFERRED = 0.5
"""Part of the prior's variance that must be gone for an answer to rest on measurements."""
AT_A_TIME = 8
"""Answers that are made before a pause: some 0.3 ms."""
JITTER = 3e-9

_DRAWN = np.random.default_rng(19).standard_normal((DRAWS, 513))


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """log t(N) / t(1) of one module at one batch size and context.

    Attributes:
        positions: N, ascending from 1, shape [n].
        log_ratio: its mean, 0 at N = 1, shape [n].
        covariance: shape [n, n].
        basis: of each N.
        curves: drawn t(N) / t(1), shape [draws, n].
    """

    module: Module
    batch_size: int
    context: int
    positions: IntArray
    log_ratio: FloatArray
    covariance: FloatArray
    basis: tuple[Basis, ...]
    curves: FloatArray

    @property
    def ratio(self) -> FloatArray:
        """Median t(N) / t(1), shape [n]."""
        return np.asarray(np.exp(self.log_ratio))

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """Both ends of the 95 % interval of t(N) / t(1), each of shape [n]."""
        reach = NORMAL_TAIL * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        return np.exp(self.log_ratio - reach), np.exp(self.log_ratio + reach)


@dataclass(frozen=True, slots=True)
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
    rows: Functionals
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
    blocks = [cell_rows(prior, module, (b, context), counts) for module, b, context in distinct]
    before = np.zeros((len(Part), len(blocks), len(counts), len(counts)))
    for part in Part:
        only = np.zeros(len(Part))
        only[part] = 1.0
        for i, (rows, _) in enumerate(blocks):
            alone = rows.scaled(only)
            before[part, i] = covariance(alone, alone, hyper)
    rows = stacked([rows for rows, _ in blocks])
    modules = [module for module, *_ in distinct for _ in counts]
    return Questions(
        distinct,
        counts,
        rows,
        np.array([expected for _, expected in blocks]),
        before,
        tuple(keys_of(modules, rows)),
    )


def answers(posterior: Posterior, asked: Questions) -> dict[tuple[Module, int, int], CellAnswer]:
    """An answer for each block of the questions; :func:`block_of` names a cell's."""
    blocks, width = asked.expected.shape
    means, cross = posterior.mean(asked.rows)
    give_way()
    after = np.einsum("p,pbij->bij", posterior.factors**2, asked.before)
    told = cross.reshape(len(cross), blocks, width).transpose(1, 0, 2)
    variance = np.diagonal(after, axis1=1, axis2=2).copy()
    weighed = (posterior.inverse @ cross).reshape(len(cross), blocks, width).transpose(1, 0, 2)
    give_way()
    after = WIDER**2 * (after - told.transpose(0, 2, 1) @ weighed)
    mean = asked.expected + means.reshape(blocks, width)
    give_way()
    curves = np.exp(_draws(mean, after))
    give_way()
    found = {}
    for i, block in enumerate(in_pieces(asked.asked, AT_A_TIME)):
        keys = asked.keys[i * width : (i + 1) * width]
        bases = _bases(posterior, keys, variance[i], np.diag(after[i]))
        found[block] = CellAnswer(*block, asked.counts, mean[i], after[i], bases, curves[i])
    return found


def block_of(module: Module, batch_size: int, context: int) -> tuple[Module, int, int]:
    """The block that answers for a cell: only attention knows a context."""
    return _alike(module, batch_size, context)


def _alike(module: Module, batch_size: int, context: int) -> tuple[Module, int, int]:
    known = module in (Module.ATTENTION, Module.MODEL)
    return module, batch_size, context if known else 0


def _draws(mean: FloatArray, spread: FloatArray) -> FloatArray:
    """Drawn curves of each cell; shape [cells, draws, n]."""
    size = mean.shape[1]
    # N = 1 has no variance: what is added moves no curve by 1e-4.
    roots = np.linalg.cholesky(spread + JITTER * np.eye(size))
    drawn = mean[:, None, :] + _DRAWN[None, :, :size] @ roots.transpose(0, 2, 1)
    drawn[:, :, 0] = 0.0
    return np.asarray(drawn)


def _bases(
    posterior: Posterior, keys: Sequence[Key], before: FloatArray, after: FloatArray
) -> tuple[Basis, ...]:
    near = after < INFERRED * before
    measured = [key in posterior.measured for key in keys]
    measured[0] = any(measured)  # N = 1 runs in every pair
    return tuple(
        Basis.MEASURED if pair else Basis.INFERRED if close else Basis.PREDICTED
        for pair, close in zip(measured, near, strict=True)
    )
