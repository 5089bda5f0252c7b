"""Costs by requests and tokens, made of the surface's answers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_nfp.draft import cost_tables
from vllm_nfp.draft.cost_rows import Lack, founded_rows, least_lack, raised
from vllm_nfp.draft.cost_tables import TableMaker, priced, verify_ms, work_tables
from vllm_nfp.draft.verify_costs import (
    Beside,
    CostRow,
    Rest,
    VerifyCosts,
    cost_file,
    read_costs,
    rest_at,
    same_rests,
    same_rows,
)
from vllm_nfp.results.snapshot import SnapshotError
from vllm_nfp.strict_json import encode
from vllm_nfp.types import Basis, CurvePoint

GRAPHS = (1, 2, 4, 8, 16, 24, 32)


def point(batch_size: int, n: int, basis: Basis = Basis.INFERRED, width: float = 1.1) -> CurvePoint:
    ratio = 1.0 + 0.1 * (n - 1)
    seconds = 0.004 * batch_size**0.1 * ratio
    return CurvePoint(
        "model", batch_size, 1024, n, 3, seconds, ratio, ratio, width * ratio, "full",
        seconds / 1.05, 1.05 * seconds, basis,
    )  # type: ignore[arg-type]  # fmt: skip


def curve(batch_size: int) -> list[CurvePoint]:
    return [point(batch_size, n) for n in (1, 2, 3, 4, 6, 8)]


def instead(point: CurvePoint) -> list[CurvePoint]:
    """The curve with another point in the place of one."""
    return [point if p.positions == point.positions else p for p in curve(8)]


def test_a_batch_size_is_used_once_all_that_a_step_may_run_is_known_well() -> None:
    (row,) = founded_rows(curve(8), 5)
    assert row.batch_size == 8
    assert len(row.seconds) == 5
    assert row.seconds[4] == pytest.approx((row.seconds[3] + curve(8)[4].median_seconds) / 2)
    assert founded_rows(curve(8), 9) == (), "a step may have more positions than are known"
    for n in (4, 6):
        assert founded_rows(instead(point(8, n, width=2.6)), 5) == ()
        assert founded_rows(instead(point(8, n, width=2.4)), 5)
    assert founded_rows(instead(point(8, 8, width=2.6)), 5), "no step has eight positions"
    unknown = [replace(p, ratio_upper=None) if p.positions == 2 else p for p in curve(8)]
    assert founded_rows(unknown, 5) == ()


def test_what_is_predicted_counts_as_what_was_measured_if_it_is_as_narrow() -> None:
    predicted = [point(8, n, Basis.PREDICTED) for n in (1, 2, 3, 4, 6, 8)]
    assert founded_rows(predicted, 5) == founded_rows(curve(8), 5) != ()


def test_a_generic_guess_does_not_count() -> None:
    """Its intervals are narrow, and say little of a model or device that nobody has looked at."""
    guess = instead(point(8, 4, Basis.PREDICTED))
    assert founded_rows(guess, 5, guessed=True) == ()
    assert least_lack(guess, 5, guessed=True) is Lack.GROUND
    assert founded_rows(curve(8), 5, guessed=True), "pairs have shown each of its ratios"
    far = instead(point(8, 8, Basis.PREDICTED))
    assert founded_rows(far, 5, guessed=True), "no step has eight positions"


def at_one(width: float, basis: Basis = Basis.INFERRED) -> CurvePoint:
    """t(1) of a context that no pair was run at."""
    one = point(8, 1, basis)
    lower = one.median_seconds / width**0.5
    return replace(one, seconds_lower=lower, seconds_upper=width * lower)


def test_a_context_without_pairs_is_used_once_its_time_is_known() -> None:
    assert founded_rows([at_one(2.4), *curve(8)[1:]], 5)
    assert founded_rows([at_one(2.6), *curve(8)[1:]], 5) == ()
    untimed = replace(at_one(1.15), seconds_upper=None)
    assert founded_rows([untimed, *curve(8)[1:]], 5) == ()
    assert founded_rows([at_one(2.6, Basis.MEASURED), *curve(8)[1:]], 5), "pairs were run there"


@pytest.mark.parametrize(
    ("curves", "lack"),
    [
        ([], Lack.CURVE),
        (curve(8)[:3], Lack.CURVE),
        ([at_one(2.6), *curve(8)[1:]], Lack.TIME),
        ([*curve(8)[:-1], point(8, 8, width=2.6), point(4, 1)], Lack.WIDTH),
        ([*curve(4), point(8, 1)], Lack.NOTHING),
    ],
)
def test_what_the_best_known_batch_size_lacks_is_named(
    curves: list[CurvePoint], lack: Lack
) -> None:
    assert least_lack(curves, 8) is lack
    assert bool(founded_rows(curves, 8)) == (lack is Lack.NOTHING)


def test_tokens_cost_what_their_graph_costs_and_never_less_than_fewer() -> None:
    table = verify_ms([CostRow(4, (0.004, 0.005, 0.0049, 0.007))], 4, GRAPHS)
    assert table is not None
    cost = dict(zip(range(4, 17), table, strict=True))
    assert (cost[4], cost[8], cost[16]) == pytest.approx((4.0, 5.0, 7.0))
    assert cost[5] == cost[8], "5 tokens run in the graph of 8"
    assert cost[9] == cost[16]
    assert all(a <= b for a, b in itertools.pairwise(table))


def test_the_end_of_the_graphs_is_not_blended() -> None:
    table = verify_ms([CostRow(16, (0.004, 0.005, 0.009, 0.011))], 16, GRAPHS)
    assert table is not None
    cost = dict(zip(range(16, 65), table, strict=True))
    assert cost[32] == pytest.approx(5.0)
    assert cost[33] == pytest.approx(9.0), "the first step without a graph is at three positions"
    assert cost[56] == pytest.approx(10.0), "nothing is padded there"


def beyond(n: int, upper: float | None, batch_size: int = 8) -> CurvePoint:
    """A step of 8 n tokens without a graph, of which little is known."""
    found = point(batch_size, n, Basis.PREDICTED)
    return replace(found, ratio_upper=upper, execution="none")


def test_steps_beyond_the_graphs_are_priced_at_the_upper_end_of_what_is_known() -> None:
    near, far = beyond(6, 5.0), beyond(8, 5.5)
    points = [*curve(8)[:4], near, far]
    assert founded_rows(points, 8) == ()
    assert least_lack(points, 8) is Lack.WIDTH
    (row,) = founded_rows(points, 8, GRAPHS[-1])
    assert least_lack(points, 8, GRAPHS[-1]) is Lack.NOTHING
    assert row.seconds[:4] == tuple(p.median_seconds for p in curve(8)[:4])
    one = curve(8)[0].median_seconds
    assert row.seconds[5:] == pytest.approx((5.0 * one, 5.25 * one, 5.5 * one))
    assert row.seconds[4] == row.seconds[5], "five positions are not blended with four in a graph"
    unknown = [*curve(8)[:4], near, beyond(8, None)]
    assert least_lack(unknown, 8, GRAPHS[-1]) is Lack.WIDTH
    assert founded_rows(unknown, 8, 4) == (), "no step of eight sequences has a graph"


def test_a_step_in_a_graph_is_not_blended_with_one_without() -> None:
    points = [curve(8)[0], curve(8)[1], beyond(6, 9.0)]
    (row,) = founded_rows(points, 6, GRAPHS[-1])
    two = curve(8)[1].median_seconds
    assert row.seconds[2:4] == pytest.approx((1.5 * two, 2 * two)), "no more than its tokens say"
    assert row.seconds[4] == row.seconds[5]


def test_no_step_beyond_the_graphs_takes_less_than_its_launches() -> None:
    rows = [CostRow(8, (0.004, 0.005)), CostRow(16, (0.004, 0.006, 0.009)), CostRow(64, (0.01,))]
    found = raised(rows, 32, 0.02)
    assert found[0] == rows[0]
    assert found[1].seconds == (0.004, 0.006, 0.02)
    assert found[2] == rows[2], "none of its steps has a graph"
    assert raised(rows, 32, 0.0) == tuple(rows)


def test_between_batch_sizes_the_end_of_the_graphs_is_not_blended() -> None:
    low = CostRow(8, (0.004, 0.005, 0.006, 0.007, 0.052))
    high = CostRow(16, (0.005, 0.007, 0.045, 0.05, 0.055))
    table = verify_ms([low, high], 10, GRAPHS)
    assert table is not None
    cost = dict(zip(range(10, 51), table, strict=True))
    assert 6.0 < cost[30] < 7.0, "three positions have a graph, which those of 16 sequences lack"
    assert cost[33] == pytest.approx(50.0), "beyond the graphs: as with more sequences"
    assert 52.0 < cost[50] < 55.0, "neither has a graph"
    wide = [CostRow(24, (0.005, 0.04)), CostRow(48, (0.05, 0.06))]
    assert verify_ms(wide, 30, GRAPHS) is None, "48 sequences have no step in a graph"


def test_a_batch_size_between_two_rows_lies_between_them() -> None:
    rows = [CostRow(8, (0.004, 0.005)), CostRow(16, (0.005, 0.008)), CostRow(64, (0.009, 0.02))]
    between = verify_ms(rows, 11, ())
    assert between is not None
    assert 4.0 < between[0] < 5.0
    assert 5.0 < between[-1] < 8.0
    assert verify_ms(rows, 32, ()) is None, "no rows are near"
    assert verify_ms(rows, 4, ()) is None
    assert verify_ms(rows, 65, ()) is None


def test_tables_are_made_beforehand_for_what_is_known() -> None:
    costs = VerifyCosts("0", 7, 1024, (CostRow(8, (0.004, 0.005)), CostRow(16, (0.005, 0.008))))
    made = priced(costs, work_tables(costs.rows, 64, GRAPHS))
    assert made.version == 7
    assert sorted(made.by_requests) == list(range(8, 17))
    assert len(made.by_requests[10]) == 11


ROWS = (CostRow(8, (0.004, 0.005)), CostRow(16, (0.005, 0.008)))
RESTS = (
    Rest(4, Beside(0.001, 0.002), Beside(0.002, 0.003)), Rest(16, Beside(0.0003), Beside(0.0004)),
)  # fmt: skip


def test_what_is_beside_the_work_is_priced_and_told_apart_again() -> None:
    work = work_tables(ROWS, 64, GRAPHS)
    bare = priced(VerifyCosts("0", 7, 1024, ROWS), work)
    made = priced(VerifyCosts("0", 7, 1024, ROWS, RESTS), work)
    assert made.by_requests[8][:-1] == pytest.approx(bare.by_requests[8][:-1] + 2.0)
    assert made.by_requests[8][-1] == pytest.approx(bare.by_requests[8][-1] + 1.0)
    assert made.by_requests[16][-1] == pytest.approx(bare.by_requests[16][-1] + 0.3)
    for place in (0, 3, 8, 99):
        assert made.of_work(8, place) == pytest.approx(bare.of_work(8, place))
    assert made.of_work(40, 0) is None


def test_what_is_beside_the_work_is_that_of_the_nearest_batch_size() -> None:
    assert rest_at(RESTS, 4) == rest_at(RESTS, 2) == (RESTS[0].whole, RESTS[0].cut)
    assert rest_at(RESTS, 9) == rest_at(RESTS, 32) == (Beside(0.0003), Beside(0.0004))
    assert rest_at(RESTS, 33) == rest_at(RESTS, 1) == rest_at((), 4) == (Beside(), Beside())
    near = Rest(4, Beside(0.00105, 0.00205), RESTS[0].cut), RESTS[1]
    assert same_rests(ROWS, RESTS, near)
    for other in (Beside(0.0022, 0.003), Beside(0.002, 0.0032)):
        assert not same_rests(ROWS, RESTS, (Rest(4, RESTS[0].whole, other), RESTS[1]))


def test_rows_are_the_same_where_no_choice_depends_on_what_differs() -> None:
    near = ROWS[0], replace(ROWS[1], seconds=(0.00502, 0.008))
    far = ROWS[0], replace(ROWS[1], seconds=(0.00503, 0.008))
    assert same_rows(near, ROWS)
    assert not same_rows(far, ROWS)
    assert not same_rows(ROWS[:1], ROWS)


def test_the_works_tables_are_made_anew_only_for_other_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maker, costs = TableMaker(64, GRAPHS), VerifyCosts("0", 7, 1024, ROWS)
    first = maker.made(costs)
    assert first.version == 7 and sorted(first.work) == list(range(8, 17))
    with monkeypatch.context() as patch:
        patch.setattr(cost_tables, "work_tables", lambda *_: 1 / 0)
        second = maker.made(replace(costs, version=8, rests=RESTS))
    assert second.version == 8 and second.work is first.work
    assert second.by_requests[8][0] > first.by_requests[8][0]
    other = maker.made(replace(costs, rows=ROWS[:1]))
    assert sorted(other.work) == [8]


def test_where_the_host_takes_longer_more_tokens_cost_nothing() -> None:
    work = work_tables(ROWS, 64, GRAPHS)
    host = Beside(0.0002, 0.006)
    made = priced(VerifyCosts("0", 7, 1024, ROWS, (Rest(16, host, host),)), work)
    device = work[16] + 0.2
    assert made.by_requests[16].tolist() == [max(6.0, ms) for ms in device]
    assert made.by_requests[16][0] == 6.0 < made.by_requests[16][-1] == device[-1]
    assert made.of_work(16, 0) == work[16][0]


def test_the_other_ranks_read_what_was_written(tmp_path: Path) -> None:
    costs = VerifyCosts("0", 7, 1024, (CostRow(8, (0.0041, 1 / 3)),), RESTS)
    path = cost_file(str(tmp_path), "0")
    path.write_text(encode(costs))
    assert read_costs(path) == costs
    path.write_text(encode(costs).replace("0.0041", "-1.0"))
    with pytest.raises(SnapshotError):
        read_costs(path)
