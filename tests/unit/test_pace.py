"""The share of a core that the background thread keeps to."""

from __future__ import annotations

import pytest

from vllm_nfp.session.pace import Pace

TURN_SECONDS = 2.0


def turns(pace: Pace, costly: float, other: float, count: int = 500) -> tuple[int, float]:
    """How often the costly work was done in so many turns, and the share of a core in all."""
    done, spent = 0, 0.0
    for turn in range(count):
        now = TURN_SECONDS * turn
        begun = pace.begin(now)
        done += begun
        spent += (costly if begun else 0.0) + other
        pace.spent((costly if begun else 0.0) + other, now)
    return done, spent / (TURN_SECONDS * count)


@pytest.mark.parametrize("costly", [0.03, 0.06])
def test_the_share_is_kept_whatever_the_rows_cost(costly: float) -> None:
    done, share = turns(Pace(0.01, 10.0), costly, 0.003)
    assert 0.007 < share <= 0.0101
    assert done >= 500 * TURN_SECONDS / 10.0


def test_cheap_rows_are_made_in_every_turn() -> None:
    assert turns(Pace(0.01, 10.0), 0.015, 0.003)[0] == 500


def test_rows_are_never_older_than_the_bound() -> None:
    """What else the thread does may take more than the share, as in idle time."""
    done, _ = turns(Pace(0.01, 10.0), 0.05, 0.1)
    assert done == 500 * TURN_SECONDS / 10.0
