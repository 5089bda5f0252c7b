"""What is probed next, and when enough is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from made_surface import made_prior
from test_results import pair

from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import plain_table
from vllm_nfp.schedule.agenda import NO_AGENDA, Agenda
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session import agenda_maker
from vllm_nfp.session.agenda_maker import MOST, PAIRS_PER_CELL, AgendaMaker, nearest, with_content
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.surface import RECORDED, Concern, CostSurface
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import Basis, PairResult, Shape, State


def results_of(config: ProbeConfig) -> Results:
    table = plain_table(
        config.batch_sizes, config.contexts, config.grid, 4096, 256, lambda *_: "full"
    )
    results = Results(config, CostSurface(made_prior(), RECORDED), table)
    results.update(0.0)
    return results


@pytest.fixture
def results() -> Results:
    return results_of(ProbeConfig().for_server(16, 4096))


def test_an_agenda_holds_distinct_shapes_of_the_table(results: Results) -> None:
    found = AgendaMaker(results._config, results).make(Counters(), {})
    assert len(found.shapes) == len(set(found.shapes)) == MOST
    assert set(found.shapes) <= set(results.table.shapes)
    assert not found.settled
    assert found.missing_pairs == 10, "cells, all of them predicted"


def test_what_is_refused_or_put_off_is_not_asked_for(results: Results) -> None:
    maker = AgendaMaker(results._config, results)
    first = maker.make(Counters(), {})
    refused, put_off = frozenset(first.shapes[:8]), frozenset(first.shapes[8:])
    for _ in range(10):
        found = maker.make(Counters(refused=refused, put_off=put_off), {})
        assert not set(found.shapes) & (refused | put_off)
    everything = frozenset(results.table.shapes)
    assert maker.make(Counters(refused=everything), {}) == Agenda(settled=True)


def test_cells_with_traffic_come_more_often(results: Results) -> None:
    maker = AgendaMaker(results._config, results)

    def in_cell(traffic: dict[tuple[int, int], float]) -> int:
        made = [maker.make(Counters(), traffic) for _ in range(12)]
        return sum((s.batch_size, s.context) == (16, 1024) for a in made for s in a.shapes[:4])

    assert in_cell({(13, 900): 10.0}) > 2 * in_cell({})


def test_a_graph_that_is_missing_counts_as_cost(results: Results) -> None:
    maker = AgendaMaker(results._config, results)
    ready = frozenset({(16, 1), (16, 4), (8, 1), (8, 8)})
    dear = [maker.make(Counters(ready=ready, piece_seconds=5.0), {}) for _ in range(8)]
    first = [agenda.shapes[0] for agenda in dear]
    asked = [shape for shape in first if (shape.batch_size, shape.positions) in ready]
    assert len(asked) >= 4, "graphs that are there were passed over"


def test_a_live_cell_between_reported_ones_is_told_of_by_the_next_larger(results: Results) -> None:
    assert nearest(results.table, (8, 1024)) == (8, 1024)
    assert nearest(results.table, (5, 300)) == (8, 1024)
    assert nearest(results.table, (200, 9000)) == (16, 1024)


def run_agendas(results: Results, pairs: int, ratio: Callable[[Shape], float]) -> Agenda:
    """Run this many pairs as the agendas ask for them; the last agenda."""
    maker = AgendaMaker(results._config, results)
    agenda = maker.make(Counters(), {})
    for now in range(pairs):
        results.add(made(agenda.shapes[0], ratio), float(now))
        results.update(float(now))
        agenda = maker.make(Counters(), {})
    return agenda


def made(shape: Shape, ratio: Callable[[Shape], float]) -> PairResult:
    return pair(shape, ratio(shape))


def predicted(shape: Shape) -> float:
    """What the prior says, one per cent off."""
    cell = made_prior()(shape.batch_size, shape.context)
    return float(1.01 * 2.718281828 ** (cell.log_step[shape.positions - 1] - cell.log_step[0]))


def test_every_cell_is_measured_nearby_sooner_or_later() -> None:
    results = results_of(ProbeConfig(batch_sizes=(2, 16), contexts=(256, 1024)))
    agenda = run_agendas(results, PAIRS_PER_CELL * 4 - 1, predicted)
    assert agenda.missing_pairs == 0
    bases = {line.basis for line in results.findings.boundaries if line.module == "model"}
    assert Basis.PREDICTED not in bases
    assert not agenda.settled, "more pairs still sharpen the answers"
    assert run_agendas(results, 1, predicted).settled


def test_with_wanted_samples_every_point_gets_them_however_far_over_the_lines() -> None:
    config = ProbeConfig(
        batch_sizes=(4, 8), contexts=(256,), positions=(1, 2, 4, 8, 16), wanted_samples=3
    )
    results = results_of(config)

    def ratio(shape: Shape) -> float:
        return 1.02 if shape.positions < 8 else 2.5

    last = AgendaMaker(config, results).make(Counters(), {})
    assert last.missing_pairs == 3 * 8
    while last.missing_pairs:
        assert {results.taken(shape) for shape in last.shapes} <= {0, 1, 2}, "a wasted pair"
        before = last.missing_pairs
        last = run_agendas(results, 1, ratio)
        assert last.missing_pairs < before
    assert {results.taken(shape) for shape in results.table.shapes} == {3}
    assert last.settled, "a scan would go on for ever"


def test_shapes_with_graphs_go_first_until_they_are_ahead() -> None:
    config = ProbeConfig(batch_sizes=(4, 8), contexts=(256,), wanted_samples=10)
    results = results_of(config)
    ready = frozenset({(8, 4)})
    maker = AgendaMaker(config, results)
    for now in range(agenda_maker.STAY_PAIRS):
        assert maker.make(Counters(ready=ready), {}).shapes[0] == Shape(8, 256, 4)
        results.add(pair(Shape(8, 256, 4)), float(now))
        results.update(float(now))
    results.add(pair(Shape(8, 256, 4)), 99.0)
    assert maker.make(Counters(ready=ready), {}).shapes[0] != Shape(8, 256, 4)


def test_a_publisher_chooses_again_when_something_has_happened() -> None:
    config = ProbeConfig(batch_sizes=(4,), contexts=(256,), positions=(1, 2, 4))
    output: Any = SimpleNamespace(record=lambda _: None)
    one = Publisher(
        config, Snapshot("m", "0", State.WARMING), StepTimes(), results_of(config), output
    )
    assert one.agenda is NO_AGENDA
    agendas = []
    for counters in (
        Counters(),
        Counters(),
        Counters(refused=frozenset({Shape(4, 256, 2)})),
        Counters(refused=frozenset({Shape(4, 256, 2)}), wants_agenda=True),
    ):
        one.count(counters)
        one.process()
        agendas.append(one.agenda)
    assert [a is b for a, b in itertools.pairwise(agendas)] == [True, False, False]
    assert agendas[0].shapes and Shape(4, 256, 2) not in agendas[2].shapes
    assert one.snapshot().state is State.WARMING
    one.put(pair(Shape(4, 256, 4)))
    one.process()
    assert one.agenda is not agendas[-1]
    assert one.snapshot().state is State.STEADY
    assert one.snapshot().missing_pairs == 0


def test_without_probes_nothing_is_chosen() -> None:
    config = ProbeConfig(batch_sizes=(4,), contexts=(256,), passive=True)
    output: Any = SimpleNamespace(record=lambda _: None)
    one = Publisher(
        config, Snapshot("m", "0", State.PASSIVE), StepTimes(), results_of(config), output
    )
    one.process()
    assert one.agenda is NO_AGENDA
    assert one.snapshot().boundaries


def test_pairs_read_real_contexts_where_the_cell_at_hand_has_none(results: Results) -> None:
    """As many sequences at a shorter context, else fewer sequences; nothing where all have it."""
    table = results.table
    for written, cell, instead in (
        ((), (4, 4096), ()),
        ((2000, 2000), (1, 1024), ()),
        ((2000,) * 4, (4, 4096), ((4, 1024),)),
        ((2000, 2000, 300, 300), (4, 1024), ((4, 256),)),
        ((2000, 2000, 2000), (16, 4096), ((2, 1024),)),
        (None, (16, 4096), ()),
    ):
        assert with_content(table, cell, Counters(written_contexts=written)) == instead


def test_such_pairs_are_candidates(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = AgendaMaker(results._config, results)
    seen: set[Shape] = set()

    def choose(candidates: Any, *_: Any) -> tuple[Shape, ...]:
        seen.update(c.shape for c in candidates if c.content)
        return ()

    monkeypatch.setattr(results.surface, "choose", choose)
    monkeypatch.setattr(agenda_maker, "drawn_concerns", lambda *_: [Concern(1, 900, 1.0)])
    maker.make(Counters(written_contexts=(700,)), {})
    assert {(s.batch_size, s.context) for s in seen} == {(1, 256)}


def test_cells_with_real_contexts_are_explored_first(results: Results) -> None:
    maker = AgendaMaker(results._config, results)
    findings: Any = SimpleNamespace(pairs=7, boundaries=results.findings.boundaries)
    unknown = tuple(results.table.probed)
    counters = Counters(written_contexts=(300, 300))
    found = {maker._explored(unknown, findings, counters)[0] for _ in range(30)}
    assert {(s.batch_size, s.context) for s in found} == {(1, 256), (2, 256)}
    assert (
        len({maker._explored(unknown, findings, Counters(written_contexts=())) for _ in range(30)})
        > 4
    )


def test_a_candidate_knows_whether_its_blocks_have_content(results: Results) -> None:
    """They have where as many contexts as it has sequences are long enough."""
    maker = AgendaMaker(results._config, results)
    shapes = [Shape(1, 1024, 4), Shape(2, 1024, 4), Shape(2, 1024, 5)]
    for written, content in (
        ((), [False, False, False]),
        ((4096,), [True, False, False]),
        ((4096, 1028, 1027), [True, True, False]),
        (None, [True, True, True]),
    ):
        found = maker._with_costs(shapes, Counters(written_contexts=written))
        assert [candidate.content for candidate in found] == content
