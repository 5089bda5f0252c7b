"""``predict --hardware A,B``: rows of each device as predicted alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_principle_models import LLAMA_3_8B

from vllm_nfp.cli import main
from vllm_nfp.principle.hardware_file import target_of, write_hardware_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return tmp_path


def run(model: Path, hardware: str, *flags: str) -> Result:
    grid = ("--batch-sizes", "8", "--max-positions", "64")
    return CliRunner().invoke(main, ["predict", str(model), "--hardware", hardware, *grid, *flags])


def test_rows_of_several_devices_are_those_of_each(model: Path) -> None:
    found = json.loads(run(model, "h100-sxm, L4", "--json").stdout)
    assert list(found) == ["schema", "model", "devices", "rows"]
    assert [device["hardware"] for device in found["devices"]] == ["H100-SXM", "L4"]
    assert [device["basis"] for device in found["devices"]] == ["own runs", "assumption"]
    alone = [json.loads(run(model, name, "--json").stdout) for name in ("H100-SXM", "L4")]
    assert alone[0]["hardware"] == "H100-SXM"
    assert "hardware" not in alone[0]["rows"][0], "the JSON of one device stays as it is"
    wanted = [{"hardware": one["hardware"], **row} for one in alone for row in one["rows"]]
    assert found["rows"] == wanted


def test_the_table_has_a_column_for_each_device(model: Path) -> None:
    done = run(model, "A100-SXM4-80GB,L4", "--epsilon", "0.1,0.2")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert shown.count("A100-SXM4-80GB L4") == 2, "one table for each tolerance"
    assert "NFP within 10%" in shown
    assert "NFP within 20%" in shown
    assert "L4: Constants: not fitted to L4" in shown
    assert "dense_ffn any 8 8 " in shown, "64 tokens at batch size 8 on an A100"


def test_what_cannot_be_shown_side_by_side_is_refused(model: Path) -> None:
    for hardware, flags, sentence in (
        ("H200,h200", (), "--hardware holds H200 twice"),
        ("H200,", (), "--hardware must be 1 to 8 names with commas"),
        (",".join(["H200"] * 9), (), "--hardware must be 1 to 8 names with commas"),
        ("H200,V100", (), "'V100' is not in the catalogue"),
        ("H200,L4", ("--explain", "8,1024"), "--plot and --explain need one model and one device"),
        ("H200,L4", ("--plot", "x.svg"), "--plot and --explain need one model and one device"),
    ):
        done = run(model, hardware, *flags)
        assert done.exit_code == 2, done.output
        assert sentence in done.output


def test_a_file_with_a_comma_is_one_device(model: Path) -> None:
    path = model / "a,b.json"
    write_hardware_file(path, target_of("L4"))
    assert json.loads(run(model, str(path), "--json").stdout)["hardware"] == "L4"
