"""What a rank does for the pairs that the leader has chosen."""

from __future__ import annotations

from collections.abc import Callable

from vllm_nfp.schedule.lockstep import Lockstep
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.shape_runner import ShapeRunner


def can_launch(engine: ShapeRunner, pair: Pair) -> bool:
    """Whether this rank can launch both runs of the pair."""
    possible = [engine.can_launch(shape) for shape in pair.shapes]
    return all(possible)


def follow(engine: ShapeRunner, pair: Pair) -> None:
    """Launch a pair that the leader times; nobody reads the times of this rank.

    A step ends on all ranks with its last collective. So their times differ by less than a
    collective takes.
    """
    for shape in pair.shapes:
        engine.discard(engine.launch(shape, pair.draw))


def follow_scan(engine: ShapeRunner, lockstep: Lockstep, launch: Callable[[Pair], None]) -> None:
    """Take part in the leader's scan until it ends.

    Args:
        launch: launches a pair on this rank.
    """
    while (pair := lockstep.decide(None)) is not None:
        if lockstep.agree(can_launch(engine, pair), "can the pair run"):
            launch(pair)
