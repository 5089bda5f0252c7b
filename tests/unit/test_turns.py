"""Ranks of engines that take their steps together: all launch a pair before the same pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lockstep import Hub

from vllm_nfp.schedule.lockstep import DivergedError, Lockstep, PeerFaultError
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.punctual import LONGEST_WAIT_SECONDS, LateError, PunctualWire
from vllm_nfp.schedule.turns import InTurn
from vllm_nfp.types import Shape

EVERY = 4
MOST_APART = 3
"""Passes that a rank may be ahead of another."""


@dataclass
class Rank:
    """One rank's passes, without vLLM."""

    lockstep: Lockstep
    wants: list[Pair] = field(default_factory=list)
    can: Callable[[Pair], bool] = lambda pair: True
    holds: Callable[[], bool] = lambda: False
    refused: list[Pair] = field(default_factory=list)
    launched: list[tuple[int, Pair]] = field(default_factory=list)
    ended: tuple[int, str] | None = None
    passes: int = 0

    def forward(self) -> None:
        self.passes += 1
        if self.ended is not None or not self.lockstep.count(0):
            return
        try:
            pair = self.lockstep.exchange(
                lambda: self.wants.pop(0) if self.wants else None,
                self.can,
                self.refused.append,
                wants=bool(self.wants),
                holds=self.holds(),
            )
        except (PeerFaultError, DivergedError) as error:
            self.ended = (self.passes, str(error))
            return
        if pair is not None:
            self.launched.append((self.passes, pair))


def team_of(size: int) -> list[Rank]:
    """Finishing an exchange that lacks a rank's part fails: a rank would wait."""
    hub = Hub(size)
    return [
        Rank(Lockstep(hub.wire(rank), steps_per_exchange=EVERY, turns=InTurn(size)))
        for rank in range(size)
    ]


def run(team: list[Rank], passes: int, rng: random.Random | None = None) -> None:
    """A wave: so many passes on each rank, none more than a few ahead of another."""
    end = team[0].passes + passes
    while any(rank.passes < end for rank in team):
        slowest = min(rank.passes for rank in team)
        able = [r for r in team if r.passes < min(end, slowest + MOST_APART)]
        (rng.choice(able) if rng else min(able, key=lambda r: r.passes)).forward()


def pairs(first: int, count: int) -> list[Pair]:
    return [Pair(Shape(first, 64, n), True, n) for n in range(2, 2 + count)]


def test_each_engine_in_turn_has_its_pairs_launched_by_all() -> None:
    team = team_of(3)
    team[0].wants, team[2].wants = pairs(1, 3), pairs(3, 3)
    run(team, 120)
    assert all(rank.launched == team[0].launched for rank in team)
    assert [pair.target.batch_size for _, pair in team[0].launched] == [1, 3, 1, 3, 1, 3]
    # A bid at 4, the turn at 8, the check at 12, the launch at 16, when the next bid is in.
    assert [at for at, _ in team[0].launched][:2] == [16, 28]


def test_a_pair_on_its_way_when_a_wave_ends_is_launched_in_the_next_one() -> None:
    team = team_of(2)
    team[1].wants = pairs(2, 1)
    run(team, 14)
    assert [rank.launched for rank in team] == [[], []]
    run(team, 2)
    assert [rank.launched for rank in team] == [[(16, pairs(2, 1)[0])]] * 2


def test_an_engine_that_may_not_be_delayed_holds_pairs_off() -> None:
    team = team_of(2)
    held = True
    team[0].holds = lambda: held
    team[1].wants = pairs(2, 2)
    run(team, 80)
    assert not team[0].launched and len(team[1].wants) == 2
    held = False
    run(team, 80)
    assert team[0].launched == team[1].launched
    assert len(team[0].launched) == 2


def test_a_pair_that_one_engine_cannot_run_is_run_by_none() -> None:
    team = team_of(3)
    team[2].wants = pairs(3, 2)
    team[1].can = lambda pair: pair.target.positions != 2
    run(team, 80)
    assert all(rank.refused == [pairs(3, 1)[0]] for rank in team)
    assert all([pair.target.positions for _, pair in rank.launched] == [3] for rank in team)


@given(
    seed=st.integers(0, 1 << 30), faulty=st.integers(0, 3), at=st.integers(1, 150),
    ends=st.lists(st.integers(1, 40), max_size=6),
)  # fmt: skip
def test_whatever_happens_all_launch_the_same_and_end_together(
    seed: int, faulty: int, at: int, ends: list[int]
) -> None:
    """Ranks some passes apart, waves of any length, engines that hold off, a fault at any pass."""
    rng, team = random.Random(seed), team_of(4)
    for index, rank in enumerate(team):
        rank.wants = pairs(index + 1, rng.randrange(4))
        rank.holds = lambda: rng.random() < 0.2
        rank.can = lambda pair: rng.random() < 0.8
    waves = [*ends, max(0, at - sum(ends)), 3 * EVERY]
    for number, wave in enumerate(waves):
        if number == len(waves) - 1:
            team[faulty].lockstep.fail()
        run(team, wave, rng)
    assert all(rank.launched == team[0].launched for rank in team)
    assert all(rank.refused == team[0].refused for rank in team)
    assert len({rank.ended for rank in team}) == 1
    assert team[0].ended is not None
    assert f"rank {faulty}" in team[0].ended[1]


@given(size=st.integers(1, 6), who=st.lists(st.sets(st.integers(0, 5)), max_size=30))
def test_no_bidder_waits_for_more_than_one_turn_of_each_other(
    size: int, who: list[set[int]]
) -> None:
    turns, waited = [InTurn(size) for _ in range(size)], dict.fromkeys(range(size), 0)
    for bidders in who:
        bids = [turn.bid(rank, rank in bidders) for rank, turn in enumerate(turns)]
        for turn in turns:
            turn.heard(max(bids), held=False)
        winners = {turn.proposer() for turn in turns}
        assert len(winners) == 1, "alike on every rank"
        (winner,) = winners
        there = {rank for rank in bidders if rank < size}
        assert (winner in there) if there else (winner is None)
        for rank in range(size):
            waited[rank] = waited[rank] + 1 if rank in there and rank != winner else 0
            assert waited[rank] < size


def test_the_smallest_of_all_ranks_is_agreed_on_at_the_start() -> None:
    from test_lockstep import in_parallel

    hub = Hub(2)
    one, two = (Lockstep(hub.wire(rank, 10.0)) for rank in range(2))
    found: list[int] = []
    in_parallel(
        lambda: found.append(one.least(900, "KV blocks")),
        lambda: found.append(two.least(850, "KV blocks")),
    )
    assert found == [850, 850]


def test_a_wire_notes_that_it_was_waited_for() -> None:
    now = [0.0]

    class Slow:
        rank, size = 0, 2

        def begin(self, values: object) -> object:
            return values

        def finish(self, handle: object) -> list[int]:
            now[0] += LONGEST_WAIT_SECONDS * (1.1 if handle == (2,) else 0.9)
            return [1]

    wire = PunctualWire(Slow(), lambda: now[0])  # type: ignore[arg-type]
    assert wire.finish(wire.begin((1,))) == [1]
    wire.check()
    wire.finish(wire.begin((2,)))
    with pytest.raises(LateError, match=r"took 1\.1 s longer"):
        wire.check()
