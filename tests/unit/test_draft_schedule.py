from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.draft import (
    Acceptance,
    AcceptanceError,
    Demand,
    DraftCost,
    StepCurve,
    constant,
    from_rates,
    make_schedule,
)
from vllm_nfp.draft.acceptance import from_counters
from vllm_nfp.draft.between import between, larger, slower
from vllm_nfp.draft.curve import LARGEST_BATCH_SIZE, LARGEST_COUNT, curve_of_seconds
from vllm_nfp.draft.demand import LARGEST_DRAFT_LENGTH
from vllm_nfp.draft.schedule import best_length, good_lengths, row_at
from vllm_nfp.draft.sharing import SHARING_LOSS, shared_lengths
from vllm_nfp.draft.speculative_config import speculative_config, table
from vllm_nfp.types import Basis

COUNTS = (1, 2, 3, 4, 6, 8, 12)
shares = st.floats(0.0, 1.0)
ratios = st.lists(st.floats(0.9, 6.0), min_size=len(COUNTS) - 1, max_size=len(COUNTS) - 1)
acceptances = st.one_of(
    shares.map(constant),
    st.lists(shares, min_size=1, max_size=20).map(lambda a: Acceptance(tuple(a))),
    st.tuples(st.lists(shares, max_size=5), shares).map(lambda p: Acceptance(tuple(p[0]), p[1])),
)
costs = st.builds(DraftCost, *(st.floats(0.0, 0.2) for _ in range(4)))


def curve(values: list[float], batch_size: int = 1, context: int = 64) -> StepCurve:
    return StepCurve(batch_size, context, 0.01, tuple(zip(COUNTS, (1.0, *values), strict=True)))


curves = ratios.map(curve)


def brute_tokens(acceptance: Acceptance, k: int) -> float:
    chances = [*acceptance.per_position, *([acceptance.beyond] * k if acceptance.beyond else [])]
    chances += [0.0] * k
    return sum(math.prod(chances[:j]) for j in range(k + 1))


def brute_gain(step: StepCurve, demand: Demand, k: int) -> float:
    """Written out from the definition: tokens over the time of step and drafts, over 1 / t(1)."""
    measured = dict(step.points)
    below = max(n for n in measured if n <= k + 1)
    above = min(n for n in measured if n >= k + 1)
    step_seconds = max(measured[below], measured[above]) * step.seconds_at_one
    if above == k + 1:
        step_seconds = measured[above] * step.seconds_at_one
    cost, one = demand.cost, step.seconds_at_one
    step_seconds = max(step_seconds, one)  # no step with drafts is quicker than one without
    # A head takes the step in even if it drafts nothing.
    drafting = cost.seconds_per_token + cost.share_per_token * one
    if k:
        drafting = cost.seconds_once + cost.share_once * one
        drafting += k * (cost.seconds_per_token + cost.share_per_token * one)
    return brute_tokens(demand.acceptance, k) / (step_seconds + drafting) * one


@given(acceptances, st.integers(0, 30))
def test_expected_tokens_are_the_sum_of_the_chances(acceptance: Acceptance, k: int) -> None:
    if acceptance.longest is not None and k > acceptance.longest:
        with pytest.raises(ValueError, match="is not known"):
            acceptance.expected_tokens(k)
    else:
        assert acceptance.expected_tokens(k) == pytest.approx(brute_tokens(acceptance, k))


@given(st.lists(shares, min_size=1, max_size=12))
def test_rates_are_the_products_of_the_chances(chances: list[float]) -> None:
    rates = list(itertools.accumulate(chances, lambda a, b: a * b))
    read = from_rates(rates)
    for k in range(len(chances) + 1):
        assert read.expected_tokens(k) == pytest.approx(1 + sum(rates[:k]))


