"""The live controller against a simulated server whose best draft length is known."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_nfp.draft import StepCurve, expected_tokens
from vllm_nfp.draft.batch_cells import batch_cell
from vllm_nfp.draft.live import (
    Controller,
    Reason,
    Settings,
    StepObservation,
    draft_token_seconds,
)
from vllm_nfp.draft.live.counted import CountedAcceptance
from vllm_nfp.draft.live.credit import FIRST_CREDIT, LATE_STEPS, MOST_CREDIT, Credit
from vllm_nfp.draft.live.report import pieces_of_report
from vllm_nfp.draft.live.steps import MOST_CELLS, CellTimes, cell_of, context_cell
from vllm_nfp.draft.live.trial import Trial
from vllm_nfp.results.control import ControlSnapshot, ControlState
from vllm_nfp.types import Basis

LENGTHS = (0, 1, 2, 3, 4, 6, 8)
StepTime = Callable[[int, int], float]
"""Seconds of a step by batch size and draft length."""


class Server:
    """Steps of a batch whose draft length follows the table two steps late, as vLLM's does.

    The table is written, and steps are timed, as :mod:`vllm_nfp.adapter.draft_control` does it.
    """

    def __init__(
        self,
        controller: Controller,
        step_time: StepTime,
        acceptance: float | list[float],
        slow_share: float = 0.0,
    ) -> None:
        self.slow_share, self._slow = slow_share, 0
        self.controller, self.step_time, self.acceptance = controller, step_time, acceptance
        self.random = random.Random(1)
        self.now = 0.0
        self.tokens = 0.0
        self.lengths: list[int] = []
        self._pending: list[int] = []
        self._table = controller.table(1024)
        self._applied: tuple[int, int] | None = None

    def run(self, batch_size: int, steps: int, context: int = 1024) -> Iterator[int]:
        for _ in range(steps):
            self._pending.append(self._table[batch_size])
            if len(self._pending) < 3:
                continue
            yield self._step(batch_size, context, self._pending.pop(0))

    def serve(self, batch_size: int, steps: int, context: int = 1024) -> list[int]:
        return list(self.run(batch_size, steps, context))

    def settled(self, batch_size: int, context: int = 1024) -> int:
        """The length in force; a trial that happens to be under way is waited for."""
        for _ in range(1000):
            if self.controller.rows(1)[0].reason is not Reason.TRIAL:
                return self.controller.table(context)[batch_size]
            self.serve(batch_size, 1, context)
        raise AssertionError("trials follow one another without an end")

    def _chance(self, place: int) -> float:
        return self.acceptance if isinstance(self.acceptance, float) else self.acceptance[place]

    def _step(self, batch_size: int, context: int, length: int) -> int:
        accepted = [0] * length
        for _ in range(batch_size):
            for place in range(length):
                if self.random.random() > self._chance(place):
                    break
                accepted[place] += 1
        seconds = self.step_time(batch_size, length) * self.random.lognormvariate(0.0, 0.01)
        if self.random.random() < self.slow_share / 40:
            self._slow = 40  # the host is busy elsewhere for a while
        self._slow -= 1
        if self._slow > 0:
            seconds *= 1.4
        if self.random.random() < 0.02:
            seconds *= 3.0  # a probe, or a collection of garbage
        self.now += seconds
        self.tokens += batch_size + sum(accepted)
        timed = self._pending[0] == length  # what the step asks for, to be verified by the next
        step = StepObservation(
            batch_size, context, length, seconds if timed else None, tuple(accepted)
        )
        if self.controller.observe(step, self.now):
            self.controller.decide(batch_size, context, self.now)
        key = (self.controller.version, context_cell(context))
        if key != self._applied:
            self._applied, self._table = key, self.controller.table(context)
        return length


def staircase(batch_size: int, length: int) -> float:
    """Free up to 64 tokens in the step, then a stair for each 64 more; drafts at 0.1 ms."""
    tokens = batch_size * (length + 1)
    return 5e-3 * (1.0 + 0.5 * (math.ceil(tokens / 64) - 1)) + 1e-4 * length


def goodput(batch_size: int, length: int, acceptance: float, time: StepTime = staircase) -> float:
    return expected_tokens(length, acceptance) / time(batch_size, length)


def best(batch_size: int, acceptance: float, time: StepTime = staircase) -> float:
    return max(goodput(batch_size, length, acceptance, time) for length in LENGTHS)


def curves() -> list[StepCurve]:
    """What the probe knows: verification alone, at three batch sizes."""
    return [
        StepCurve(
            b, 1024, staircase(b, 0),
            tuple((n, math.ceil(b * n / 64) * 0.5 + 0.5) for n in (1, 2, 3, 4, 5, 6, 8, 12)),
        )
        for b in (1, 8, 32)
    ]  # fmt: skip


def controller(static: int = 4, batch: int = 128, with_curves: bool = True) -> Controller:
    made = Controller([0, *[static] * batch], Settings(LENGTHS))
    if with_curves:
        made.set_curves(curves())
    return made


def on_trial(live: Controller) -> bool:
    return any(cell.trial is not None for cell in live._cells.values())


@pytest.mark.parametrize("with_curves", [True, False])
@pytest.mark.parametrize("acceptance", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("batch_size", [1, 6, 33, 100])
def test_it_settles_within_two_percent_of_the_best(
    batch_size: int, acceptance: float, with_curves: bool
) -> None:
    live = controller(with_curves=with_curves)
    server = Server(live, staircase, acceptance)
    server.serve(batch_size, 2000)
    settled = server.serve(batch_size, 200)
    length = max(set(settled), key=settled.count)
    assert goodput(batch_size, length, acceptance) >= 0.98 * best(batch_size, acceptance)


def test_a_whole_run_beats_the_static_schedule_and_no_drafts_despite_its_trials() -> None:
    for acceptance in (0.5, 0.9):
        for batch_size in (1, 16, 64, 128):
            server = Server(controller(), staircase, acceptance)
            server.serve(batch_size, 3000)
            rate = server.tokens / server.now / batch_size
            # 2 % of the steps take three times as long, whatever the length; a static length
            # that is far off costs until it is found out.
            assert rate * 1.04 >= 0.97 * best(batch_size, acceptance)


@pytest.mark.parametrize("batch_size", [1, 6, 33])
def test_a_host_that_is_slow_at_times_misleads_no_trial(batch_size: int) -> None:
    for acceptance in (0.5, 0.9):
        live = controller(with_curves=False)
        server = Server(live, staircase, acceptance, slow_share=0.2)
        server.serve(batch_size, 1500)
        settled = server.serve(batch_size, 200)
        length = max(set(settled), key=settled.count)
        assert goodput(batch_size, length, acceptance) >= 0.98 * best(batch_size, acceptance)


def test_a_verdict_from_a_slow_spell_does_not_last() -> None:
    """While the host is slow, every step takes as long as the longest: drafts look free."""
    server = Server(controller(2), lambda batch_size, _: staircase(batch_size, LENGTHS[-1]), 0.5)
    server.serve(32, 400)
    misled = server.settled(32)
    assert goodput(32, misled, 0.5) < 0.8 * best(32, 0.5)
    server.step_time = staircase
    server.serve(32, 2000)
    length = server.settled(32)
    assert goodput(32, length, 0.5) > 0.98 * best(32, 0.5)


def test_the_gain_over_the_schedule_is_known_after_all_is_compared_anew() -> None:
    """The configured length is far behind by then, and is not tried again."""
    server = Server(controller(8), staircase, 0.3)
    server.serve(32, 5000)
    row = server.controller.rows(1)[0]
    expected = goodput(32, row.draft_length, 0.3) / goodput(32, 8, 0.3)
    assert expected > 2.0
    assert row.gain == pytest.approx(expected, rel=0.05)


def test_what_trials_may_lose_bounds_them() -> None:
    def lost(trial_loss: float) -> float:
        """Steps' worth of tokens."""
        live = Controller([0, *[4] * 128], Settings(LENGTHS, trial_loss=trial_loss))
        server = Server(live, staircase, 0.7)
        for batch_size in (16, 24, 33, 48, 64, 80, 100, 128):
            server.serve(batch_size, 400)
        return sum(
            one.steps * max(0.0, one.ratio - one.worth)
            for one in live.results
            if one.ratio is not None and one.worth is not None
        )

    little, much = lost(0.0), lost(0.05)
    assert 0.0 < little < FIRST_CREDIT + 8.0, "a trial that begins may overdraw"
    assert little < much


