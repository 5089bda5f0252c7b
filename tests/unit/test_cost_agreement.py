"""All ranks take up the same costs at the same step, or none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from vllm_nfp.schedule.cost_agreement import CostAgreement
from vllm_nfp.schedule.lockstep import STEPS_PER_EXCHANGE, WireError


@dataclass(frozen=True)
class Costs:
    version: int


class Meeting:
    """The exchanges of all ranks; each is over once all have put their part in."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: list[dict[int, Sequence[int]]] = []


class Wire:
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank, self.size = rank, meeting.size
        self._meeting, self._number = meeting, 0
        self.gone = False

    def begin(self, values: Sequence[int]) -> int:
        while len(self._meeting.parts) <= self._number:
            self._meeting.parts.append({})
        self._meeting.parts[self._number][self.rank] = values
        self._number += 1
        return self._number - 1

    def finish(self, handle: int) -> Sequence[int]:
        parts = self._meeting.parts[handle]
        if self.gone:
            raise RuntimeError("a rank is gone")
        assert len(parts) == self.size, "nobody may wait here"
        return [max(column) for column in zip(*parts.values(), strict=True)]


class Ranks:
    """Two ranks that run the same steps; the first leads."""

    def __init__(self) -> None:
        meeting = Meeting(2)
        self.wanted = 0
        self.has: list[set[int]] = [set(), set()]
        self.wires = [Wire(meeting, rank) for rank in range(2)]
        self.agreements = [
            CostAgreement(self._loader(0), self.wires[0], lambda: self.wanted),
            CostAgreement(self._loader(1), self.wires[1]),
        ]

    def _loader(self, rank: int) -> Callable[[int], Costs | None]:
        return lambda version: Costs(version) if version in self.has[rank] else None

    def steps(self, exchanges: int) -> list[int]:
        """Versions in force at each step, alike on both ranks; 0: none."""
        seen = []
        for _ in range(exchanges * STEPS_PER_EXCHANGE):
            first, second = (agreement.at_step() for agreement in self.agreements)
            assert first == second
            seen.append(0 if first is None else first.version)
        return seen


def test_costs_come_into_force_at_one_step_once_both_have_them() -> None:
    ranks = Ranks()
    assert set(ranks.steps(3)) == {0}
    ranks.wanted, ranks.has[0] = 5, {5}
    assert set(ranks.steps(6)) == {0}, "the other lacks them"
    ranks.has[1] = {5}
    seen = ranks.steps(6)
    assert seen[-1] == 5
    assert sorted(seen) == seen, "and stay in force"


def test_newer_costs_follow_older_ones_without_a_gap_and_are_withdrawn_together() -> None:
    ranks = Ranks()
    ranks.wanted, ranks.has = 5, [{5}, {5}]
    assert ranks.steps(5)[-1] == 5
    ranks.wanted, ranks.has = 6, [{6}, {5, 6}]
    seen = ranks.steps(5)
    assert seen[-1] == 6
    assert set(seen) == {5, 6}
    ranks.wanted = 0
    seen = ranks.steps(3)
    assert seen[-1] == 0
    assert set(seen) <= {0, 6}


def test_a_rank_that_is_alone_decides_at_once() -> None:
    has = {3}
    agreement = CostAgreement(lambda v: Costs(v) if v in has else None, wanted=lambda: min(has))
    seen = [agreement.at_step() for _ in range(STEPS_PER_EXCHANGE)]
    assert seen == [None] * (STEPS_PER_EXCHANGE - 1) + [Costs(3)]


def test_a_rank_that_is_gone_is_named_so() -> None:
    ranks = Ranks()
    ranks.steps(1)
    ranks.wires[0].gone = True
    with pytest.raises(WireError, match="a rank is gone"):
        for _ in range(STEPS_PER_EXCHANGE):
            ranks.agreements[0].at_step()
