"""The number of series is bounded by the settings, and so is the file that carries them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from vllm_nfp.config import (
    MOST_BATCH_SIZES,
    MOST_CONTEXTS,
    MOST_EPSILONS,
    MOST_POINTS,
    ConfigError,
    ProbeConfig,
)
from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.demand import Demand
from vllm_nfp.metrics.families import families_of
from vllm_nfp.results.snapshot import MAX_FILE_BYTES, Snapshot, read_snapshot, write_snapshot
from vllm_nfp.types import (
    Basis,
    Boundary,
    CurvePoint,
    LiveStep,
    Module,
    Prediction,
    ServerInfo,
    State,
)

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
LONG = 1.2345678901234567
"""As many digits as a time may have."""


def largest(contexts: int = MOST_CONTEXTS) -> Snapshot:
    """The largest table that settings allow, of a model with every module, all points measured."""
    cells = [
        (4096 - b, 1_000_000 + c)
        for b, c in itertools.product(range(MOST_BATCH_SIZES), range(contexts))
    ]
    positions = [1, *range(101, 100 + MOST_POINTS // len(cells))]
    epsilons = [0.101 + i / 1000 for i in range(MOST_EPSILONS)]
    curves = tuple(
        CurvePoint(
            module, *cell, n, 10_000, LONG / 1000, 1.0 if n == 1 else LONG, LONG, LONG, "piecewise",
            LONG / 1000, LONG / 1000, Basis.PREDICTED,
        )
        for module, cell, n in itertools.product(Module, cells, positions)
    )  # fmt: skip
    lines = list(itertools.product(Module, cells, epsilons))
    live = LiveStep(4096, 1_000_000, positions[-1])
    return Snapshot(
        "m" * 100, "0", State.STEADY, boundaries=tuple(
            Boundary(module, *cell, epsilon, 101, 101, 101, True, 101, Basis.PREDICTED)
            for module, cell, epsilon in lines
        ),
        curves=curves,
        predictions=tuple(
            Prediction(module, *cell, epsilon, 101, 101, "memory bandwidth")
            for module, cell, epsilon in lines
        ),
        live=live,
        live_curves=tuple(
            row for row in curves if (row.module, row.context) == (Module.MODEL, live.context)
        ),
        server=ServerInfo("NVIDIA H100 80GB HBM3", "bfloat16", "fp8", 8, "0.32.0", "0.1.0"),
    )  # fmt: skip


def series_of(snapshot: Snapshot) -> int:
    families = families_of([snapshot], lambda _: Demand(constant(0.7)), lambda _: 3)
    return sum(len(family.samples) for family in families)


def test_the_largest_table_has_no_more_series_than_documented() -> None:
    documented = re.search(r"at\s+most ([\d,]+) series", METRICS_PAGE.read_text())
    assert documented
    most = int(documented[1].replace(",", ""))
    found = max(series_of(largest()), series_of(largest(contexts=4)))
    assert 0.9 * most < found <= most


def test_the_largest_table_fits_the_hand_over_file(tmp_path: Path) -> None:
    path, snapshot = tmp_path / "engine-0.json", largest()
    write_snapshot(path, snapshot)
    assert path.stat().st_size < MAX_FILE_BYTES
    assert read_snapshot(path) == snapshot


def test_a_larger_table_is_refused() -> None:
    batch_sizes, contexts = tuple(range(1, 17)), tuple(range(1, 17))
    ProbeConfig(batch_sizes=batch_sizes, contexts=contexts, positions=tuple(range(1, 21)))
    with pytest.raises(ConfigError, match=r"16 x 16 x 21 = 5376 points, above 5120: pass fewer"):
        ProbeConfig(batch_sizes=batch_sizes, contexts=contexts, positions=tuple(range(1, 22)))
