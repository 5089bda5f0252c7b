"""The cost surface: what it says before, near and far from measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.serving.shapes import SHAPES
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.cost import Cost
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.step import Step
from vllm_nfp.surface import (
    GENERIC,
    RECORDED,
    BoundaryAnswer,
    CellAnswer,
    Conditioning,
    Hyperparameters,
    Observations,
    Pool,
    Prior,
    Ratio,
    answers,
    block_of,
    boundary,
    generic_prior,
    predicted_prior,
    questions,
)
from vllm_nfp.surface.algebra import MOST_DOUBTED, OUTLIER, inverse_root, solve, times_root
from vllm_nfp.surface.answers import limits_of
from vllm_nfp.surface.functionals import covariance, placed
from vllm_nfp.surface.noise import USUAL_NOISE
from vllm_nfp.surface.parts import PART_OF, Part
from vllm_nfp.surface.pool import SHAPES_KEPT
from vllm_nfp.surface.posterior import Posterior, common_error
from vllm_nfp.surface.prior import bent
from vllm_nfp.surface.rows import rows_at
from vllm_nfp.surface.scale import UNKNOWN, log_evidence
from vllm_nfp.surface.whole_step import Bend
from vllm_nfp.types import Basis, Module, Shape

CONFIG = SHAPES["llama-3.1-8b"]
POSITIONS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
CELLS = ((1, 1024), (8, 1024), (8, 4096), (32, 4096))
MODULES = (Module.DENSE_FFN, Module.ATTENTION, Module.MODEL)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return predicted_prior(shape_from_config(CONFIG), target_of("H100-SXM"), Serving(), 32)


def expected(prior: Prior, module: Module, shape: Shape) -> float:
    curve = prior(shape.batch_size, shape.context).log_seconds(module)
    return float(curve[shape.positions - 1] - curve[0])


def seen(prior: Prior, error: float, *shapes: Shape, samples: int = 1) -> Observations:
    """Pairs whose log ratios lie by ``error`` over what the prior says."""
    return Observations(
        tuple(
            Ratio(m, s, expected(prior, m, s) + error, USUAL_NOISE[m] ** 2, samples)
            for s in shapes
            for m in MODULES
        )
    )


def condition(prior: Prior, hyper: Hyperparameters, seen: Observations) -> Posterior:
    return Conditioning(prior, hyper).posterior(seen)


def ask(
    prior: Prior, posterior: Posterior, module: Module, batch_size: int, context: int
) -> CellAnswer:
    asked = questions(
        posterior.book.prior, posterior.book.hyper, [(module, batch_size, context)], POSITIONS
    )
    return answers(posterior, asked)[block_of(module, batch_size, context)]


def test_without_an_observation_all_is_predicted(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, Observations())
    for module in MODULES:
        for cell in CELLS:
            found = ask(prior, posterior, module, *cell)
            curve = prior(*cell).log_seconds(module)[np.array(POSITIONS) - 1]
            assert found.log_ratio == pytest.approx(curve - curve[0])
            assert set(found.basis) == {Basis.PREDICTED}
            low, high = found.interval
            assert low[0] == pytest.approx(1.0, abs=1e-6) and high[0] == pytest.approx(1.0)
            assert (low[1:] < found.ratio[1:]).all() and (found.ratio[1:] < high[1:]).all()


def test_a_pair_moves_its_shape_and_narrows_it(prior: Prior) -> None:
    shape = Shape(8, 4096, 8)
    before = ask(prior, condition(prior, RECORDED, Observations()), Module.MODEL, 8, 4096)
    posterior = condition(prior, RECORDED, seen(prior, 0.02, shape))
    after = ask(prior, posterior, Module.MODEL, 8, 4096)
    at = POSITIONS.index(8)
    assert after.log_ratio[at] - before.log_ratio[at] == pytest.approx(0.02, abs=0.005)
    assert after.covariance[at, at] < 0.2 * before.covariance[at, at]
    assert after.basis[at] is Basis.MEASURED


def test_one_position_rests_on_what_its_boundary_rests_on(prior: Prior) -> None:
    """t(1) / t(1) is certain, and no pair of the cell was run: a boundary of 1 is about N = 2."""
    none, nothing = Observations(), 1e-5
    predicted = ask(prior, condition(prior, RECORDED, none), Module.MODEL, 8, 4096)
    assert boundary(predicted, nothing).positions == 1
    assert (predicted.basis[0], boundary(predicted, nothing).basis) == 2 * (Basis.PREDICTED,)
    others = [Shape(b, 4096, n) for b in (4, 16) for n in POSITIONS[1:]]
    found = ask(prior, condition(prior, RECORDED, seen(prior, 0.0, *others)), Module.MODEL, 8, 4096)
    assert found.basis[:2] == (Basis.INFERRED, Basis.INFERRED)
    assert boundary(found, nothing).positions == 1
    assert boundary(found, nothing).basis is Basis.INFERRED


def test_one_position_is_measured_by_any_pair_of_its_cell(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, seen(prior, 0.0, Shape(8, 4096, 32)))
    found = ask(prior, posterior, Module.MODEL, 8, 4096)
    assert found.basis[0] is Basis.MEASURED
    assert found.basis[1] is Basis.PREDICTED
    assert boundary(found, 1e-5).basis is Basis.PREDICTED


def test_an_ffn_knows_no_context(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, seen(prior, 0.02, Shape(8, 1024, 8)))
    here, there = (ask(prior, posterior, Module.DENSE_FFN, 8, c) for c in (1024, 16384))
    assert here.log_ratio.tolist() == there.log_ratio.tolist()
    assert there.basis[POSITIONS.index(8)] is Basis.MEASURED
    attention = ask(prior, posterior, Module.ATTENTION, 8, 16384)
    assert attention.basis[POSITIONS.index(8)] is not Basis.MEASURED


def test_as_many_tokens_in_another_batch_tell_of_an_ffn(prior: Prior) -> None:
    shapes = (Shape(8, 1024, 4), Shape(8, 1024, 8), Shape(8, 1024, 16))
    posterior = condition(prior, RECORDED, seen(prior, 0.03, *shapes))
    found = ask(prior, posterior, Module.DENSE_FFN, 4, 4096)
    unknown = ask(prior, condition(prior, RECORDED, Observations()), Module.DENSE_FFN, 4, 4096)
    at = POSITIONS.index(16)  # 64 tokens, as 8 x 8
    assert found.covariance[at, at] < unknown.covariance[at, at]


def test_doubt_falls_on_one_pair_that_contradicts_all_others(prior: Prior) -> None:
    shapes = [Shape(8, c, n) for c in (1024, 4096) for n in (2, 4, 8, 12)]
    odd = Shape(8, 1024, 6)
    normal = seen(prior, 0.0, *shapes)
    posterior = condition(prior, RECORDED, normal + seen(prior, 0.3, odd))
    assert posterior.doubted == (odd,)
    moved = ask(prior, posterior, Module.MODEL, 8, 1024).log_ratio[POSITIONS.index(6)]
    assert moved - expected(prior, Module.MODEL, odd) < 0.05
    told_thrice = condition(prior, RECORDED, normal + seen(prior, 0.3, odd, samples=3))
    assert odd not in told_thrice.doubted
    moved = ask(prior, told_thrice, Module.MODEL, 8, 1024).log_ratio[POSITIONS.index(6)]
    assert moved - expected(prior, Module.MODEL, odd) == pytest.approx(0.3, abs=0.02)


def test_the_intervals_hold_what_the_prior_may_bring(prior: Prior) -> None:
    """Errors drawn from the kernel itself: the posterior is exact, so its intervals must hold."""
    rng = np.random.default_rng(5)
    shapes = [Shape(b, c, n) for b, c in CELLS for n in POSITIONS[1:]]
    known = [0, 7, 13, 20, 26, 33]
    rows, says = rows_at(prior, [Module.ATTENTION] * len(shapes), shapes, over_one=True)
    spread = covariance(placed(rows), placed(rows), RECORDED)
    root = np.linalg.cholesky(spread + 1e-10 * np.eye(len(shapes)))
    held = []
    for _ in range(60):
        truth = says + UNKNOWN * root @ rng.standard_normal(len(shapes))
        noise = USUAL_NOISE[Module.ATTENTION]
        ratios = tuple(
            Ratio(
                Module.ATTENTION, shapes[i],
                float(truth[i] + noise * rng.standard_normal()), noise**2, 1,
            )
            for i in known
        )  # fmt: skip
        posterior = condition(prior, RECORDED, Observations(ratios))
        for b, context in CELLS:
            low, high = ask(prior, posterior, Module.ATTENTION, b, context).interval
            for i in set(range(len(shapes))) - set(known):
                if (shapes[i].batch_size, shapes[i].context) == (b, context):
                    at = POSITIONS.index(shapes[i].positions)
                    held.append(low[at] <= math.exp(truth[i]) <= high[at])
    assert 0.93 < np.mean(held) <= 0.995


def test_a_boundary_lies_in_its_interval(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, seen(prior, 0.0, Shape(8, 1024, 8)))
    for module in MODULES:
        for cell in CELLS:
            found = ask(prior, posterior, module, *cell)
            last = 0
            for epsilon in (0.05, 0.1, 0.2):
                answer = boundary(found, epsilon)
                assert answer.lower <= answer.positions <= answer.upper
                assert answer.positions in POSITIONS and answer.positions >= last
                assert answer.at_limit is (answer.positions == POSITIONS[-1])
                last = answer.positions


def flat(log_ratio: list[float], deviation: float = 0.0) -> CellAnswer:
    rng = np.random.default_rng(1)
    mean = np.array(log_ratio)
    curves = np.exp(mean + deviation * rng.standard_normal((256, len(mean))) * (mean >= 0))
    curves = curves.astype(np.float32)
    curves[:, 0] = 1.0
    return CellAnswer(
        Module.MODEL, 1, 1024, np.arange(1, len(mean) + 1), mean,
        deviation**2 * np.eye(len(mean)), (Basis.MEASURED,) * len(mean), curves,
        tuple(tuple(limit) for limit in limits_of(curves.T[None])[0]),
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1), (37, 9), (240, 1215)])
def test_a_triangular_product_is_whole_and_cut_at_equal_work(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(7)
    root = np.tril(draw.standard_normal((rows, rows)))
    other = draw.standard_normal((rows, columns))
    pauses: list[None] = []
    monkeypatch.setattr("vllm_nfp.surface.algebra.give_way", lambda: pauses.append(None))
    assert times_root(root, other) == pytest.approx(root @ other)
    # 240 * 241 / 2 * 1215 products of numbers, and at most 4 million before a pause.
    assert len(pauses) == {0: 0, 1: 1, 37: 1}.get(rows, len(pauses)) <= 20
    assert rows < 240 or len(pauses) >= 240 * 241 / 2 * 1215 / 4e6


@pytest.mark.parametrize("wrong", [0, 1, 3, MOST_DOUBTED])
def test_outliers_are_doubted_as_if_their_variance_had_been_raised_from_the_start(
    wrong: int,
) -> None:
    draw = np.random.default_rng(7)
    apart = np.abs(np.subtract.outer(np.arange(60), np.arange(60)))
    covariance_ = np.exp(-apart / 5.0) + 0.01 * np.eye(60)
    residual = np.linalg.cholesky(covariance_) @ draw.standard_normal(60)
    residual[7 : 7 + 6 * wrong : 6] += 4.0
    found = solve(inverse_root(covariance_), residual, np.arange(60))
    assert len(found.raised) == wrong
    raised = covariance_ + np.diag([found.raised.get(i, 0.0) for i in range(60)])
    inverse = np.linalg.inv(raised)
    columns = draw.standard_normal((60, 9))
    told = found.root.times(columns)
    assert told.T @ told == pytest.approx(columns.T @ inverse @ columns, rel=1e-9, abs=1e-9)
    assert found.solution == pytest.approx(inverse @ residual, rel=1e-9, abs=1e-9)
    pull = np.abs(found.solution) / np.sqrt(np.diag(inverse))
    assert np.delete(pull, list(found.raised)).max() <= OUTLIER or wrong == MOST_DOUBTED


def test_a_layer_with_experts_takes_twice_as_long_to_launch() -> None:
    """Recorded on H100: Qwen3 8B 30.0 ms for 36 layers, Qwen3 30B-A3B 61.9 and 99.5 ms for 48."""
    for name, recorded in (("qwen3-8b", 30.0e-3), ("qwen3-30b-a3b", (61.9e-3 * 99.5e-3) ** 0.5)):
        shape = shape_from_config(SHAPES[name])
        cell = predicted_prior(shape, target_of("H100-SXM"), Serving(), 32)(32, 1024)
        assert cell.seconds[Part.LAUNCH, -1] == pytest.approx(recorded, rel=0.05)


def test_a_boundary_on_known_curves() -> None:
    assert boundary(flat([0.0, 0.0, 0.0]), 0.1) == BoundaryAnswer(
        0.1, 3, 3, 3, True, 3, Basis.MEASURED
    )
    over_and_under = boundary(flat([0.0, 0.3, 0.0]), 0.1)
    assert over_and_under.positions == 1 and not over_and_under.at_limit
    assert over_and_under.largest_free == 3
    assert boundary(flat([0.0, 0.3, 0.09], 0.05), 0.1).largest_free == 1


def test_steps_without_a_graph_cost_launches(prior: Prior) -> None:
    cell = prior(32, 1024)
    assert cell.in_graph.tolist() == [32 * n <= 512 for n in range(1, 33)]
    launch = cell.seconds[Part.LAUNCH]
    assert (launch[cell.in_graph] == 0.0).all() and (launch[~cell.in_graph] > 0.0).all()
    shares = cell.weights(Module.MODEL)
    assert np.delete(shares, Part.STEP, axis=0).sum(axis=0) == pytest.approx(1.0)
    work = cell.seconds[: Part.LAUNCH].sum(axis=0)
    assert (np.exp(cell.log_seconds(Module.MODEL)) >= work * (1.0 - 1e-9)).all()


def test_a_generic_prior_is_flat_up_to_its_knee_and_wide() -> None:
    cell = generic_prior(CapturedGraphs(), 512, knee=128.0)(1, 1024)
    ffn = np.exp(cell.log_seconds(Module.DENSE_FFN))
    assert ffn[127] == pytest.approx(ffn[0]) and ffn[511] == pytest.approx(4.0 * ffn[0])
    assert cell.modules == (Module.DENSE_FFN, Module.ATTENTION, Module.MODEL)
    guess = generic_prior(CapturedGraphs(), 32)
    found = ask(guess, condition(guess, GENERIC, Observations()), Module.MODEL, 8, 4096)
    low, high = found.interval
    assert high[-1] / low[-1] > 1.3 and set(found.basis) == {Basis.PREDICTED}


@pytest.mark.parametrize(
    ("delays", "agree"),
    [
        ((0.0, 0.0), True),
        ((0.0, 0.6), False),
        ((0.0, 0.0, 0.6), True),
        ((0.0, 0.5, 0.6), False),
        ((0.0, 0.0, 0.6, 0.5), False),
        ((0.0, 0.0, 0.0, 0.6, 0.5), True),
    ],
)
def test_pairs_of_a_shape_that_do_not_agree_say_little(
    delays: tuple[float, ...], agree: bool
) -> None:
    """Two delayed pairs of four moved a replayed NFP for minutes, as if their center was sure."""
    pool, shape = Pool(), Shape(8, 1024, 4)
    draw = np.random.default_rng(1)
    for i in range(12):  # what pairs scatter by is known
        for _ in range(4):
            many = {Module.MODEL: math.exp(0.002 * draw.standard_normal())}
            pool.add_pair(Shape(1, 1024, 2 + i), many, {Module.MODEL: 1.0}, 0.0)
    for delay in delays:
        many = {Module.MODEL: math.exp(0.002 * draw.standard_normal())}
        pool.add_pair(shape, many, {Module.MODEL: math.exp(delay)}, 0.0)
    *_, found = pool.compressed(0.0).ratios
    assert (found.shape, found.samples, found.torn) == (shape, len(delays), not agree)
    deviation = found.variance**0.5
    assert deviation < 0.005 if agree else deviation > 0.05
    assert abs(found.log_ratio) < 3.0 * deviation


def test_a_shape_whose_pairs_do_not_agree_is_run_again_but_not_for_ever(prior: Prior) -> None:
    shape = Shape(8, 1024, 4)
    told = Ratio(Module.MODEL, shape, expected(prior, Module.MODEL, shape), 0.3**2, 2, torn=True)
    for samples, again in ((2, (shape,)), (5, (shape,)), (6, ())):
        seen = Observations((replace(told, samples=samples),))
        assert condition(prior, RECORDED, seen).doubted == again


def test_a_models_own_errors_set_the_size() -> None:
    kernel, noise = np.eye(40), 1e-4 * np.eye(40)
    errors = np.random.default_rng(2).standard_normal(40)
    small, usual, large = (log_evidence(kernel, noise, f * errors)[0] for f in (0.4, 1.0, 3.0))
    assert small < 0.6 < usual < 1.6 < large
    assert log_evidence(kernel, 1e4 * noise, np.zeros(40))[0] < UNKNOWN


def test_the_pool_is_bounded_and_withstands_an_outlier() -> None:
    pool = Pool()
    for n in range(2, 2 + 2 * SHAPES_KEPT):
        pool.add_pair(Shape(1, 1024, n), {Module.MODEL: 1.1}, {Module.MODEL: 1.0}, float(n))
    assert len(pool.compressed(0.0).ratios) == SHAPES_KEPT
    pool = Pool()
    shape = Shape(4, 1024, 4)
    for ratio in (1.1, 1.5, 1.1):
        pool.add_pair(shape, {Module.MODEL: ratio}, {Module.MODEL: 1.0}, 0.0)
    [found] = pool.compressed(0.0).ratios
    assert found.log_ratio == pytest.approx(math.log(1.1)) and found.samples == 3
    assert pool.compressed(3600.0).ratios[0].variance > found.variance


def test_real_steps_tell_how_t1_grows_with_the_batch(prior: Prior) -> None:
    """At N = 1 a batch of 8 runs the products of 8 tokens: no pair is needed to learn of these."""
    pool = Pool()
    for batch_size in (1, 8, 64):
        shape = Shape(batch_size, 1024, 1)
        seconds = math.exp(float(prior(batch_size, 1024).log_seconds(Module.MODEL)[0]) + 0.4)
        pool.add_step(shape, seconds, 0.0)
    before = condition(prior, RECORDED, Observations())
    after = condition(prior, RECORDED, pool.compressed(0.0))
    at = POSITIONS.index(8)
    known, unknown = (ask(prior, p, Module.MODEL, 8, 1024) for p in (after, before))
    assert known.covariance[at, at] < unknown.covariance[at, at]
    assert known.log_ratio[at] == pytest.approx(unknown.log_ratio[at], abs=0.01)
    assert set(PART_OF) == set(Module) - {Module.MODEL}


def test_measured_launches_replace_the_expected_ones(prior: Prior) -> None:
    slower = bent(prior, math.log(3.0), Bend(launch_deviation=0.2))
    shapes = [Shape(64, 1024, n) for n in (12, 16, 24)]
    ratios = tuple(
        Ratio(Module.MODEL, s, expected(slower, Module.MODEL, s), 0.05**2, 3) for s in shapes
    )
    posterior = condition(prior, RECORDED, Observations(ratios))
    told = posterior.book.prior(64, 1024).seconds[Part.LAUNCH]
    log_factor = math.log(told[-1] / prior(64, 1024).seconds[Part.LAUNCH][-1])
    assert 0.5 * math.log(3.0) < log_factor < 1.2 * math.log(3.0)
    rest, deviation = common_error(posterior, Part.LAUNCH)
    assert abs(rest) < 0.5 * math.log(3.0) and deviation < 0.5 * RECORDED.launch
    nothing = condition(prior, RECORDED, Observations())
    assert (
        common_error(nothing, Part.LAUNCH) == (0.0, RECORDED.launch) and nothing.book.prior is prior
    )
    for n in (2, 12):
        known, moved = (p(64, 1024).log_seconds(Module.MODEL)[n - 1] for p in (prior, slower))
        assert bool(moved > known) is (64 * n > 512)


def test_known_launches_bound_a_step_or_cost_nothing(prior: Prior) -> None:
    """Attention over long contexts takes longer than any launches: leaving the graphs is free."""
    hidden = bent(prior, math.log(0.5), Bend(launch_deviation=0.15))(128, 16384)
    work = np.log(hidden.seconds[: Part.LAUNCH].sum(axis=0))
    assert hidden.log_seconds(Module.MODEL) == pytest.approx(work, abs=1e-3)
    assert not hidden.in_graph[7]


def test_more_tokens_leave_more_open_how_many_experts_a_probe_activates() -> None:
    tokens = np.array([1, 2, 8, 32])
    found = RECORDED.routing(tokens, tokens)
    assert found[0, 0] == 0.0, "one token activates as many experts as it is routed to"
    assert np.all(np.diff(np.diag(found)) > 0.0)
    assert RECORDED.wider(2.0).routing(tokens, tokens) == pytest.approx(4.0 * found)


def test_real_steps_count_less_where_experts_are_routed() -> None:
    """Other tokens activate other experts."""
    variances = []
    for routed in (False, True):
        pool = Pool(routed=routed)
        pool.add_step(Shape(32, 1024, 1), 0.02, 0.0)
        variances.append(pool.compressed(0.0).steps[0].variance)
    assert variances[1] > 10.0 * variances[0]


def test_a_new_cell_of_the_prior_pauses_between_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("attention", "_lm_head"):
        part = getattr(Step, name)

        def noted(self: Step, part: Callable[[Step], Cost] = part, name: str = name) -> Cost:
            order.append(name)
            return part(self)

        monkeypatch.setattr(Step, name, noted)
    monkeypatch.setattr("vllm_nfp.surface.prior.give_way", lambda: order.append("pause"))
    shape = shape_from_config(SHAPES["qwen3-14b"])
    predicted_prior(shape, target_of("H100-SXM"), Serving(), 8)(2, 1024)
    first, last = order.index("attention"), order.index("_lm_head")
    assert "pause" in order[first:last]
