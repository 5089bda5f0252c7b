"""A change of the machine: noticed within minutes, and never without one."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import GPU_RESULTS, ROOT
from test_surface import CELLS, POSITIONS, prior
from test_surface_server import pair

from vllm_nfp.surface import RECORDED, Candidate, Concern, CostSurface, Decisions
from vllm_nfp.surface.drift import (
    ALONE,
    CERTAIN,
    GIVE_UP,
    IN_A_ROW,
    SHAPES,
    SHAPES_IF_UNSURE,
    SURE,
    WINDOW,
    Before,
    Change,
    Watch,
    nearest,
)
from vllm_nfp.surface.noise import USUAL_NOISE
from vllm_nfp.surface.parts import FloatArray, Part
from vllm_nfp.surface.prior import Prior, PriorCell
from vllm_nfp.surface.whole_step import both_steps
from vllm_nfp.types import Module, PairResult, Shape

sys.path.insert(0, str(ROOT))
from benchmarks.answers import replay_pairs

__all__ = ["prior"]
DECISIONS = Decisions(POSITIONS, (0.05, 0.1, 0.2))
CONCERNS = tuple(Concern(*cell, 1.0 / len(CELLS)) for cell in CELLS)
CANDIDATES = [Candidate(Shape(*c, n), 0.05) for c in CELLS for n in POSITIONS[1:] if c[0] * n < 513]


def slower_ffn(prior: Prior) -> Prior:
    """A lower clock: products are slower once arithmetic bounds them, attention as before."""

    def cell(batch_size: int, context: int) -> PriorCell:
        known = prior(batch_size, context)
        return scaled(known, Part.DENSE_FFN, np.where(known.tokens > 96, 1.3, 1.0))

    return cell


def neighbour(prior: Prior) -> Prior:
    """A neighbour takes bandwidth: what reads weights or caches is slower, arithmetic is not."""

    def cell(batch_size: int, context: int) -> PriorCell:
        known = prior(batch_size, context)
        reads = np.where(known.tokens <= 96, 1.4, 1.0)
        known = scaled(known, Part.ATTENTION, np.full(len(reads), 1.4))
        return scaled(scaled(known, Part.OTHER, reads), Part.DENSE_FFN, reads)

    return cell


def scaled(cell: PriorCell, part: Part, factors: FloatArray) -> PriorCell:
    seconds = cell.seconds.copy()
    seconds[part] *= factors
    step, bare = both_steps(seconds, cell.alike)
    return replace(cell, seconds=seconds, step=step, bare=bare)


class Machine:
    """Runs the pairs that a surface asks for, with noise and the host's delays."""

    def __init__(self, truth: Prior, surface: CostSurface, seed: int) -> None:
        self.truth, self.surface = truth, surface
        self.now, self.pairs = 0.0, 0
        self._random = np.random.default_rng(seed)

    def run(self, pairs: int) -> None:
        end = self.pairs + pairs
        while self.pairs < end:
            self.surface.update(self.now)
            for shape in self.surface.choose(CANDIDATES, CONCERNS, DECISIONS, 4):
                self.now += 5.0
                self.pairs += 1
                self.surface.add_pair(self._result(shape), self.now)

    def _result(self, shape: Shape) -> PairResult:
        clean = pair(self.truth, shape)
        modules = {m: s * self._noise(USUAL_NOISE[m]) for m, s in clean.many.modules.items()}
        step = clean.many.step_seconds * self._noise(USUAL_NOISE[Module.MODEL])
        return replace(clean, many=replace(clean.many, step_seconds=step, modules=modules))

    def _noise(self, deviation: float) -> float:
        delay = self._random.exponential(0.3) if self._random.random() < 0.01 else 0.0
        return math.exp(deviation * self._random.standard_normal() + delay)


def errors(surface: CostSurface, truth: Prior, now: float) -> float:
    """Root mean square error of log t(N) / t(1) of the step, in CUDA graphs."""
    surface.update(now)
    found = surface.answers(CELLS, POSITIONS)
    apart = []
    for b, context in CELLS:
        known = truth(b, context)
        at = np.array([n for n in POSITIONS if b * n <= 512]) - 1
        true = known.log_step[at] - known.log_step[0]
        apart.append(np.abs(found[Module.MODEL, b, context].log_ratio[: len(at)] - true))
    return float((np.concatenate(apart) ** 2).mean() ** 0.5)