def test_counters_of_a_server_are_read() -> None:
    assert from_counters(10, [9, 6, 3]).per_position == pytest.approx((0.9, 6 / 9, 0.5))
    assert from_counters(10, [0, 0]).expected_tokens(2) == 1.0
    with pytest.raises(AcceptanceError, match="has counted no drafts yet"):
        from_counters(0, [0, 0])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: constant(1.2), "acceptance must be between 0 and 1, got 1.2"),
        (lambda: constant(math.nan), "acceptance must be between 0 and 1, got nan"),
        (lambda: Acceptance((0.5, -0.1)), "acceptance must be between 0 and 1, got -0.1"),
        (Acceptance, "acceptance is empty"),
        (lambda: Acceptance((0.5,) * 600), "acceptance has 600 values"),
        (lambda: from_rates([0.5, 0.6]), "rates rise from 0.5 to 0.6"),
        (lambda: from_rates([1.5]), "rates must be between 0 and 1, got 1.5"),
        (lambda: from_counters(5, [9]), "contradict each other .9 tokens accepted after 5."),
        (lambda: from_counters(9, [5, 6]), "contradict each other .6 tokens accepted after 5."),
        (lambda: DraftCost(seconds_once=-1.0), "cost must be 0 or more, not -1"),
    ],
)
def test_what_cannot_be_is_refused(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]


def test_extended_acceptance_goes_on_like_the_last() -> None:
    assert Acceptance((0.9, 0.5)).extended() == Acceptance((0.9, 0.5), 0.5)
    assert constant(0.5).extended() == constant(0.5)


@given(curves, st.integers(1, 12))
def test_the_curve_is_never_below_its_measured_neighbours(step: StepCurve, n: int) -> None:
    measured = dict(step.points)
    if n in measured:
        assert step.ratio(n) == measured[n]
    else:
        assert step.ratio(n) >= measured[max(m for m in measured if m < n)]
        assert step.ratio(n) >= measured[min(m for m in measured if m > n)]


@given(ratios, ratios, st.integers(1, 12))
def test_between_batch_sizes_the_curve_is_never_below_either(
    low: list[float], high: list[float], n: int
) -> None:
    one, other = curve(low, 1), curve(high, 8)
    assert slower(one, other).ratio(n) >= max(one.ratio(n), other.ratio(n)) - 1e-12


@given(curves, acceptances, costs, st.one_of(st.none(), st.integers(0, 15)))
def test_the_choice_is_the_best_of_all(
    step: StepCurve, acceptance: Acceptance, cost: DraftCost, cap: int | None
) -> None:
    demand = Demand(acceptance, cost, cap, slack=0.0)
    lengths = range(
        min(
            11, 99 if acceptance.longest is None else acceptance.longest, 99 if cap is None else cap
        )
        + 1
    )
    best = max(brute_gain(step, demand, k) for k in lengths)
    chosen = best_length(step, demand)
    assert chosen in lengths
    assert brute_gain(step, demand, chosen) == pytest.approx(best, rel=1e-9)


@given(curves, acceptances, costs, st.floats(0.0, 0.3))
def test_slack_gives_the_shortest_draft_that_is_good_enough(
    step: StepCurve, acceptance: Acceptance, cost: DraftCost, slack: float
) -> None:
    demand = Demand(acceptance, cost, slack=slack)
    gains = [brute_gain(step, demand, k) for k in range(demand.longest(step) + 1)]
    chosen = best_length(step, demand)
    assert gains[chosen] >= (1 - slack) * max(gains) * (1 - 1e-9)
    assert all(
        gain <= (1 - slack) * max(gains) * (1 + 1e-9) or gain < gains[0] for gain in gains[:chosen]
    )


