"""What the surface's answers look like when they are published."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_surface import made_prior, made_snapshot

from vllm_nfp.config import ProbeConfig
from vllm_nfp.metrics.families import families_of
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.results.gather import Results
from vllm_nfp.results.real_steps import AGAIN_SECONDS, ENOUGH, SteadySteps, Traffic
from vllm_nfp.results.snapshot import Snapshot, read_snapshot, write_snapshot
from vllm_nfp.results.table import Table, plain_table, reported_table
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.output import Output
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.surface import GENERIC, RECORDED, CostSurface, generic_prior
from vllm_nfp.timing import RealSteps, StepTimes, rounded_context
from vllm_nfp.types import Basis, EngineStep, LiveStep, Module, PairResult, Shape, State, Timing

CONFIG = ProbeConfig().for_server(16, 4096)
STEP = EngineStep(5, 700, 1, decode=True)


def table(most_context: int = 4096, most_tokens: int = 256) -> Table:
    return plain_table(
        CONFIG.batch_sizes, CONFIG.contexts, CONFIG.grid, most_context, most_tokens,
        lambda batch_size, n: "full" if batch_size * n <= 128 else "none",
    )  # fmt: skip


@pytest.fixture
def results() -> Results:
    return Results(CONFIG, CostSurface(made_prior(), RECORDED), table())


def pair(shape: Shape, ratio: float = 1.03, t1: float = 0.008) -> PairResult:
    def run(at: Shape, factor: float) -> Timing:
        modules = {Module.ATTENTION: 3e-5 * factor, Module.DENSE_FFN: 1.2e-4 * factor}
        return Timing(at, t1 * factor, 0.0, modules, (), "full")

    one = Shape(shape.batch_size, shape.context, 1)
    return PairResult(run(shape, ratio), run(one, 1.0), True, 0.02)


def test_before_any_pair_every_cell_has_its_prediction_with_an_interval(results: Results) -> None:
    results.update(0.0)
    found = results.findings
    cells = {(b, c) for b in (1, 2, 4, 8, 16) for c in (256, 1024)}
    modules = {Module.MODEL, Module.ATTENTION, Module.DENSE_FFN}
    assert {row.cell for row in found.boundaries} == {(m, *c) for m in modules for c in cells}
    assert {row.basis for row in found.boundaries} == {Basis.PREDICTED}
    assert {row.basis for row in found.curves} == {Basis.PREDICTED}
    assert {row.samples for row in found.curves} == {0}
    assert len(found.boundaries) == 3 * len(CONFIG.epsilons) * len(cells)
    # A step of 256 tokens is the largest: 16 sequences have 16 positions at most.
    largest = {b: max(r.positions for r in found.curves if r.batch_size == b) for b in (1, 8, 16)}
    assert largest == {1: 32, 8: 32, 16: 16}
    for row in found.curves:
        assert row.ratio_upper is not None and row.seconds_upper is not None
        assert row.ratio_lower <= row.ratio <= row.ratio_upper
        assert row.seconds_lower < row.median_seconds < row.seconds_upper
        assert row.execution == ("full" if row.batch_size * row.positions <= 128 else "none")


@pytest.mark.parametrize(
    "name",
    ["vllm_nfp_positions", "vllm_nfp_step_time_ratio", "vllm_nfp_live_step_time_ratio"],
)
def test_without_a_pair_no_number_on_metrics_lacks_its_basis_predicted(name: str) -> None:
    families = {family.name: family for family in families_of([made_snapshot(measured=())])}
    bases = {}
    for sample in families[f"{name}_basis"].samples:
        labels = dict(sample.labels)
        bases[labels.pop("basis"), *sorted(labels.items())] = sample.value
    # t(1) / t(1) is 1 whatever is measured.
    numbers = [s for s in families[name].samples if s.labels.get("positions") != "1"]
    assert len(numbers) == len(bases) > 5
    for sample in numbers:
        assert bases["predicted", *sorted(sample.labels.items())] == 1.0


def test_a_pair_is_a_measurement_of_its_shape_and_tells_of_others(results: Results) -> None:
    results.update(0.0)
    for now in range(8):
        results.add(pair(Shape(8, 1024, 4)), float(now))
        results.add(pair(Shape(8, 1024, 16), 1.05), float(now))
    results.update(9.0)
    rows = {(r.module, r.batch_size, r.context, r.positions): r for r in results.findings.curves}
    measured = rows["model", 8, 1024, 4]
    assert (measured.basis, measured.samples) == (Basis.MEASURED, 8)
    assert measured.ratio == pytest.approx(1.03, rel=0.003)
    assert rows["model", 8, 1024, 1].samples == 16, "those of all other points"
    assert rows["model", 8, 1024, 1].median_seconds == pytest.approx(0.008, rel=0.05)
    assert rows["model", 8, 256, 4].basis is Basis.INFERRED
    # An FFN knows no context: a pair at one is a pair at all, and the answer is the same.
    ffn = [rows["dense_ffn", 8, context, 4] for context in (256, 1024)]
    assert [row.basis for row in ffn] == [Basis.MEASURED] * 2
    assert ffn[0].ratio == ffn[1].ratio
    assert {p.module for p in results.model_curves()} == {Module.MODEL}


def test_live_rows_are_of_the_real_batch_size_and_context(results: Results) -> None:
    results.update(0.0, STEP)
    found = results.findings
    assert {(row.module, row.batch_size, row.context) for row in found.live_boundaries} == {
        ("model", 5, 704)
    }
    assert {(row.module, row.context) for row in found.live_curves} == {("model", 704)}
    assert {row.batch_size for row in found.live_curves} == {1, 2, 4, 5, 8, 16}
    results.update(1.0, EngineStep(3, 4090, 1, decode=True))
    assert {row.batch_size for row in results.findings.live_boundaries} == {3}
    assert max(row.positions for row in results.findings.live_curves) <= 6, "no room for more"
    results.update(2.0)
    assert results.findings.live_boundaries, "the last real step stays the last"


def test_an_update_without_rows_counts_and_leaves_the_rows(results: Results) -> None:
    results.update(0.0, STEP)
    before, version = results.findings, results.model_version
    results.add(pair(Shape(8, 1024, 4)), 1.0)
    results.update(1.0, EngineStep(3, 4090, 1, decode=True), rows=False)
    found = results.findings
    assert (found.pairs, before.pairs) == (1, 0)
    assert results.surface.version > version, "what is probed next is chosen by what is known"
    assert found.curves is before.curves and found.live_curves is before.live_curves
    assert found.live == before.live, "the live rows are of this step"
    assert results.model_version == version, "no one is sent the old curves as new ones"
    results.update(1.0, EngineStep(3, 4090, 1, decode=True))
    assert results.model_version > version
    rows = {(r.module, r.batch_size, r.context, r.positions): r for r in results.findings.curves}
    assert rows["model", 8, 1024, 4].samples == 1
    assert {row.batch_size for row in results.findings.live_boundaries} == {3}


def test_nothing_new_is_asked_again_for_nothing(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[tuple[int, int]]] = []
    answers = results.surface.answers

    def noted(cells: Sequence[tuple[int, int]], *rest: object) -> object:
        asked.append(cells)
        return answers(cells, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(results.surface, "answers", noted)
    for now in range(3):
        results.update(float(now), STEP)
    assert len(asked) == 3, "the table, the live step, and the batch sizes around it"
    results.update(3.0, EngineStep(5, 900, 1, decode=True))
    assert len(asked) == 5
    results.add(pair(Shape(1, 256, 2)), 4.0)
    results.update(4.0, EngineStep(5, 900, 1, decode=True))
    assert len(asked) == 8


def test_a_guess_is_in_no_unit_and_gives_boundaries_alone_until_a_pair_was_run() -> None:
    surface = CostSurface(generic_prior(CapturedGraphs(), 32), GENERIC)
    results = Results(CONFIG, surface, table(), guessed=True)
    results.update(0.0)
    assert results.findings.guessed
    assert results.findings.boundaries
    assert not results.findings.curves
    results.add(pair(Shape(4, 256, 4)), 1.0)
    results.update(1.0)
    assert {row.batch_size for row in results.findings.curves} == {1, 2, 4, 8, 16}


def test_what_is_handed_over_can_be_read_back(results: Results, tmp_path: Path) -> None:
    results.add(pair(Shape(8, 1024, 4)), 0.0)
    results.update(0.0, STEP)
    assert not results.findings.guessed
    found = results.findings
    snapshot = Snapshot(
        "m", "0", State.PROBING, boundaries=found.boundaries, curves=found.curves,
        live_boundaries=found.live_boundaries, live_curves=found.live_curves,
    )  # fmt: skip
    write_snapshot(tmp_path / "engine-0.json", snapshot)
    assert read_snapshot(tmp_path / "engine-0.json") == snapshot


def steps(count: int, timed: int, seconds: float, cell: tuple[int, int] = (5, 704)) -> RealSteps:
    return RealSteps(Shape(6, 1024, 1), Shape(*cell, 1), count, timed, seconds, 1.0)


def test_medians_of_steps_are_told_once_enough_were_timed_and_when_they_move() -> None:
    steady = SteadySteps()

    def told(timed: int, seconds: float, now: float) -> int:
        return len(list(steady.new([steps(timed, timed, seconds)], now)))

    assert told(ENOUGH - 1, 0.008, 0.0) == 0
    assert told(ENOUGH, 0.008, 1.0) == 1
    assert told(2 * ENOUGH, 0.00804, 2.0) == 0, "it has not moved"
    assert told(2 * ENOUGH + 1, 0.0082, 3.0) == 1
    assert told(2 * ENOUGH + 2, 0.009, 4.0) == 0, "of too few new steps"
    assert told(5 * ENOUGH, 0.0082, 4.0 + AGAIN_SECONDS) == 1, "it is no old news"
    assert told(5 * ENOUGH, 0.0082, 5.0 + 2 * AGAIN_SECONDS) == 0, "no step since"


def test_real_steps_inform_the_surface(results: Results) -> None:
    results.update(0.0)
    before = results.surface.version
    results.add_steps([steps(ENOUGH, ENOUGH, 0.008)], 1.0)
    results.update(1.0)
    assert results.surface.version > before


@pytest.mark.parametrize(("wait", "told"), [(0.0, 0.008), (0.0002, 0.0079), (0.0004, None)])
def test_the_devices_wait_for_a_launch_is_no_part_of_a_step_that_informs_the_surface(
    results: Results, monkeypatch: pytest.MonkeyPatch, wait: float, told: float | None
) -> None:
    """A server whose host is slower than its device waits in each step: by how much, nobody knows.

    The wait is the same for large steps and small ones: as a factor it would bend the curve.
    """
    added: list[float] = []
    monkeypatch.setattr(results.surface, "add_step", lambda _, seconds, __: added.append(seconds))
    slow = dataclasses.replace(steps(ENOUGH, ENOUGH, 0.008), wait_seconds=wait)
    results.add_steps([slow], 1.0)
    assert added == ([] if told is None else [pytest.approx(told)])


@pytest.mark.parametrize(
    ("mean", "informs"), [(4.0, True), (4.03, True), (4.2, False), (3.6, False)]
)
def test_steps_of_unequal_lengths_inform_the_surface_where_their_mean_is_whole(
    results: Results, mean: float, informs: bool
) -> None:
    results.update(0.0)
    before = results.surface.version
    kind, shape = Shape(6, 1024, 4), Shape(5, 704, 4)
    results.add_steps([RealSteps(kind, shape, ENOUGH, ENOUGH, 0.008, mean)], 1.0)
    results.update(1.0)
    assert (results.surface.version > before) is informs


def test_traffic_is_where_the_time_goes_now_and_lately() -> None:
    traffic = Traffic()
    assert traffic.shares == {}
    traffic.update([steps(100, 10, 0.01, (1, 256))], 0.0)
    assert traffic.shares == {(1, 256): 1.0}
    moved = RealSteps(Shape(32, 4096, 1), Shape(30, 3008, 1), 100, 10, 0.03, 1.0)
    traffic.update([steps(100, 10, 0.01, (1, 256)), moved], 1.0)
    assert traffic.shares == pytest.approx({(1, 256): 0.25, (30, 3008): 0.75}, rel=0.01)
    traffic.update([], 3000.0)
    traffic.update([steps(200, 10, 0.01, (1, 256)), moved], 3001.0)
    assert traffic.shares[1, 256] > 0.99, "the other was long ago"


def test_kinds_of_steps_know_how_large_they_really_were() -> None:
    times = StepTimes()
    series = times.of(5, 3000, 1)
    assert series is not None
    for batch_size, context in ((5, 2900), (6, 3100)):
        series.add(0.008, 1, batch_size, context)
    (found,) = times.kinds()
    assert found.kind == Shape(6, 4096, 1)
    assert found.shape == Shape(round(5.5), 2944, 1)
    assert {rounded_context(c) for c in (0, 3)} == {16}
    assert all(abs(rounded_context(c) / c - 1) < 0.05 for c in range(200, 200_000, 37))


def test_a_publish_costs_little_of_a_core(results: Results) -> None:
    """In a thread of its own, as in a server; the bound is generous for a busy machine."""
    cells = [Shape(b, c, n) for b in (1, 8) for c in (256, 1024) for n in (2, 4, 8)]
    for now, shape in enumerate(cells):
        results.add(pair(shape), float(now))
    results.update(20.0, STEP)
    spent: list[float] = []

    def publish() -> None:
        for now in range(5):
            results.add(pair(cells[now]), 21.0 + now)
            begun = time.thread_time()
            results.update(21.0 + now, STEP)
            spent.append(time.thread_time() - begun)

    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    assert sorted(spent)[2] < 0.25


def test_a_live_batch_size_that_is_reported_has_its_rows_once(results: Results) -> None:
    results.update(0.0, EngineStep(8, 700, 1, decode=True))
    found = results.findings
    keys = [(row.batch_size, row.positions) for row in found.live_curves]
    assert len(keys) == len(set(keys))
    assert {row.batch_size for row in found.live_curves} == {1, 2, 4, 8, 16}
    assert {row.batch_size for row in found.live_boundaries} == {8}


def test_the_live_step_is_the_one_that_the_live_rows_are_of(results: Results) -> None:
    """A step that came since has no rows yet."""
    assert results.findings.live is None
    results.update(0.0, STEP)
    results.update(1.0, EngineStep(3, 1000, 2, decode=True))
    results.update(2.0)
    found = results.findings
    assert found.live == LiveStep(3, 1000, 2)
    assert {row.batch_size for row in found.live_boundaries} == {3}


def test_a_publisher_shows_the_step_that_its_live_rows_are_of(results: Results) -> None:
    config = CONFIG
    one = Publisher(config, Snapshot("m", "0", State.WARMING), StepTimes(), results, Output(config))
    one.count(Counters(last_step=STEP))
    one.process()
    one.count(Counters(last_step=EngineStep(16, 700, 1, decode=True)))
    snapshot = one.snapshot()
    assert snapshot.live == LiveStep(5, 700, 1)
    assert {row.batch_size for row in snapshot.live_boundaries} == {5}


def server_table(holds: Callable[[int, int], bool]) -> Table:
    return plain_table(
        CONFIG.batch_sizes, CONFIG.contexts, CONFIG.grid, 4096, 64, lambda *_: "none", holds
    )


def test_what_fits_the_server_is_reported_and_what_can_be_probed_is_probed() -> None:
    """The cache holds 16 sequences of 256 tokens; steps of one sequence alone are probed."""
    probed = {(1, context): (1, 2, 4) for context in CONFIG.contexts}
    made = reported_table(CONFIG, server_table(lambda b, c: b * (c + 1) <= 16 * 257), probed)
    assert set(made.cells) == {
        *((b, 256) for b in (1, 2, 4, 8, 16)), *((b, 1024) for b in (1, 2, 4))
    }  # fmt: skip
    assert made.cells[1, 256] == CONFIG.grid, "also where its steps are not probed"
    assert made.cells[16, 256] == (1, 2, 3, 4), "up to 64 tokens"
    assert {(shape.batch_size, shape.positions) for shape in made.shapes} == {(1, 2), (1, 4)}
    results = Results(CONFIG, CostSurface(made_prior(), RECORDED), made)
    results.update(0.0, EngineStep(2, 1500, 1, decode=True))
    found = results.findings
    assert {(row.batch_size, row.context) for row in found.boundaries} == set(made.cells)
    assert {row.batch_size for row in found.live_curves} == {1, 2}, "16 do not fit there"


def test_a_measurement_reports_what_it_probes_alone() -> None:
    config = dataclasses.replace(CONFIG, wanted_samples=2)
    made = reported_table(config, server_table(lambda b, c: True), {(1, 256): (1, 2)})
    assert made.cells == {(1, 256): (1, 2)}
