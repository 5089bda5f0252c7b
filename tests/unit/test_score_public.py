"""The scorer of public measurements: ratios by hand on made sets, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from benchmarks.score_public import main, score, within
from vllm_nfp.principle import target_of
from vllm_nfp.principle.collective import all_reduce_seconds

ALL_REDUCE = {
    "id": "all_reduce/made", "kind": "all_reduce", "hardware": "H100-SXM",
    "essentials": {"ranks": 2}, "usable": [False, True, True],
}  # fmt: skip
ELEMENTS = (1024, 1 << 20, 1 << 21)


def made(factor: float) -> dict[str, object]:
    """A set that agrees with the prediction but at its last point, which is off by a factor."""
    target = target_of("H100-SXM")
    link = target.hardware.link_bytes_per_second
    seconds = all_reduce_seconds(target.calibration.link, link, 2, 2.0 * np.array(ELEMENTS))
    times = [1e6, seconds[1] * 1e6, seconds[2] * 1e6 / factor]
    return {**ALL_REDUCE, "points": list(map(list, zip(ELEMENTS, times, strict=True)))}


def test_errors_are_those_of_the_ratio_to_the_first_usable_point() -> None:
    (found,) = score([made(1.2)])
    assert found.errors.tolist() == [np.float64(found.errors[0])]
    assert abs(found.errors[0] - 0.2) < 1e-9
    assert within([found]) == [0.0, 0.0, 1.0]


def test_what_cannot_be_predicted_is_left_out() -> None:
    assert not score([made(1) | {"kind": "mla_module_vs_batch"}])
    assert not score([made(1) | {"hardware": "RTX-4060-Laptop (hardware file)"}])
    assert not score([made(1) | {"usable": [True, False, False]}])


def test_the_table_counts_sets_and_points(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(json.dumps({"sets": [made(1.0)]}))
    found = CliRunner().invoke(main, [str(path)])
    assert found.exit_code == 0, found.output
    assert "100%" in found.output
