"""Choices by the answers of recorded servers, by how wide their intervals are."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.answers import cost_width
from benchmarks.answers.cost_width import Choice
from vllm_nfp.draft.cost_rows import WIDEST

BINS = tuple(zip(cost_width.ENDS, cost_width.ENDS[1:], strict=False))


@pytest.fixture(scope="module")
def found() -> list[Choice]:
    return cost_width.all_choices()


def test_the_truth_itself_loses_nothing() -> None:
    ratio = np.array([1.0, 1.1, 1.6, 1.7])
    assert cost_width.lost_by(ratio, ratio, 0.7) == 0.0
    free = cost_width.lost_by(np.ones(4), ratio, 0.7)
    tokens = np.cumsum(0.7 ** np.arange(4))
    assert free == pytest.approx(1.0 - tokens[3] / 1.75 / (tokens[1] / 1.15))


def test_errors_that_are_wider_lose_more() -> None:
    ratio, random = np.array([1.0, 1.05, 1.2, 1.5]), np.random.default_rng(0)
    losses = [cost_width.lost(ratio, 0.7, width, random) for width in (1.05, 1.4, 2.5)]
    assert 0.0 <= losses[0] < losses[1] < losses[2] < 0.2


@pytest.mark.parametrize("bounds", [b for b in BINS if b[1] <= WIDEST])
def test_answers_that_are_used_lose_far_less_than_vllms_own(
    found: list[Choice], bounds: tuple[float, float]
) -> None:
    both = [
        (c.lost, c.own) for c in found if bounds[0] <= c.width < bounds[1] and c.own is not None
    ]
    assert len(both) >= 50
    ours, own = np.mean(both, axis=0)
    assert ours < own / 2


def test_what_was_predicted_loses_no_more_than_other_answers_as_wide(found: list[Choice]) -> None:
    narrow = [c for c in found if c.width < 2.0]
    predicted = [c.lost for c in narrow if c.predicted]
    others = [c.lost for c in narrow if not c.predicted]
    assert min(len(predicted), len(others)) > 500
    assert np.mean(predicted) < np.mean(others) + 0.001
