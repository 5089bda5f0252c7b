"""Outputs of real servers with and without the probe, in other forms of serving than the usual."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from serving import server

from vllm_nfp.results import scrape

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

FORMS = {
    "two engines": ["--data-parallel-size", "2"],
    "bfloat16, KV cache of 8 bits": ["--dtype", "bfloat16", "--kv-cache-dtype", "fp8"],
}
PROBE = {
    "batch_sizes": [1, 4, 8],
    "contexts": [64, 256],
    "max_positions": 8,
    "startup_seconds": 1.0,
    "publish_seconds": 0.3,
    "min_samples": 2,
    "overhead_budget": 0.5,  # far above the default, so that enough probes run between steps
    "step_share": 1.0,
    "capture_seconds": 2.0,
}
WANTED = 20
"""Pairs of probes between the steps of each engine."""


@pytest.mark.parametrize("flags", FORMS.values(), ids=FORMS)
def test_outputs_are_those_of_a_server_without_probe(
    flags: list[str], dense_model: Path, tmp_path: Path
) -> None:
    with server(dense_model, tmp_path, *flags, as_typed=True) as plain:
        expected = plain.concurrent()
        assert plain.concurrent() == expected, "the server without the probe does not repeat itself"
    assert len(set(map(tuple, expected))) > 10, "the model repeats itself"
    with server(
        dense_model,
        tmp_path,
        *flags,
        "--nfp-probe",
        "--nfp-config",
        json.dumps(PROBE),
        as_typed=True,
    ) as probed:
        end = time.monotonic() + 120
        while True:
            assert probed.concurrent() == expected
            engines = scrape.parse(probed.metrics()).statuses
            measured = [engine.probes["measured"] for engine in engines]
            if min(measured) >= WANTED or time.monotonic() > end:
                break
    assert {engine.state for engine in engines} <= {"probing", "steady"}
    assert len(engines) == (2 if "2" in flags else 1)
    assert min(measured) >= WANTED, "too few probes ran to tell"