@given(st.lists(curves, min_size=1, max_size=3), acceptances, costs)
def test_one_length_for_several_contexts_loses_least_and_never_to_no_drafts(
    steps: list[StepCurve], acceptance: Acceptance, cost: DraftCost
) -> None:
    demand = Demand(acceptance, cost, slack=0.0)
    table_of = [
        [brute_gain(step, demand, k) for step in steps]
        for k in range(min(demand.longest(step) for step in steps) + 1)
    ]
    best = [max(column) for column in zip(*table_of, strict=True)]
    kept = [
        min(g / b for g, b in zip(gains, best, strict=True))
        for gains in table_of
        if all(g >= without for g, without in zip(gains, table_of[0], strict=True))
    ]
    chosen = min(good_lengths(steps, demand))
    gains = table_of[chosen]
    assert all(g >= w - 1e-12 for g, w in zip(gains, table_of[0], strict=True))
    assert min(g / b for g, b in zip(gains, best, strict=True)) == pytest.approx(max(kept))


def test_neighbours_share_a_length_that_is_good_enough_for_both() -> None:
    one, eight = curve([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1), curve([1.0, 1.0, 1.0, 1.0, 1.0, 9.0], 8)
    demand = Demand(constant(0.6), slack=0.02)
    assert good_lengths([one], demand) >= {7, 8, 11}
    assert max(good_lengths([eight], demand)) == 7
    (entry,) = make_schedule([one, eight], demand).ranges
    assert entry.draft_length == min(good_lengths([one], demand) & good_lengths([eight], demand))
    exact = make_schedule([one, eight], Demand(constant(0.6), slack=0.0)).ranges
    assert [r.draft_length for r in exact] == [11, 7]


@given(st.lists(ratios, min_size=1, max_size=3), shares, st.floats(0.0, 0.3))
def test_sharing_gives_up_no_more_than_its_loss_beyond_the_slack(
    measured: list[list[float]], a: float, slack: float
) -> None:
    steps = [curve(v, b) for v, b in zip(measured, (1, 8, 32), strict=False)]
    demand = Demand(constant(a), slack=slack)
    looked_at = 0
    for row in make_schedule(steps, demand).rows:
        step = {1: 0, 8: 1, 32: 2}.get(row.batch_size_first)
        if step is not None and step < len(steps):
            looked_at += 1
            top = max(brute_gain(steps[step], demand, k) for k in range(COUNTS[-1]))
            scheduled = brute_gain(steps[step], demand, row.scheduled_draft_length)
            assert row.scheduled_gain == pytest.approx(scheduled)
            assert scheduled >= (1 - slack) * (1 - SHARING_LOSS) * top * (1 - 1e-9)
            assert scheduled >= 1.0 - 1e-9
    assert looked_at == len(steps)


some_scores = st.dictionaries(
    st.integers(0, 4), st.sampled_from([1.0, 0.999, 0.997, 0.996, 0.99]), min_size=1
)


@given(st.lists(some_scores, min_size=1, max_size=4), st.sampled_from([0.0, 0.003]))
def test_shared_lengths_are_the_best_of_all_tables(
    scores: list[dict[int, float]], slack: float
) -> None:
    def enough(of: dict[int, float]) -> float:
        return (1 - slack) * max(of.values())

    def cost(lengths: tuple[int, ...]) -> tuple[int, int, float, int]:
        steps = list(itertools.pairwise(lengths))
        lost = sum(max(0.0, enough(of) - of[k]) for of, k in zip(scores, lengths, strict=True))
        rises = sum(k > before for before, k in steps)
        return sum(k != before for before, k in steps), rises, round(lost, 9), sum(lengths)

    allowed = [
        [k for k, score in of.items() if score >= (1 - SHARING_LOSS) * enough(of)] for of in scores
    ]
    found = shared_lengths(scores, slack)
    assert all(k in some for k, some in zip(found, allowed, strict=True))
    assert cost(found) == min(map(cost, itertools.product(*allowed)))


def test_lengths_that_differ_little_do_not_flap() -> None:
    """Scores at batch sizes 4, 5, 6 and 8 on an H200: the best are 11, 11, 15 and 11."""
    scores = [
        {10: 0.994, 11: 1.0, 15: 0.993}, {10: 0.994, 11: 1.0, 15: 0.975},
        {11: 0.996, 12: 0.997, 15: 1.0}, {10: 0.994, 11: 1.0, 15: 0.99},
    ]  # fmt: skip
    assert shared_lengths(scores, 0.0) == (11, 11, 11, 11)
    scores[2][11] = 0.99
    assert shared_lengths(scores, 0.0) == (11, 11, 15, 11), "a change in any case: to the best"


def test_long_tables_of_many_lengths_are_made_quickly() -> None:
    many = [dict.fromkeys(range(513), 1.0), {0: 1.0, 512: 0.9999}] * 32
    begun = time.process_time()
    assert set(shared_lengths(many, 0.0)) == {0}
    assert time.process_time() - begun < 2.0


def test_a_longer_context_may_want_longer_drafts() -> None:
    cheap = curve([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1, 4096)
    steep = curve([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1, 64)
    made = make_schedule([cheap, steep], Demand(constant(0.9), slack=0.0))
    # One K for both, since vLLM's table knows no context; each says what is best for it alone.
    assert {row.draft_length for row in made.rows} == {made.ranges[0].draft_length}
    alone = {row.context: row.alone_draft_length for row in made.rows}
    assert (made.ranges[0].draft_length, alone) == (11, {64: 1, 4096: None})


def test_a_context_where_a_batch_was_not_measured_has_no_say_in_it() -> None:
    """Such a batch may not fit into memory there; what K wins there is inferred."""
    free, costly = [1.0] * 6, [9.0] * 6
    made = make_schedule(
        [curve(free, 1), curve(free, 8), curve(costly, 1, 4096)],
        Demand(constant(0.5), max_draft_length=3, slack=0.0),
    )
    assert [(r.batch_size_first, r.batch_size_last, r.draft_length) for r in made.ranges] == [
        (1, 1, 0), (2, 8, 3)
    ]  # fmt: skip
    # Steps of B = 1 tell of too few positions for K = 3 at B = 8, so nothing is promised there.
    assert [row.batch_size_first for row in made.rows if row.context == 4096] == [1]


def test_where_every_cell_that_fits_is_known_others_have_no_row() -> None:
    free, costly = [1.0] * 6, [9.0] * 6
    made = make_schedule(
        [curve(free, 1), curve(free, 2), curve(costly, 1, 4096)],
        Demand(constant(0.5), max_draft_length=3, slack=0.0),
        max_batch_size=4,
        whole=True,
    )
    assert [(r.context, r.batch_size_first, r.batch_size_last, r.basis) for r in made.rows] == [
        (64, 1, 1, "measured"), (64, 2, 2, "measured"), (64, 3, 4, "inferred"),
        (4096, 1, 1, "measured"),
    ]  # fmt: skip
    assert [(r.batch_size_first, r.draft_length) for r in made.ranges] == [(1, 0), (2, 3)]


def test_no_draft_is_longer_than_any_that_is_served() -> None:
    """However many positions a file says were measured: each length is looked at."""
    wide = StepCurve(1, 1024, 0.01, ((1, 1.0), (LARGEST_COUNT, 1.0)))
    lengths = Demand(constant(0.5)).lengths(wide)
    assert (len(lengths), lengths[-1]) == (LARGEST_DRAFT_LENGTH + 1, LARGEST_DRAFT_LENGTH)
    with pytest.raises(ValueError, match="positions a sequence, above"):
        StepCurve(1, 1024, 0.01, ((1, 1.0), (LARGEST_COUNT + 1, 1.0)))
    for batch_size in (0, LARGEST_BATCH_SIZE + 1):
        with pytest.raises(ValueError, match="batch size outside 1 to"):
            StepCurve(batch_size, 1024, 0.01, ((1, 1.0),))


def test_ranges_cover_all_batch_sizes_and_are_inferred_where_nothing_was_measured() -> None:
    free = [1.0] * 6
    made = make_schedule(
        [curve(free, 2), curve(free, 8), by_tokens(32)],
        Demand(constant(0.5), max_draft_length=3, slack=0.0),
        max_batch_size=64,
    )
    assert [(r.batch_size_first, r.batch_size_last, r.draft_length) for r in made.ranges] == [
        (1, 8, 3), (9, 32, 1), (33, 64, 0)
    ]  # fmt: skip
    assert [row.basis for row in made.rows] == [
        "inferred", "measured", "between", "measured", "between", "measured", "inferred"
    ]  # fmt: skip
    (eight,) = (row for row in made.rows if row.batch_size_first == 8)
    assert eight.tokens_per_second == pytest.approx(8 / 0.01 * 1.875)
    assert eight.tokens_per_second_without == pytest.approx(8 / 0.01)
    assert (eight.free_draft_length, eight.free_at_limit, eight.at_limit) == (11, True, False)


@given(st.integers(1, 100), st.lists(ratios, min_size=1, max_size=3), shares)
def test_ranges_are_merged_and_without_gaps(
    last: int, measured: list[list[float]], a: float
) -> None:
    steps = [curve(v, b) for v, b in zip(measured, (1, 8, 32), strict=False)]
    ranges = make_schedule(steps, Demand(constant(a)), last).ranges
    assert ranges[0].batch_size_first == 1
    assert ranges[-1].batch_size_last == last
    for before, after in itertools.pairwise(ranges):
        assert after.batch_size_first == before.batch_size_last + 1
        assert after.draft_length != before.draft_length


def test_a_cell_that_was_left_out_does_not_decide() -> None:
    """B=32 did not fit at the long context: the short one decides for it alone."""
    steps = [curve([1.0] * 6, 1, 64), curve([1.0] * 6, 32, 64), curve([9.0] * 6, 1, 4096)]
    made = make_schedule(steps, Demand(constant(0.5), max_draft_length=2, slack=0.0))
    assert [(r.batch_size_last, r.draft_length) for r in made.ranges] == [(1, 0), (32, 2)]
    assert {row.batch_size_first for row in made.rows if row.context == 4096} == {1}


def test_a_head_costs_its_pass_where_nothing_is_drafted() -> None:
    """At 0.3 of a step for each pass, K = 1 beats K = 0 of the same server, and loses to none."""
    steep = curve([1.6, 2.6, 3.6, 4.6, 5.6, 6.6])
    head = Demand(constant(0.6), DraftCost(share_per_token=0.3))
    assert head.gain(steep, 0) == pytest.approx(1 / 1.3)
    assert head.gain(steep, 1) == pytest.approx(1.6 / 1.9)
    made = make_schedule([steep], head)
    assert (made.longest, made.pays) == (1, False)
    with pytest.raises(ValueError, match="drafts pay at no batch size"):
        speculative_config(made, "mtp")
    look_up = make_schedule([steep], Demand(constant(0.6), DraftCost(share_once=0.3)))
    assert (look_up.longest, look_up.pays) == (0, False)
    assert make_schedule([curve([1.0] * 6)], head).pays


def test_a_draft_that_costs_time_is_made_shorter() -> None:
    step = curve([1.0] * 6)
    free = best_length(step, Demand(constant(0.8), slack=0.0))
    costly = best_length(step, Demand(constant(0.8), DraftCost(share_per_token=0.2), slack=0.0))
    prohibitive = best_length(step, Demand(constant(0.8), DraftCost(share_once=5.0)))
    assert free == 11
    assert 0 < costly < free
    assert prohibitive == 0


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "lacks its point at N = 1"),
        ({2: 1.0}, "lacks its point at N = 1"),
        ({1: 0.0}, "is not above 0"),
        ({1: 1.0, 2: -1.0}, "is not above 0"),
        ({1: 1.0, 2: math.nan}, "is not above 0"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(values: dict[int, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        curve_of_seconds(1, 64, values)


def test_schedules_need_distinct_curves() -> None:
    with pytest.raises(ValueError, match="no curve of the whole step"):
        make_schedule([], Demand(constant(0.5)))
    with pytest.raises(ValueError, match="two curves for batch size 1 and context 64"):
        make_schedule([curve([1.0] * 6)] * 2, Demand(constant(0.5)))


def test_larger_batches_than_measured_are_inferred_and_not_served_without_drafts() -> None:
    free = Demand(constant(0.5), max_draft_length=2)
    made = make_schedule([curve([1.0] * 6, 1)], free)
    assert table(made) == [[1, 1, 2]], "vLLM goes on with the last K"
    # Steps of B = 1 were free up to 12 tokens: so are those of B = 4 with 3 positions.
    made = make_schedule([curve([1.0] * 6, 1)], free, 16)
    assert [(r.batch_size_last, r.draft_length, r.basis) for r in made.rows] == [
        (1, 2, "measured"), (2, 2, "inferred"), (4, 2, "inferred"), (8, 1, "predicted"),
        (16, 1, "predicted"),
    ]  # fmt: skip
    # Where tokens cost, drafts end by themselves.
    costly = make_schedule([by_tokens(32)], Demand(constant(0.5)), 256)
    assert costly.length_of(32) > costly.length_of(64) >= costly.length_of(128) == 0


@given(st.integers(2, 40), ratios)
def test_a_curve_beyond_the_measured_batch_sizes_is_that_of_as_many_tokens(
    batch_size: int, values: list[float]
) -> None:
    low = curve(values, 2)
    found = larger(low, batch_size)
    assert found.basis(1) is not Basis.MEASURED
    if batch_size <= low.batch_size * low.largest // 2:
        one = found.seconds_at_one
        for n, ratio in found.points[1:]:
            assert ratio * one == pytest.approx(
                low.seconds_at_one * low.ratio(-(-n * batch_size // 2))
            )
    else:
        assert found.basis(1) is Basis.PREDICTED


def test_a_gain_never_exceeds_the_tokens_of_a_step() -> None:
    """Noisy pairs once said 0.73 for t(4) / t(1), and 4.29x was promised at 3.14 tokens a step."""
    noisy = curve([0.9, 0.8, 0.73, 0.8, 0.9, 1.0])
    noisy = replace(noisy, intervals=((1.0, 1.0), *((0.5, 1.1),) * 6))
    for row in make_schedule([noisy], Demand(constant(0.8))).rows:
        assert row.gain <= row.expected_tokens
        assert row.gain_upper is not None and row.gain_upper <= row.expected_tokens * (1 + 1e-9)
        assert row.step_ratio >= 1.0


def test_a_servers_host_time_weighs_every_length() -> None:
    """722 tokens/s were stepped where 1901 were promised: the host bound the steps."""
    step = replace(by_tokens(1), batch_size=1)
    (free,) = make_schedule([step], Demand(constant(0.7), max_draft_length=3)).rows
    slow = Demand(constant(0.7), max_draft_length=3, host_seconds=4 * step.seconds_at_one)
    (row,) = make_schedule([step], slow).rows
    assert free.tokens_per_second is not None and row.tokens_per_second is not None
    assert row.tokens_per_second == pytest.approx(free.tokens_per_second / 5)


def test_gains_compare_with_what_runs_and_have_the_counting_error() -> None:
    step = replace(curve([1.0] * 6), intervals=((1.0, 1.0),) * 7)
    counted = from_counters(200, [140, 98, 69, 48])
    demand = Demand(counted, slack=0.0, running=2)
    (row,) = make_schedule([step], demand).rows
    assert (row.draft_length, row.running_draft_length) == (4, 2)
    assert row.gain_over_running == pytest.approx(row.expected_tokens / counted.expected_tokens(2))
    lower, upper = row.gain_over_running_lower, row.gain_over_running_upper
    assert lower is not None and upper is not None and row.gain_over_running is not None
    assert 1.0 < lower < row.gain_over_running < upper
    # A simulation of as many drafts, drawn again and again, scatters as much.
    rng = random.Random(1)
    ratios = sorted(drawn_ratio(rng, counted.per_position, 200) for _ in range(400))
    assert lower == pytest.approx(ratios[10], rel=0.02)
    assert upper == pytest.approx(ratios[-11], rel=0.02)


def drawn_ratio(rng: random.Random, chances: Sequence[float], drafts: int) -> float:
    """E(4) / E(2) of so many drafts whose tokens are accepted with these chances."""
    tokens = {2: float(drafts), 4: float(drafts)}
    for _ in range(drafts):
        accepted = next((i for i, a in enumerate(chances) if rng.random() >= a), len(chances))
        for k in tokens:
            tokens[k] += min(k, accepted)
    return tokens[4] / tokens[2]


def test_acceptance_is_of_tokens_that_were_drafted() -> None:
    """Ours said 0.948 where vLLM had counted 2245 of 2245 drafted tokens as accepted."""
    assert from_counters(600, [600, 560, 550, 535], 2245).per_position == (1.0, 1.0, 1.0, 1.0)
    some = from_counters(1000, [700, 400, 150, 40], 2500)
    whole = from_counters(1000, [700, 400, 150, 40])
    assert all(a >= b for a, b in zip(some.per_position, whole.per_position, strict=True))
    assert some.expected_tokens(4) > whole.expected_tokens(4)
    assert from_counters(1000, [700, 400, 150, 40], 4000) == whole


def test_settings_for_vllm() -> None:
    made = make_schedule([curve([1.0] * 6, 1)], Demand(constant(0.5), max_draft_length=2))
    assert speculative_config(made, "eagle", "heads/eagle") == {
        "method": "eagle",
        "model": "heads/eagle",
        "num_speculative_tokens": 2,
    }
    two = make_schedule(
        [curve([1.0] * 6, 1), curve([1.0, 9.0, 9.0, 9.0, 9.0, 9.0], 8)], Demand(constant(0.5))
    )
    assert speculative_config(two, "ngram")["num_speculative_tokens_per_batch_size"] == [
        [entry.batch_size_first, entry.batch_size_last, entry.draft_length] for entry in two.ranges
    ]
    with pytest.raises(ValueError, match="needs the directory or name of its draft model"):
        speculative_config(made, "draft_model")
    with pytest.raises(ValueError, match="'medusa' is none of ngram, ngram_gpu, suffix, eagle"):
        speculative_config(made, "medusa")
    nowhere = make_schedule([curve([9.0] * 6, 1)], Demand(constant(0.1)))
    with pytest.raises(ValueError, match="drafts pay at no batch size"):
        speculative_config(nowhere, "ngram")


def by_tokens(batch_size: int, basis: Basis = Basis.MEASURED, context: int = 64) -> StepCurve:
    """A step that is free up to 64 tokens and then costs as its tokens."""
    seconds = {n: max(64.0, batch_size * n) * 1e-4 for n in COUNTS}
    made = curve_of_seconds(batch_size, context, seconds)
    ratios = dict(made.points)
    return replace(
        made,
        bases=(basis,) * len(COUNTS),
        intervals=tuple((0.9 * ratio, 1.2 * ratio) for ratio in ratios.values()),
    )


def test_between_close_batch_sizes_steps_of_as_many_tokens_are_compared() -> None:
    """Where the slower neighbour alone would end the free drafts of 8 tokens too early."""
    low, high = by_tokens(8), by_tokens(16)
    assert between(low, high, 10).free_positions(0.1) == (6, False)
    assert slower(low, high).free_positions(0.1) == (4, False)
    made = make_schedule([low, high], Demand(constant(0.9), slack=0.0))
    assert [(row.batch_size_first, row.batch_size_last) for row in made.rows] == [
        (1, 7), (8, 8), (9, 10), (11, 12), (13, 14), (15, 15), (16, 16)
    ]  # fmt: skip
    assert [row.between for row in made.rows] == [True, False, True, True, True, True, False]
    # The largest batch of each range decides for it.
    (row,) = (row for row in made.rows if row.batch_size_first == 9)
    exact = best_length(between(low, high, 10), Demand(constant(0.9), slack=0.0))
    assert row.alone_draft_length in (None, exact)
    best = Demand(constant(0.9)).gain(between(low, high, 10), exact)
    assert row.gain >= (1 - SHARING_LOSS) * best


@given(ratios, ratios, st.integers(9, 15))
def test_what_lies_between_is_never_called_measured_and_is_in_its_interval(
    low: list[float], high: list[float], batch_size: int
) -> None:
    found = between(curve(low, 8), curve(high, 16), batch_size)
    for (n, ratio), (lower, upper) in zip(found.points, found.intervals, strict=True):
        assert lower <= ratio <= upper
        assert found.basis(n) is Basis.INFERRED
    assert found.ratio(1) == 1.0


def test_a_length_rests_on_the_weakest_of_what_decides_it() -> None:
    steep = replace(
        curve([2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
        bases=(Basis.MEASURED, Basis.PREDICTED, *[Basis.MEASURED] * 5),
    )
    # K = 0 wins over K = 1, of which nothing was measured.
    (row,) = make_schedule([steep], Demand(constant(0.5))).rows
    assert (row.draft_length, row.basis) == (0, Basis.PREDICTED)
    mixed = replace(steep, bases=(*[Basis.MEASURED] * 4, Basis.INFERRED, *[Basis.PREDICTED] * 2))
    # N = 5 was not asked for: 4 is measured, 6 inferred.
    assert [mixed.basis(n) for n in (1, 4, 5, 6, 7, 8)] == [
        Basis.MEASURED, Basis.MEASURED, Basis.INFERRED, Basis.INFERRED, Basis.PREDICTED,
        Basis.PREDICTED,
    ]  # fmt: skip
    assert curve([1.0] * 6).basis(3) is Basis.MEASURED, "curves of old profiles say no basis"
    with pytest.raises(ValueError, match="lacks the basis"):
        replace(steep, bases=(Basis.MEASURED,))


def test_every_range_of_the_table_says_what_it_rests_on() -> None:
    steps = [
        by_tokens(1),
        by_tokens(2, Basis.INFERRED),
        by_tokens(4, Basis.PREDICTED),
        by_tokens(32),
        by_tokens(1, context=256),
    ]
    made = make_schedule(steps, Demand(constant(0.9), slack=0.0), 64)
    told = {(row.batch_size_first, row.context): row.basis for row in made.rows}
    assert told == {
        (1, 64): "measured", (2, 64): "inferred", (3, 64): "predicted", (4, 64): "predicted",
        (5, 64): "predicted", (32, 64): "measured", (33, 64): "inferred",
        (1, 256): "measured", (5, 256): "predicted", (32, 256): "predicted",
        (33, 256): "predicted",
    }  # fmt: skip
    bases = [(entry.batch_size_last, entry.basis) for entry in made.ranges]
    assert bases == [(4, "predicted"), (32, "predicted"), (64, "predicted")]


def test_the_gain_has_the_interval_of_its_steps_time() -> None:
    cost = DraftCost(share_per_token=0.05)
    demand = Demand(constant(0.8), cost, slack=0.0)
    row = row_at(by_tokens(8), demand)
    k, tokens = row.draft_length, row.expected_tokens
    assert row.gain_lower == pytest.approx(tokens / (1.2 * row.step_ratio + 0.05 * k))
    fastest = max(1.0, 0.9 * row.step_ratio)
    assert row.gain_upper == pytest.approx(tokens / (fastest + 0.05 * k))
    (bare,) = make_schedule([curve([1.0] * 6)], demand).rows
    assert (bare.gain_lower, bare.gain_upper) == (None, None)
    assert bare.gain_text == f"{bare.gain:.2f}x"


def test_of_lengths_that_are_alike_the_shortest_is_chosen() -> None:
    assert best_length(curve([1.0] * 6), Demand(Acceptance((0.9, 0.0, 0.0)), slack=0.0)) == 1