def test_trials_of_many_batch_sizes_do_not_count_on_the_same_credit() -> None:
    def time(_: int, length: int) -> float:
        return 5e-3 * (1.0 + 0.3 * length)

    def lost(batch_size: int, length: int) -> float:
        """In steps of the length in force, if this one is on trial."""
        cell = live._cells.get(cell_of(batch_size, 1024))
        if cell is None or cell.trial is None or length != cell.trial.length:
            return 0.0
        other = cell.trial.reference
        worth = expected_tokens(length, 0.5) / expected_tokens(other, 0.5)
        return max(0.0, time(0, length) / time(0, other) - worth)

    live = Controller([0, *[1] * 256], Settings(LENGTHS, trial_loss=0.0))
    server = Server(live, time, 0.5)
    total = 0.0
    for turn in range(600):
        batch_size = (8, 16, 24, 32, 48, 64, 80, 100, 128, 160, 200, 256)[turn % 12]
        # It moves on in the middle of each trial.
        total += sum(lost(batch_size, length) for length in server.run(batch_size, 6))
    assert FIRST_CREDIT / 2 < total < FIRST_CREDIT + 8.0


def test_a_trial_sets_aside_what_it_may_lose_and_pays_what_it_ran() -> None:
    credit = Credit(0.0)
    trial = Trial(4, 3, 1.0, 3.0, loss=2.0)
    credit.begin(trial)
    assert credit.left == FIRST_CREDIT - 8 * 2.0
    assert not credit.covers(2.0)
    assert credit.covers(1.0)
    credit.left -= 30.0
    assert credit.covers(0.0), "a gain is looked for in debt as well"
    credit.left -= 30.0
    assert not credit.covers(0.0), "within bounds"
    credit.left += 60.0
    for _ in range(3):
        trial.saw(4, None)
    trial.its_turn = False
    credit.settle(trial, 0.5)
    assert credit.left == FIRST_CREDIT - 3 * 0.5
    credit.begin(trial)
    trial.its_turn = True
    credit.settle(trial, 2.0)
    assert credit.left == FIRST_CREDIT - 3 * 0.5 - (3 + LATE_STEPS) * 2.0


