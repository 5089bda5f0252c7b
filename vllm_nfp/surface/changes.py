"""Looks for a change of the machine in each pair, and says which shapes to run to be sure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_nfp.surface.drift import CONTRADICTS, LEAST_MOVE, Change, Watch, nearest
from vllm_nfp.surface.pool import Pool
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.types import Module, Shape

CHECK_EVERY, CHECK_AGE = 8, 60.0
"""A known shape is run again, to see whether the machine has changed, when so many pairs were of
new ones; its own last pair must be so many seconds old."""


class Changes:
    """Compares pairs of known shapes with what the pool has of them.

    Args:
        pool: what was measured; read, never changed.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._watch = Watch()
        self._unchecked = 0

    def pair(
        self, shape: Shape, log_ratio: float, noise: float, posterior: Posterior, now: float
    ) -> Change | None:
        """A pair that is not in the pool yet.

        Args:
            log_ratio: of the whole step.
            noise: its standard deviation.
            posterior: of the pairs before it.
        """
        seen = self._pool.seen(Module.MODEL, shape)
        self._unchecked += 1
        if seen is None or seen.doubt:
            return None
        self._unchecked = 0
        known = self._watch.before(shape)
        before = seen.center if known is None else known
        usual = noise**2 * (1.0 + 1.0 / len(seen.values)) + LEAST_MOVE**2
        apart = log_ratio - before
        if abs(apart) <= CONTRADICTS * usual**0.5:
            self._watch.agrees(shape)
            return None
        if known is None and shape in posterior.doubted:
            mean, variance = posterior.log_ratio(shape)
            from_all = (log_ratio - mean) / (variance + noise**2) ** 0.5
            if math.copysign(from_all, apart * from_all) <= CONTRADICTS:
                return None
        return self._watch.contradicts(shape, before, len(seen.values), apart, now)

    def suspect(self) -> None:
        """Real steps have moved: a known shape should run again soon."""
        self._unchecked = CHECK_EVERY

    def to_run(
        self, usable: Sequence[Shape], doubted: Sequence[Shape], now: float
    ) -> tuple[Shape, ...]:
        """Shapes that contradict what is known, with a known one near them; or one to be checked.

        Args:
            usable: known shapes with a CUDA graph.
            doubted: shapes that contradict the posterior.
            now: moment of the last update.
        """
        odd = tuple(dict.fromkeys((*self._watch.suspects, *doubted)))
        if not odd:
            old = [s for s in usable if self._pool.latest(s) < now - CHECK_AGE]
            if self._unchecked < CHECK_EVERY or not old:
                return ()
            # Where a step takes many times t(1), a change of clock or bandwidth shows most.
            return (max(old, key=self._pool.log_ratio),)
        since = min(self._watch.since, now)
        kept = [s for s in usable if self._pool.latest(s) < since and s not in odd]
        check = nearest(kept, odd[0])
        return odd[:1] + (() if check is None else (check,)) + odd[1:]