@pytest.mark.parametrize("change", [slower_ffn, neighbour])
def test_a_change_is_noticed_and_the_answers_follow(prior: Prior, change: object) -> None:
    assert callable(change)
    surface = CostSurface(prior, RECORDED)
    machine = Machine(prior, surface, 3)
    machine.run(40)
    assert surface.jumps == 0
    machine.truth = change(prior)
    before = errors(surface, machine.truth, machine.now)
    machine.run(12)
    assert surface.jumps == 1
    machine.run(12)
    assert surface.jumps == 1
    assert errors(surface, machine.truth, machine.now) < 0.4 * before


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_recorded_pairs_of_one_machine_are_no_change(name: str) -> None:
    """Chosen on the half 0; with experts, pairs of one shape differ by several per cent."""
    known, pairs = replay_pairs.recorded(GPU_RESULTS, name)
    for every in (None, 2.0):
        assert replay_pairs.jumps_in_order(known, pairs[1::2], every) == 0
    assert replay_pairs.jumps_served(known, pairs, 1, 0, most=120) == 0


@pytest.mark.parametrize("seed", range(1))
def test_outliers_are_no_change(prior: Prior, seed: int) -> None:
    surface = CostSurface(prior, RECORDED)
    Machine(prior, surface, seed).run(60)
    assert surface.jumps == 0
    odd = Shape(8, 1024, 8)
    surface.add_pair(pair(prior, odd, 0.4), 1e4)
    surface.update(1e4)
    assert surface.choose(CANDIDATES, CONCERNS, DECISIONS, 4)[0] == odd
    surface.add_pair(pair(prior, odd), 1e4 + 5.0)
    assert surface.jumps == 0


def contradict(watch: Watch, shape: Shape, samples: int, by: float = 0.2) -> Change | None:
    return watch.contradicts(shape, Before(1.0, samples, 0.01), 1.0 + by, 5.0)


def test_evidence_must_agree_in_direction_and_in_time() -> None:
    watch = Watch()
    some = [Shape(8, 1024, n) for n in range(2, 2 + SHAPES)]
    rounds = [shape for shape in some for _ in range(IN_A_ROW)]
    found = [contradict(watch, shape, SURE) for shape in rounds]
    assert found[:-1] == [None] * (len(rounds) - 1)
    change = found[-1]
    assert change is not None and change.since == 5.0
    assert change.variance == pytest.approx(0.04)
    assert watch.suspects == ()
    for number, shape in enumerate(rounds):
        assert contradict(watch, shape, SURE, 0.2 * (-1) ** number) is None
    watch.agrees(some[0])
    assert watch.suspects == (some[1],) * IN_A_ROW
    for n in range(WINDOW):
        watch.agrees(Shape(1, 1024, n))
    assert watch.suspects == () and watch.since == math.inf


def test_a_single_pair_of_each_of_many_shapes_is_no_change() -> None:
    watch = Watch()
    for n in range(2, 2 + WINDOW):
        assert contradict(watch, Shape(8, 1024, n), CERTAIN) is None


@pytest.mark.parametrize("samples,needed", [(SURE, SHAPES), (SURE - 1, SHAPES_IF_UNSURE)])
def test_more_shapes_must_agree_if_their_histories_are_short(samples: int, needed: int) -> None:
    watch = Watch()
    shapes = [Shape(8, 1024, n) for n in range(2, 2 + needed) for _ in range(IN_A_ROW)]
    found = [contradict(watch, shape, samples) is not None for shape in shapes]
    assert found == [False] * (len(shapes) - 1) + [True]


def test_one_shape_is_no_change_if_its_history_was_short_or_another_one_agrees() -> None:
    shape = Shape(8, 1024, 8)
    few, many, contested = Watch(), Watch(), Watch()
    assert [contradict(few, shape, CERTAIN - 1) for _ in range(GIVE_UP)] == [None] * GIVE_UP
    assert few.suspects == ()
    found = [contradict(many, shape, CERTAIN) for _ in range(ALONE)]
    assert found[:-1] == [None] * (ALONE - 1) and found[-1] is not None
    contradict(contested, shape, CERTAIN)
    contested.agrees(Shape(1, 1024, 8))
    assert [contradict(contested, shape, CERTAIN) for _ in range(ALONE)] == [None] * ALONE


def test_the_shape_to_check_is_like_the_doubted_one() -> None:
    some = [Shape(1, 1024, 2), Shape(8, 1024, 8), Shape(32, 16384, 8)]
    assert nearest(some, Shape(4, 1024, 16), 1) == (some[1],)
    assert nearest([], Shape(4, 1024, 16), 2) == ()