def test_a_cell_that_is_forgotten_ends_its_trial() -> None:
    live = Controller([0, *[3] * 8], Settings(LENGTHS))
    server = Server(live, staircase, 0.6)
    while not on_trial(live):
        server.serve(8, 1)
    version = live.version
    for batch_size, doublings in itertools.product(range(9, 5000, 7), range(10)):
        step = StepObservation(batch_size, 512 << doublings, 0, None, ())
        live.observe(step, server.now)
    assert not on_trial(live)
    assert live.version > version, "those that followed it follow another"


def test_steps_with_prompts_end_a_turn() -> None:
    live = Controller([0, *[3] * 8], Settings(LENGTHS))
    server = Server(live, staircase, 0.6)
    while not (on_trial(live) and live.rows(1)[0].draft_length != 3):
        server.serve(8, 1)
    tried, left = live.table(1024)[8], live._credit.left
    assert tried != 3
    for _ in range(100):
        live.passed(8, 1024, live.table(1024)[8])
        live.passed(2, 1024, tried)  # no trial there
    assert live.table(1024)[8] == 3
    server.serve(8, 1)
    for _ in range(40):
        server.serve(8, 4)
        for _ in range(100):
            live.passed(8, 1024, live.table(1024)[8])
    assert live.results, "it gave up, or told"
    assert live._credit.left < left + 8.0


