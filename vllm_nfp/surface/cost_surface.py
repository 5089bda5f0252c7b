"""One server's cost surface while it serves: pairs and real steps in, answers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.answers import CellAnswer, Questions, answers, block_of, questions
from vllm_nfp.surface.changes import Changes
from vllm_nfp.surface.chooser import Candidate, rank
from vllm_nfp.surface.conditioning import Conditioning
from vllm_nfp.surface.decisions import Concern, Decisions
from vllm_nfp.surface.drift import Change
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.latest import Latest
from vllm_nfp.surface.observations import Observations
from vllm_nfp.surface.pool import PAIRS_KEPT, SHAPES_KEPT, Pool
from vllm_nfp.surface.prior import Prior
from vllm_nfp.surface.seconds import Seconds, SecondsAtOne
from vllm_nfp.types import Module, PairResult, Shape

QUESTIONS_KEPT = 12
"""Sets of cells and positions of which the prior's part is kept, the latest: the table, and some
live contexts, which come again."""
OLD_SECONDS = 300.0
"""An update is taken after so long although nothing was added: what is known has aged."""
CellKey: TypeAlias = "tuple[Module, int, int]"
Cells: TypeAlias = "tuple[tuple[int, int], ...]"
_Asked: TypeAlias = "tuple[Cells, tuple[int, ...], tuple[Module, ...]]"
"""Cells, positions and modules of a question."""


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
        self._prior, self._hyper, self._warm = prior, hyper, warm
        self._modules = prior(1, 1).modules
        self._pool = Pool(pairs_kept, shapes_kept, Module.MOE_FFN in self._modules)
        self._left_out: set[Module] = set()
        self._questions: Latest[_Asked, Questions] = Latest(QUESTIONS_KEPT, self._unasked)
        self._answered: dict[_Asked, Mapping[CellKey, CellAnswer]] = {}
        self._told: dict[CellKey, Seconds | None] = {}
        self._at_one: dict[Module, SecondsAtOne] = {}
        self._asked: Cells = ()
        self._seen, self._version, self._changed = warm, 0, False
        self._updated = 0.0
        self._conditioning = Conditioning(prior, hyper, min_samples)
        self._posterior = self._conditioning.posterior(warm)
        self._noises = self._measured_noises()
        self._changes = Changes(self._pool)
        self.jumps = 0
        """Changes of the machine that were noticed."""

    @property
    def version(self) -> int:
        """Rises with each update that changed something."""
        return self._version

    @property
    def left_out(self) -> frozenset[Module]:
        """Modules that were measured and that the prior does not know: nothing is said of them."""
        return frozenset(self._left_out)

    def add_pair(self, result: PairResult, now: float) -> None:
        """A pair of runs; one beyond the prior's last N, or without a time, is ignored.

        Of one that waited for a launch, only the modules count.

        Args:
            now: seconds on a clock that does not jump.
        """
        shape = result.many.shape
        steps = result.many.step_seconds, result.one.step_seconds
        if not self._knows(shape) or min(steps) <= 0.0:
            return
        many = {Module.MODEL: result.many.step_seconds, **result.many.modules}
        one = {Module.MODEL: result.one.step_seconds, **result.one.modules}
        self._left_out |= set(many) - set(self._modules)
        many = {module: s for module, s in many.items() if module in self._modules}
        change, content = None, result.written or not self._pool.routed
        if result.waited:
            del many[Module.MODEL]
        elif self._pool.has_content(Module.MODEL, shape) is content:
            noise, log_ratio = self._noises[True], math.log(steps[0] / steps[1])
            change = self._changes.pair(shape, log_ratio, noise, self._posterior, now)
        self._pool.add_pair(shape, many, one, now, result.many.execution == "full", content)
        self._changed = True
        if change is not None:
            self._forget(change)

    def add_step(self, shape: Shape, seconds: float, now: float) -> None:
        """The median time of some real steps of a shape; one beyond the last N is ignored."""
        if self._knows(shape):
            self._pool.add_step(shape, seconds, now)
            self._changed = True
            if self._pool.step_moved(shape):
                self._changes.suspect()

    def _forget(self, change: Change) -> None:
        """Old observations lose their weight."""
        self.jumps += 1
        self._pool.changed(change)
        self._warm = self._warm.doubted(change.variance)
        self._conditioning.fit_anew()

    def _knows(self, shape: Shape) -> bool:
        cell = self._prior(shape.batch_size, shape.context)
        return 1 <= shape.positions <= len(cell.log_step)

    def update(self, now: float) -> None:
        """Take the posterior of all that was added; gives way."""
        if not self._changed and now - self._updated < OLD_SECONDS:
            return
        self._changed, self._updated = False, now
        self._seen = self._warm + self._pool.compressed(now)
        self._noises = self._measured_noises()
        before = self._posterior.book
        self._posterior = self._conditioning.posterior(self._seen)
        if self._posterior.book is not before:
            self._at_one.clear()
        if self._posterior.book.prior is not before.prior:
            self._questions.clear()
        self._answered.clear()
        self._told.clear()
        self._version += 1
        give_way()

    def answers(
        self,
        cells: Sequence[tuple[int, int]],
        positions: Sequence[int],
        modules: Sequence[Module] = tuple(Module),
    ) -> Mapping[CellKey, CellAnswer]:
        """What the last update says of modules of the prior in every cell.

        Args:
            cells: (batch size, context).
            positions: N, ascending from 1, up to the prior's last.
            modules: those among them are answered that the prior has.
        """
        self._asked = tuple(dict.fromkeys(cells))
        known = tuple(module for module in self._modules if module in modules)
        return self._answer(self._asked, tuple(positions), known)

    def _answer(
        self, cells: Cells, positions: tuple[int, ...], modules: tuple[Module, ...]
    ) -> Mapping[CellKey, CellAnswer]:
        key = cells, positions, modules
        if key in self._answered:
            return self._answered[key]
        wanted = [(module, *cell) for module in modules for cell in cells]
        prior = self._posterior.book.prior
        asked = self._questions.get(key, lambda: questions(prior, self._hyper, wanted, positions))
        found = answers(self._posterior, asked)
        self._answered[key] = {one: found[block_of(*one)] for one in wanted}
        return self._answered[key]

    def _unasked(self, key: _Asked, asked: Questions) -> None:
        """These questions have left."""
        self._posterior.book.forget(asked)
        self._answered.pop(key, None)

    def _known(
        self, cells: Sequence[tuple[int, int]], positions: tuple[int, ...]
    ) -> Mapping[CellKey, CellAnswer]:
        """Answers of some cells: those of the last table, and of cells that it lacks."""
        found: dict[CellKey, CellAnswer] = {}
        for (_, of, modules), kept in self._answered.items():
            if of == positions and modules == self._modules:
                found.update(kept)
        lacking = [cell for cell in dict.fromkeys(cells) if (Module.MODEL, *cell) not in found]
        if not lacking:
            return found
        return {**found, **self._answer(tuple(lacking), positions, self._modules)}

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
            book = self._posterior.book
            known = self._at_one.setdefault(module, SecondsAtOne(book, module))
            found = known.seconds(self._seen.baselines, cells)
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

        Doubted shapes come first, whether they are candidates or not: they were run before. Then
        comes a known shape near them: if its pair differs as well, the machine has changed.
        """
        usable = [shape for shape in self._pool.shapes if self._in_graph(shape)]
        doubted = self._changes.to_run(usable, self._posterior.doubted, self._updated)[:most]
        rest = [candidate for candidate in candidates if candidate.shape not in doubted]
        if not (rest and concerns) or len(doubted) == most:
            return doubted
        cells = [(concern.batch_size, concern.context) for concern in concerns]
        found = self._known(cells, decisions.positions)
        left = most - len(doubted)
        best = rank(self._posterior, found, rest, concerns, decisions, self._noise, left)
        return doubted + tuple(candidate.shape for candidate in best)

    def _measured_noises(self) -> Mapping[bool, float]:
        noises = self._pool.noises()
        return {graph: noises[Module.MODEL, graph] for graph in (True, False)}

    def _noise(self, shape: Shape) -> float:
        return self._noises[self._in_graph(shape) and not self._pool.ran_without_graph(shape)]

    def _in_graph(self, shape: Shape) -> bool:
        cell = self._prior(shape.batch_size, shape.context)
        return bool(cell.in_graph[shape.positions - 1])
