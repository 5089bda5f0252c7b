"""Which turns of a recorded run the background thread was busy in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("aiohttp")

from benchmarks.overhead.background_turns import kinds
from benchmarks.overhead.overhead_summary import Turn
from benchmarks.overhead.switched_summary import BUSY_SHARE

SECONDS = 0.5
BUSY_SECONDS = BUSY_SHARE * SECONDS


def test_turns_are_divided_by_what_the_thread_took() -> None:
    rows: list[dict[str, Any]] = []
    times: dict[str, Any] = {}
    for number, variant, background, first in (
        (0, "off", 0.0, 80), (0, "active", 2 * BUSY_SECONDS, 160),
        (1, "off", 2 * BUSY_SECONDS, 150), (1, "active", 0.01, 82), (1, "raised", 1.0, 999),
    ):  # fmt: skip
        turn = Turn(0.5, number, variant)
        times[turn.first_key] = np.array([first * 1000], np.uint32)
        times[turn.key] = np.array([5000, 7000], np.uint32)
        rows.append(
            {
                "share": 0.5,
                "variant": variant,
                "round": number,
                "seconds": SECONDS,
                "background_seconds": background,
                "hook_delayed_steps": number,
            }
        )
    found = {(kind.variant, kind.busy): kind for kind in kinds(rows, times)}
    assert set(found) == {(v, b) for v in ("off", "active") for b in (True, False)}
    firsts = {key: kind.first_ms.tolist() for key, kind in found.items()}
    assert firsts["off", False] == [80.0] and firsts["off", True] == [150.0]
    assert firsts["active", False] == [82.0] and firsts["active", True] == [160.0]
    quiet = found["active", False]
    assert (quiet.turns, quiet.delayed, quiet.between_ms.tolist()) == (1, 1, [5.0, 7.0])
    assert quiet.cells()[:5] == ["50 %", "active", "quiet", "1", "1"]