@pytest.mark.parametrize("batch_size", [1, 2, 8, 32])
def test_better_drafts_are_noticed_soon_though_none_are_made(batch_size: int) -> None:
    def dear(_: int, length: int) -> float:
        return 5e-3 * (1.0 + 0.4 * length)

    live = controller(static=4, with_curves=False)
    server = Server(live, dear, 0.1)
    server.serve(batch_size, 10_000)
    assert server.settled(batch_size) == 0
    server.acceptance = 0.95
    server.serve(batch_size, 2000)
    assert server.settled(batch_size) > 0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_acceptance_that_rises_deeper_in_the_draft_is_noticed(batch_size: int) -> None:
    def time(_: int, length: int) -> float:
        return 5e-3 * (1.0 + 0.1 * length)

    live = controller(with_curves=False)
    server = Server(live, time, [0.8, *[0.05] * 7])
    server.serve(batch_size, 10_000)
    assert server.settled(batch_size) == 1
    server.acceptance = [0.8, *[0.95] * 7]
    server.serve(batch_size, 6000)
    assert server.settled(batch_size) == 8


def test_a_hint_is_taken_of_the_places_that_were_looked_at_alone() -> None:
    """Another look at K = 3 would tell nothing more of places 5 to 8: looks would not end."""
    counted = CountedAcceptance(8)
    for _ in range(100):
        counted.add(100, (90, 80, 40, 36, 10, 3, 1, 0))
    counted.look_beyond(2)
    counted.add(100, (90, 80, 41, 37, 35, 32, 30, 28))
    assert not counted.is_better_beyond(2, 3)
    assert counted.is_better_beyond(2, 8)


def test_what_a_trial_without_drafts_in_force_tells_is_in_its_own_unit() -> None:
    """A cell that had chosen drafts, and after a change of acceptance has K = 0 configured."""

    def time(_: int, length: int) -> float:
        return 5e-3 + 1e-3 * length

    live = Controller([0, *[4] * 6, *[0] * 10], Settings(LENGTHS))
    server = Server(live, time, 0.9)
    server.serve(6, 400)
    server.serve(8, 400)
    live._credit.left = 2.0
    server.acceptance = 0.25
    server.serve(8, 200)
    cell = live._cells[8, 1024]
    assert len(cell.relative) > 2, "nothing to compare"
    unit = next(t / time(8, k) for k, t in cell.relative.items())
    for length, relative in cell.relative.items():
        assert relative == pytest.approx(unit * time(8, length), rel=0.05)


def test_from_no_drafts_configured_acceptance_is_learned_soon_at_one_sequence() -> None:
    live = Controller([0, *[0] * 8], Settings(LENGTHS))
    server = Server(live, lambda _, length: 5e-3 * (1.0 + 0.05 * length), 0.8)
    server.serve(1, 400)
    assert live.acceptance is not None


def test_the_gain_is_over_the_length_that_the_row_names() -> None:
    """Batch sizes 9 and 10 share a cell, and differ in what is configured."""
    live = Controller([0, *[8] * 9, *[1] * 7], Settings(LENGTHS))
    server = Server(live, staircase, 0.3)
    server.serve(10, 600)
    server.serve(9, 600)
    server.settled(9)
    row = live.rows(1)[0]
    assert (row.batch_size, row.static_length) == (10, 1)
    expected = goodput(10, row.draft_length, 0.3) / goodput(10, 1, 0.3)
    assert row.gain == pytest.approx(expected, rel=0.05)


def test_what_one_batch_size_has_learned_is_not_in_force_at_others() -> None:
    live = controller(static=0)
    server = Server(live, staircase, 0.9)
    server.serve(4, 600)
    assert server.settled(4) > 0
    assert live.table(1024)[5] == live.table(1024)[64] == 0, "the configured length"
    assert live.table(1 << 20)[4] == 0


def off_the_graphs(batch_size: int, length: int) -> float:
    """Beyond 512 tokens no CUDA graph holds the step, and the host takes 40 ms for it."""
    return 5e-3 if batch_size * (length + 1) <= 512 else 40e-3


def test_a_trial_that_is_hopeless_ends_after_a_few_steps() -> None:
    live = Controller([0, *[3] * 128], Settings(LENGTHS, widest_graph=512))
    server = Server(live, off_the_graphs, 0.5)
    lengths = server.serve(128, 400)
    tried = {k: lengths.count(k) for k in LENGTHS if k > 3 and k in lengths}
    assert tried, "what is next to the graphs' edge is looked at"
    assert max(tried.values()) <= 12
    assert server.settled(128) == 3


