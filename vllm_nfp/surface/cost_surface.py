"""One server's cost surface while it serves: pairs and real steps in, answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from vllm_nfp.surface.answers import CellAnswer, Questions, answers, block_of, questions
from vllm_nfp.surface.chooser import Candidate, Concern, Decisions, rank
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.observations import Observations
from vllm_nfp.surface.pool import PAIRS_KEPT, SHAPES_KEPT, Pool
from vllm_nfp.surface.posterior import Posterior, condition, launch_time
from vllm_nfp.surface.prior import Prior, with_launch
from vllm_nfp.surface.seconds import Seconds, seconds_at_one
from vllm_nfp.types import Module, PairResult, Shape

LAUNCH_KNOWN = 0.5
"""Part of the prior's deviation below which the prior's launch time is replaced."""
QUESTIONS_KEPT = 4
"""Sets of cells and positions of which the prior's part is kept."""
OLD_SECONDS = 300.0
"""An update is taken after so long although nothing was added: what is known has aged."""
CellKey: TypeAlias = "tuple[Module, int, int]"
Cells: TypeAlias = "tuple[tuple[int, int], ...]"


class CostSurface:
    """Gathers what a server measures, and answers with intervals.

    Not thread safe: one thread in the background uses it.

    Args:
        prior: of the server's model and device.
        hyper: how far the prior errs.
        warm: what an earlier profile of the same model and device says.
        pairs_kept: of a shape; older ones leave.
        min_samples: pairs of a shape from which on its basis is called measured.
        shapes_kept: of pairs, those with the latest ones.
    """

    def __init__(
        self,
        prior: Prior,
        hyper: Hyperparameters,
        warm: Observations = Observations(),  # noqa: B008  (it cannot be changed)
        pairs_kept: int = PAIRS_KEPT,
        min_samples: int = 1,
        shapes_kept: int = SHAPES_KEPT,
    ) -> None:
        self._expected, self._hyper, self._warm = prior, hyper, warm
        self._min_samples = min_samples
        self._modules = prior(1, 1).modules
        self._pool = Pool(pairs_kept, shapes_kept)
        self._left_out: set[Module] = set()
        self._questions: dict[tuple[Cells, tuple[int, ...]], Questions] = {}
        self._told: dict[CellKey, Seconds | None] = {}
        self._asked: Cells = ()
        self._seen, self._version, self._changed = warm, 0, False
        self._updated = 0.0
        self._prior, self._posterior = self._conditioned(warm)
        self.jumps = 0

    @property
    def version(self) -> int:
        """Rises with each update that changed something."""
        return self._version

    @property
    def left_out(self) -> frozenset[Module]:
        """Modules that were measured and that the prior does not know: nothing is said of them."""
        return frozenset(self._left_out)

    def add_pair(self, result: PairResult, now: float) -> None:
        """A pair of runs; one beyond the prior's last N is ignored.

        Args:
            now: seconds on a clock that does not jump.
        """
        shape = result.many.shape
        if not self._knows(shape):
            return
        many = {Module.MODEL: result.many.step_seconds, **result.many.modules}
        one = {Module.MODEL: result.one.step_seconds, **result.one.modules}
        self._left_out |= set(many) - set(self._modules)
        many = {module: s for module, s in many.items() if module in self._modules}
        self._pool.add_pair(shape, many, one, now, result.many.execution == "full")
        self._changed = True

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """The median time of some real steps of a shape; one beyond the last N is ignored."""
        if self._knows(shape):
            self._pool.add_step(shape, seconds, now)
            self._changed = True

    def _knows(self, shape: Shape) -> bool:
        cell = self._expected(shape.batch_size, shape.context)
        return 1 <= shape.positions <= len(cell.log_step)

    def update(self, now: float) -> None:
        """Take the posterior of all that was added; gives way."""
        if not self._changed and now - self._updated < OLD_SECONDS:
            return
        self._changed, self._updated = False, now
        self._seen = self._warm + self._pool.compressed(now)
        before = self._prior
        self._prior, self._posterior = self._conditioned(self._seen)
        if self._prior is not before:
            self._questions.clear()
        self._told.clear()
        self._version += 1

    def _conditioned(self, seen: Observations) -> tuple[Prior, Posterior]:
        """The posterior, and the prior that it is of: with launches as they were measured."""
        posterior = condition(self._expected, self._hyper, seen, self._min_samples)
        log_factor, deviation = launch_time(posterior)
        if deviation > LAUNCH_KNOWN * self._hyper.launch:
            return self._expected, posterior
        prior = with_launch(self._expected, log_factor, deviation)
        return prior, condition(prior, self._hyper, seen, self._min_samples)

    def answers(
        self, cells: Sequence[tuple[int, int]], positions: Sequence[int]
    ) -> Mapping[CellKey, CellAnswer]:
        """What the last update says of every module of the prior in every cell.

        Args:
            cells: (batch size, context).
            positions: N, ascending from 1, up to the prior's last.
        """
        self._asked = tuple(dict.fromkeys(cells))
        wanted = [(module, *cell) for module in self._modules for cell in self._asked]
        found = answers(self._posterior, self._question(wanted, tuple(positions)))
        return {one: found[block_of(*one)] for one in wanted}

    def _question(self, wanted: Sequence[CellKey], positions: tuple[int, ...]) -> Questions:
        key = self._asked, positions
        kept = self._questions.pop(key, None)
        if kept is None:
            kept = questions(self._prior, self._hyper, wanted, positions)
        self._questions[key] = kept  # the latest is the last
        if len(self._questions) > QUESTIONS_KEPT:
            del self._questions[next(iter(self._questions))]
        return kept

    def seconds_at_one(self, module: Module, batch_size: int, context: int) -> Seconds | None:
        """t(1) as the probe times it: the whole step, or the mean over one layer's module.

        Returns:
            Seconds: the median, and both ends of the 95 % interval. None where neither the prior
            nor a pair says anything in seconds.
        """
        key = module, batch_size, context
        if key not in self._told:
            cells = (
                self._asked if (batch_size, context) in self._asked else ((batch_size, context),)
            )
            found = seconds_at_one(
                self._prior, self._posterior, self._seen.baselines, module, cells
            )
            self._told |= {(module, *c): s for c, s in zip(cells, found, strict=True)}
        return self._told[key]

    def samples(self, module: Module, shape: Shape) -> int:
        """Pairs kept of this very shape."""
        return self._pool.samples(module, shape)

    def choose(
        self,
        candidates: Sequence[Candidate],
        concerns: Sequence[Concern],
        decisions: Decisions,
        most: int,
    ) -> tuple[Shape, ...]:
        """The shapes whose pairs should run next, best first; gives way.

        Doubted shapes come first, whether they are candidates or not: they were run before.
        """
        doubted = self._posterior.doubted[:most]
        rest = [candidate for candidate in candidates if candidate.shape not in doubted]
        if not (rest and concerns) or len(doubted) == most:
            return doubted
        best = rank(
            self._prior,
            self._posterior,
            rest,
            concerns,
            decisions,
            self._noise,
            most - len(doubted),
        )
        return doubted + tuple(candidate.shape for candidate in best)

    def _noise(self, shape: Shape) -> float:
        cell = self._prior(shape.batch_size, shape.context)
        return self._pool.pair_noise(shape, bool(cell.in_graph[shape.positions - 1]))
