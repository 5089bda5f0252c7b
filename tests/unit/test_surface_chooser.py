"""The chooser asks what decides something, and what is cheap."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from test_surface import CELLS, POSITIONS, condition, prior, seen

from vllm_nfp.surface import (
    RECORDED,
    Candidate,
    Concern,
    Decisions,
    Observations,
    Posterior,
    answers,
    block_of,
    questions,
    rank,
)
from vllm_nfp.surface.prior import Prior
from vllm_nfp.types import Shape

__all__ = ["prior"]


def best(
    posterior: Posterior, pairs: list[Candidate], concerns: Sequence[Concern],
    decisions: Decisions, most: int,
) -> tuple[Candidate, ...]:  # fmt: skip
    book = posterior.book
    keys = [(m, *cell) for m in book.prior(1, 1).modules for cell in CELLS]
    found = answers(posterior, questions(book.prior, book.hyper, keys, decisions.positions))
    known = {key: found[block_of(*key)] for key in keys}
    return rank(posterior, known, pairs, concerns, decisions, lambda _: 0.004, most)


NO_DRAFTS = Decisions(POSITIONS, (0.1,))
EVERYWHERE = tuple(Concern(*cell, 1.0 / len(CELLS)) for cell in CELLS)


def candidates(cost: float = 0.05) -> list[Candidate]:
    return [Candidate(Shape(*cell, n), cost) for cell in CELLS for n in POSITIONS[1:]]


def test_it_names_each_pair_once(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, Observations())
    found = best(posterior, candidates(), EVERYWHERE, NO_DRAFTS, most=5)
    assert len(set(found)) == len(found) == 5


def test_a_cheaper_pair_comes_first(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, Observations())
    [first] = best(posterior, candidates(), EVERYWHERE, NO_DRAFTS, most=1)
    dear = [Candidate(c.shape, 1000.0 if c == first else c.cost_seconds) for c in candidates()]
    [other] = best(posterior, dear, EVERYWHERE, NO_DRAFTS, most=1)
    assert other.shape != first.shape


def test_what_was_measured_is_not_asked_again(prior: Prior) -> None:
    posterior = condition(prior, RECORDED, Observations())
    [first] = best(posterior, candidates(), EVERYWHERE, NO_DRAFTS, most=1)
    told = condition(prior, RECORDED, seen(prior, 0.0, first.shape, samples=3))
    [other] = best(told, candidates(), EVERYWHERE, NO_DRAFTS, most=1)
    assert other.shape != first.shape


@pytest.mark.parametrize("cell", CELLS)
def test_it_measures_near_the_traffic(prior: Prior, cell: tuple[int, int]) -> None:
    """A pair elsewhere may tell as much of an FFN, but the best one of all lies at this batch."""
    posterior = condition(prior, RECORDED, Observations())
    [found] = best(posterior, candidates(), [Concern(*cell, 1.0)], NO_DRAFTS, most=1)
    drafts = Decisions(
        POSITIONS, (), (tuple(sum(0.7**i for i in range(n)) for n in POSITIONS),),
        (0.0,) * len(POSITIONS),
    )  # fmt: skip
    [draft] = best(posterior, candidates(), [Concern(*cell, 1.0)], drafts, most=1)
    assert found.shape.batch_size * found.shape.positions >= cell[0]
    assert (draft.shape.batch_size, draft.shape.context) == cell or draft.shape.positions > 1
