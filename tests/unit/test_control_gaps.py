"""Which gaps between steps the benchmark counts, and what it says that they meet."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import control_gaps
from benchmarks.control_gaps import KINDS, Turn, costs_of, gaps_of
from benchmarks.gap_recorder import What

DTYPE = [("what", "<i8"), *((name, "<f8") for name in ("begin", "end", "first", "second"))]


def records(*rows: tuple[Any, ...]) -> Any:
    found = np.array(list(rows), DTYPE)
    return found[np.argsort(found["end"])]


def step(at: float, running: int = 2, new: int = 0) -> tuple[Any, ...]:
    return (What.STEP, at, at, running, new)


def test_gaps_are_told_apart_by_what_they_meet() -> None:
    found = gaps_of(
        records(
            *(step(at / 100) for at in range(100, 120)),
            (What.READ, 1.012, 1.028, 0.016, 0.016),
            (What.PUBLISH, 1.015, 1.045, 0.02, 0.001),
            (What.PROBE, 1.101, 1.102, 0.001, 0.001),
            (What.READ, 1.1015, 1.1016, 0.001, 0.001),
        ),
        [Turn("base", 1.0, 1.2)],
    )
    counts = {kind: len(times) for kind, times in found.by_kind.items()}
    assert counts == {KINDS[0]: 2, KINDS[1]: 2, KINDS[2]: 14}
    assert found.probed == 1, "a pair of probes delays a step by design"
    assert found.by_kind[KINDS[0]] == pytest.approx([10.0, 10.0])


def test_steps_beyond_a_turn_after_an_idle_moment_or_with_a_prompt_do_not_count() -> None:
    found = gaps_of(
        records(step(0.5), step(1.0), step(1.1, running=0), step(1.3), step(1.4, new=1), step(3.0)),
        [Turn("now", 0.9, 2.0)],
    )
    assert list(found.by_kind[KINDS[2]]) == pytest.approx([100.0])


def test_costs_are_those_within_the_turns() -> None:
    kept = records(
        (What.PUBLISH, 0.1, 0.2, 0.05, 0.01),
        (What.PUBLISH, 1.1, 1.2, 0.004, 0.001),
        (What.PUBLISH, 1.3, 1.4, 0.006, 0.002),
        step(1.5),
    )
    ((what, total, longest),) = costs_of(kept, [Turn("now", 1.0, 2.0)])
    assert what is What.PUBLISH
    assert list(total) == pytest.approx([4.0, 6.0])
    assert list(longest) == pytest.approx([1.0, 2.0])


def test_histograms_hold_every_gap() -> None:
    lines = list(control_gaps._histogram(np.array([1.0, 5.0]), np.array([5.0, 100.0])))
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines]
    assert sum(shares) == pytest.approx(200.0)