def test_what_the_host_takes_without_a_graph_is_learned_once_for_all_lengths() -> None:
    live = Controller([0, *[3] * 128], Settings(LENGTHS, trial_loss=0.1, widest_graph=512))
    server = Server(live, off_the_graphs, 0.5)
    server.serve(128, 400)
    lengths = server.serve(96, 400)  # another cell
    assert lengths.count(4) > 0, "480 tokens have a graph"
    assert not {6, 8} & set(lengths)


def test_a_bad_length_is_left_even_without_credit() -> None:
    def time(batch_size: int, length: int) -> float:
        return 5e-3 * (20.0 if length > 3 else 1.0)

    live = Controller([0, *[8] * 128], Settings(LENGTHS, trial_loss=0.0))
    live._credit.left = -40.0
    live.set_curves([StepCurve(16, 1024, 5e-3, ((1, 1.0), (4, 1.0), (5, 20.0), (12, 20.0)))])
    server = Server(live, time, 0.9)
    server.serve(16, 400)
    assert server.settled(16) == 3


def test_a_change_of_acceptance_is_noticed_and_goes_back_to_the_schedule_first() -> None:
    live = controller(static=2)
    server = Server(live, staircase, 0.95)
    server.serve(16, 1500)
    assert server.settled(16) > 2
    server.acceptance = 0.1
    lengths = server.serve(16, 300)
    assert Reason.CHANGED in live.decisions
    assert 2 in lengths
    server.serve(16, 1500)
    assert goodput(16, server.settled(16), 0.1) >= 0.98 * best(16, 0.1)


def trial_steps_of_changes(forgets: bool) -> int:
    """Trial steps that twelve changes of acceptance take.

    Args:
        forgets: whatever was compared is forgotten at each of them.
    """
    live = controller(static=2, with_curves=False)
    server = Server(live, staircase, 0.9)
    server.serve(16, 1500)
    before = live.trial_steps
    for acceptance in (0.1, 0.9) * 6:
        server.acceptance = acceptance
        if forgets:
            live._cells.clear()
        server.serve(16, 600)
        assert goodput(16, server.settled(16), acceptance) >= 0.98 * best(16, acceptance)
    assert forgets or live.decisions[Reason.CHANGED] >= 10
    return live.trial_steps - before


def test_after_a_change_of_acceptance_the_times_are_still_known() -> None:
    known, forgotten = (trial_steps_of_changes(forgets) for forgets in (False, True))
    assert known < 0.5 * forgotten, "most is known"


def test_a_trial_ends_though_the_load_comes_back_for_a_step_at_a_time() -> None:
    def time(batch_size: int, length: int) -> float:
        return 5e-3 * (6.0 if length > 4 else 1.0)

    live = Controller([0, *[2] * 128], Settings((0, 2, 8)))
    server = Server(live, time, 0.9)
    while not (live.rows(1) and live.table(1024)[7] == 8):
        server.serve(7, 1)
    began, lengths = live.trial_steps, []
    for _ in range(200):
        lengths += [*server.serve(7, 1), *server.serve(8, 1)]
    assert lengths.count(8) < 40
    assert live.table(1024)[7] == live.table(1024)[8] == 2
    assert live.results
    assert live.trial_steps > began


def test_drafts_that_lose_are_given_up_and_come_back_when_they_win() -> None:
    def dear(batch_size: int, length: int) -> float:
        return 5e-3 * (1.0 + 0.4 * length)

    live = controller(static=4, with_curves=False)
    server = Server(live, dear, 0.1)
    server.serve(8, 1500)
    assert server.settled(8) == 0
    server.acceptance = 0.95
    server.serve(8, 40_000)  # a look every minute
    assert server.settled(8) > 0


def test_where_nothing_can_be_timed_the_schedule_stays() -> None:
    live = controller(static=3)
    decisions = 0
    for i in range(2000):
        assert live.table(1024)[8] == 3
        step = StepObservation(8, 1024, 3, None, (7, 6, 5))
        if live.observe(step, float(i)):
            decisions += 1
            decision = live.decide(8, 1024, float(i))
            assert decision.draft_length == 3
            assert decision.reason is Reason.LEARNING
    assert decisions > 0
    assert live.trial_steps == 0


