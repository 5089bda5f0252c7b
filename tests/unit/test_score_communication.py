"""The fit of the constants of communication gives back those that made the times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("scipy")

from benchmarks.prediction import score_communication as script
from benchmarks.serving import shapes
from vllm_nfp.principle import target_of
from vllm_nfp.principle.collective import LinkConstants, all_reduce_seconds

TRUE = LinkConstants(
    bandwidth=0.55, collective_seconds=2e-5, custom_bandwidth=0.4, custom_seconds=6e-6, fitted=True
)
LINK = 450e9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two servers whose all-reduces obey TRUE, beside one that has a single GPU."""
    for name, shape, ranks in (
        ("dense-tp2", "llama-3.1-70b", 2),
        ("moe-tp2", "qwen3-30b-a3b", 2),
        ("dense-tp1", "llama-3.1-70b", 1),
    ):
        width = int(str(shapes.SHAPES[shape]["hidden_size"]))

        def layer(tokens: int, width: int = width) -> float:
            size = np.array([2.0 * tokens * width])
            return 2 * float(all_reduce_seconds(TRUE, LINK, 2, size)[0])

        curves = [
            {"module": "communication", "batch_size": b, "context": 1024, "positions": n,
             "median_seconds": layer(b * n)}
            for b in (1, 32)
            for n in (1, 2, 4, 8, 16, 32, 64)
        ]  # fmt: skip
        boundary = {"module": "communication", "batch_size": 1, "context": 1024, "epsilon": 0.1,
                    "positions": 8, "lower": 8, "upper": 16}  # fmt: skip
        table = {
            "shape": shape, "layers": 4, "tensor_parallel": ranks, "expert_parallel": False,
            "environment": {"gpu": {"name": "NVIDIA H100 80GB HBM3"}},
            "snapshot": {"curves": curves, "boundaries": [boundary]},
        }  # fmt: skip
        (tmp_path / f"{name}-table.json").write_text(json.dumps(table))
    return tmp_path


def test_the_fit_finds_the_constants(folder: Path) -> None:
    servers = script.read(folder)
    assert [one.name for one in servers] == ["dense-tp2", "moe-tp2"]
    hardware = target_of("H100-SXM").hardware
    found = script.fit(servers, hardware, LinkConstants())
    for name in ("bandwidth", "collective_seconds", "custom_bandwidth", "custom_seconds"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)
    assert found.fitted
    assert np.abs(script.errors(servers[0], hardware, found)).max() < 1e-3
    assert np.abs(script.errors(servers[0], hardware, LinkConstants())).max() > 0.1


def test_fitted_constants_are_written_and_can_be_predicted_with(folder: Path) -> None:
    out = folder / "hardware.json"
    result = CliRunner().invoke(script.main, [str(folder), "--fit", "--write", str(out)])
    assert result.exit_code == 0, result.output
    assert "moe-tp2" in result.output
    assert target_of(str(out)).calibration.link.custom_seconds == pytest.approx(6e-6, rel=1e-3)


def test_a_folder_without_ranks_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(script.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no *-table.json of a server with several ranks" in result.output
