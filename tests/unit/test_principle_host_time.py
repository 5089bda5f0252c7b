"""The host's share of an engine's step."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_nfp.principle.host_time import host_time

MS = 1e-3


def test_long_steps_of_one_rank_take_the_time_of_the_gpu() -> None:
    gpu = np.array([4.6, 4.8]) * MS
    assert host_time(1).engine_seconds(gpu) == pytest.approx(gpu)


def test_a_short_step_takes_what_the_host_needs_and_more_with_a_drafter() -> None:
    host, gpu = host_time(1), np.array([0.5, 0.9]) * MS
    assert host.engine_seconds(gpu) == pytest.approx(1.5 * MS)
    assert host.engine_seconds(gpu, speculates=True) == pytest.approx(1.9 * MS)


def test_every_run_of_the_drafter_adds_its_own() -> None:
    host, gpu = host_time(1), np.array([4.0 * MS, 4.0 * MS])
    seconds = host.engine_seconds(gpu, np.array([1, 4]), np.array([0.3, 1.2]) * MS, True)
    assert seconds == pytest.approx(np.array([4.33, 5.32]) * MS)


def test_eagle_on_two_ranks_loses_where_public_reports_say_so() -> None:
    """Qwen3-30B-A3B on two H100 with EAGLE-3 3-1-4: 1.86 tokens a step, 0.72 times the rate."""
    host = host_time(2)
    plain = host.engine_seconds(np.array([4.17 * MS]))
    drafted = host.engine_seconds(np.array([5.8 * MS]), 4, 0.8 * MS, True)
    assert 1.86 * plain / drafted == pytest.approx(0.72, abs=0.03)