def test_without_drafts_in_the_schedule_a_trial_learns_of_them() -> None:
    live = controller(static=0)
    server = Server(live, staircase, 0.8)
    lengths = server.serve(4, 300)
    assert lengths[0] == 0
    assert live.acceptance is not None
    assert server.settled(4) > 0


def test_the_cost_of_a_draft_is_told_apart_from_its_verification() -> None:
    live = controller()
    Server(live, staircase, 0.8).serve(8, 3000)
    assert live.draft_seconds[8] == pytest.approx(1e-4, abs=6e-5)


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.25])
def test_a_drafted_token_costs_the_same_however_fast_verification_grows(slope: float) -> None:
    seconds = {k: 5e-3 * (1.0 + slope * k) + 1e-3 * max(k, 1) for k in LENGTHS}
    found = draft_token_seconds(seconds, lambda positions: 1.0 + slope * (positions - 1))
    assert found == pytest.approx(1e-3)


def test_one_odd_step_time_does_not_decide_what_a_draft_costs() -> None:
    """Steps of an H200 at one request: the first trial of 3 drafts took 0.1 ms too long."""
    seconds = {3: 4.418e-3, 4: 4.495e-3, 6: 4.959e-3, 8: 5.439e-3}
    found = draft_token_seconds(seconds, {4: 1.011, 5: 1.01, 7: 1.032, 9: 1.04}.get)
    assert found == pytest.approx(0.19e-3, rel=0.05)
    assert draft_token_seconds({1: 1e-3, 2: 2e-3, 3: 4e-3}, lambda _: 1.0) == pytest.approx(1.5e-3)


def test_a_report_takes_what_a_draft_costs_from_the_latest_curves() -> None:
    live = controller()
    Server(live, staircase, 0.8).serve(8, 3000)
    before = live.draft_seconds[8]
    steep = tuple((n, 1.0 + 0.05 * (n - 1)) for n in range(1, 13))
    live.set_curves([StepCurve(8, 1024, 5e-3, steep)])
    assert live.draft_seconds[8] == before
    list(pieces_of_report(live, ControlSnapshot("m", "0", ControlState.DECIDING)))
    assert live.draft_seconds[8] < 0.5 * before, "it is what an older curve said"


def test_the_cost_of_a_draft_is_not_told_where_it_is_not_seen() -> None:
    def linear(positions: int) -> float:
        return float(positions)

    # From 4 to 8 drafts, verification alone takes nearly twice as long.
    assert draft_token_seconds({4: 5e-3, 8: 9e-3}, linear) is None
    assert draft_token_seconds({0: 1e-3, 4: 5e-3}, linear) is None
    assert draft_token_seconds({1: 1e-3, 4: 5e-3}, lambda _: None) is None
    assert draft_token_seconds({1: 2e-3, 4: 1e-3}, lambda _: 1.0) == 0.0


