"""Looks for a change of the machine in each pair, and says which shapes to run to be sure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_nfp.surface.drift import CONTRADICTS, IN_A_ROW, Before, Change, Watch, nearest
from vllm_nfp.surface.noise import scatter
from vllm_nfp.surface.pool import Pool
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.types import Module, Shape

LEAST_MOVE, LEAST_MOVE_WITH_EXPERTS = 0.005, 0.02
"""Standard deviation of what moves from pair to pair without any change of the machine; where
experts are routed, another draw of tokens wakes other ones."""
CHECK_EVERY, CHECK_AGE = 8, 60.0
"""A known shape is run again, to see whether the machine has changed, when so many pairs were of
new ones; its own last pair must be so many seconds old."""
CHECKS = 2
"""Known shapes near a suspected one that run with it."""


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
            noise: standard deviation of pairs in CUDA graphs.
            posterior: of the pairs before it.
        """
        self._unchecked += 1
        suspected = self._watch.before(shape)
        before = suspected or self._before(shape, noise)
        if before is None:
            return None
        self._unchecked = 0
        if not before.contradicted_by(log_ratio):
            self._watch.agrees(shape)
            return None
        if suspected is None and self._was_doubted(shape, before, log_ratio, posterior):
            return None
        return self._watch.contradicts(shape, before, log_ratio, now)

    def _before(self, shape: Shape, noise: float) -> Before | None:
        """What is known of a shape; None where that cannot show a change."""
        seen = self._pool.seen(Module.MODEL, shape)
        if seen is None or seen.doubt or self._pool.ran_without_graph(shape):
            return None
        own = max(noise, scatter([seen.gaps], noise))
        least = LEAST_MOVE_WITH_EXPERTS if self._pool.routed else LEAST_MOVE
        deviation = math.hypot(own * (1.0 + 1.0 / len(seen.values)) ** 0.5, least)
        return Before(seen.center, len(seen.values), deviation)

    def _was_doubted(
        self, shape: Shape, before: Before, log_ratio: float, posterior: Posterior
    ) -> bool:
        """Whether the earlier pairs were in doubt, and this one agrees with all other shapes."""
        if shape not in posterior.doubted:
            return False
        content = self._pool.has_content(Module.MODEL, shape)
        mean, variance = posterior.log_ratio(shape, content)
        from_all = math.copysign(1.0, log_ratio - before.center) * (log_ratio - mean)
        return from_all <= CONTRADICTS * math.hypot(variance**0.5, before.deviation)

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
        suspects = self._watch.suspects
        single = [shape for shape in suspects if suspects.count(shape) < IN_A_ROW]
        odd = tuple(dict.fromkeys((*single, *doubted, *suspects)))
        if not odd:
            old = [s for s in usable if self._pool.latest(s) < now - CHECK_AGE]
            if self._unchecked < CHECK_EVERY or not old:
                return ()
            # Where a step takes many times t(1), a change of clock or bandwidth shows most.
            return (max(old, key=self._pool.log_ratio),)
        since = min(self._watch.since, now)
        kept = [s for s in usable if self._pool.latest(s) < since and s not in odd]
        like = suspects[0] if suspects else odd[0]
        first = odd[: max(1, len(single))]
        return first + nearest(kept, like, CHECKS if suspects else 1) + odd[len(first) :]