@example([1.0, 1.1015625, 1.21875, 1.0, 1.0, 1.0, 1.0, 1.0], 0.5)
@example([1.25, 1.25, 1.38671875, 1.57421875, 1.0, 1.5, 1.5, 1.0], 0.95)
@example([1.0, 1.5625, 1.2265625, 1.25, 1.0, 1.0, 1.5, 1.5], 0.890625)
@given(st.lists(st.floats(1.0, 1.6), min_size=8, max_size=8), st.floats(0.05, 0.95))
@settings(max_examples=25)
def test_any_curve_of_times_ends_no_worse_than_the_schedule(
    steps: list[float], acceptance: float
) -> None:
    ratios = [math.prod(steps[:length]) for length in range(9)]

    def time(batch_size: int, length: int) -> float:
        return 4e-3 * ratios[length]

    live = controller(static=3, with_curves=False)
    server = Server(live, time, acceptance)
    server.serve(8, 1500)
    chosen = server.settled(8)
    assert goodput(8, chosen, acceptance, time) >= 0.96 * goodput(8, 3, acceptance, time)
    assert chosen in LENGTHS


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_table_is_written_when_it_changes(seed: int) -> None:
    """Batches and contexts at random, prompts, steps without a time, acceptance that jumps."""
    rng = random.Random(seed)
    static = [0, *(rng.choice(LENGTHS) for _ in range(128))]
    live = Controller(static, Settings(LENGTHS, widest_graph=512))
    batch_size, context, acceptance, now = 8, 1024, 0.7, 0.0
    written: dict[tuple[int, int], list[int]] = {}
    for _ in range(9000):
        if rng.random() < 0.05:
            batch_size = rng.choice((1, 2, 8, 9, 17, 18, 33, 64, 100, 128))
        if rng.random() < 0.02:
            context = rng.choice((300, 1000, 2000, 3000, 8000))
        if rng.random() < 0.001:
            acceptance = rng.random()
        length = live.table(context)[batch_size]
        assert length in {*LENGTHS, *static}
        seconds = staircase(batch_size, length) * rng.lognormvariate(0.0, 0.05)
        now += seconds
        if rng.random() < 0.2:
            live.passed(batch_size, context, length)
        else:
            accepted = tuple(round(batch_size * acceptance ** (i + 1)) for i in range(length))
            timed = seconds if rng.random() < 0.8 else None
            if live.observe(StepObservation(batch_size, context, length, timed, accepted), now):
                live.decide(batch_size, context, now)
        at = (live.version, context_cell(context))
        assert written.setdefault(at, live.table(context)) == live.table(context)
    assert len(live.results) > 20
    aside = sum(8 * cell.trial.loss for cell in live._cells.values() if cell.trial is not None)
    assert live._credit.left + aside <= MOST_CREDIT + 1e-6


def test_cells_are_bounded_and_bracket_their_values() -> None:
    for value in range(1, 3000):
        assert value <= batch_cell(value) <= max(8, 1.25 * value)
        assert value <= context_cell(value) <= max(512, 2 * value)
    times = CellTimes()
    for batch_size in range(1, 5000):
        times.add(cell_of(batch_size, 100 * batch_size), 1, 1.0)
    assert len(times.cells()) <= MOST_CELLS


def test_acceptance_is_the_chance_given_the_drafts_before() -> None:
    counted = CountedAcceptance(4)
    for _ in range(10):
        counted.add(100, (80, 40))
    assert counted.known_places == 2
    acceptance = counted.acceptance
    assert acceptance is not None
    assert acceptance.per_position == pytest.approx((0.8, 0.5))
    assert acceptance.beyond == pytest.approx(0.5)
    assert not counted.changed


@pytest.mark.parametrize("lengths", [(0,), (1, 2), (0, 2, 2), (0, 3, 1)])
def test_lengths_that_cannot_be_chosen_from_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend from 0 on"):
        Controller([0, 1], Settings(lengths))


def test_curves_are_asked_for_at_the_real_batch_size_and_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batch size 17 shares its lengths with 20; its steps take what they take at 17."""
    asked, live = set(), controller()
    model = live._known.model
    point = model.point

    def ask(batch_size: int, context: int, positions: int) -> Any:
        asked.add((batch_size, context))
        return point(batch_size, context, positions)

    monkeypatch.setattr(model, "point", ask)
    Server(live, staircase, 0.8).serve(17, 200, context=1030)
    assert asked == {(17, 1030)}


@pytest.mark.parametrize("acceptance", [0.5, 0.9])
def test_predicted_curves_propose_trials_and_never_choose(acceptance: float) -> None:
    """However wrong they are: these say that drafts are free."""
    live = controller(with_curves=False)
    counts = tuple(range(1, 13))
    live.set_curves(
        StepCurve(
            b, 1024, 5e-3, tuple((n, 1.0) for n in counts), bases=(Basis.PREDICTED,) * len(counts)
        )
        for b in (1, 32, 128)
    )
    server = Server(live, staircase, acceptance)
    server.serve(32, 3000)
    reached = goodput(32, server.settled(32), acceptance)
    assert reached >= 0.98 * best(32, acceptance)
