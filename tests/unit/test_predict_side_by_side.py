"""Several models and devices side by side, and curves as numbers."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vllm_nfp import predict
from vllm_nfp.cli import main
from vllm_nfp.principle.curve_errors import curve_errors


def run(*args: str) -> Result:
    flags = ["--batch-sizes", "1,8", "--contexts", "1024", "--max-positions", "32"]
    return CliRunner().invoke(main, ["predict", *args, *flags])


def found(*args: str) -> Any:
    done = run(*args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_models_have_a_column_each_and_share_rows() -> None:
    done = run("qwen3-8b", "qwen3-30b-a3b", "--hardware", "H100-SXM")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["moe_ffn", "any", "1", "-", "1"] in rows
    assert any(row[:3] == ["dense_ffn", "any", "1"] and row[-1] == "-" for row in rows)
    assert next(row[0] for row in rows if row and row[0] in ("attention", "model")) == "model"
    text = " ".join(done.stdout.split())
    assert "qwen3-8b, qwen3-30b-a3b on H100-SXM: predicted, not measured" in text
    assert "qwen3-8b: 8.19 B parameters" in text
    assert "qwen3-30b-a3b: 30.5 B parameters" in text


def test_json_names_model_and_device_of_every_row() -> None:
    both = found("qwen3-8b", "qwen3-4b", "--hardware", "H100-SXM,H200")
    assert [(one["model"], one["hardware"]) for one in both["predictions"]] == [
        ("qwen3-8b", "H100-SXM"), ("qwen3-8b", "H200"),
        ("qwen3-4b", "H100-SXM"), ("qwen3-4b", "H200"),
    ]  # fmt: skip
    assert both["predictions"][0]["model_facts"]["parameters"] == 8190427136
    assert {(row["model"], row["hardware"]) for row in both["rows"]} == {
        (one["model"], one["hardware"]) for one in both["predictions"]
    }
    one = found("qwen3-8b", "--hardware", "H100-SXM,H200")
    assert one["model"] == "qwen3-8b"
    assert [device["hardware"] for device in one["devices"]] == ["H100-SXM", "H200"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("qwen3-8b", "qwen3-8b", "--hardware", "H200"), "holds H200 twice"),
        (("qwen3-8b", "--hardware", "H200,H200"), "holds H200 twice"),
        (("qwen3-8b", "qwen3-4b", "--hardware", "H200", "--explain"), "need one model and one"),
        (("qwen3-8b", "--hardware", "H200", "--curves", "--explain"), "without --plot and"),
    ],
)
def test_refusals(args: tuple[str, ...], said: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_curves_are_csv_with_an_interval() -> None:
    done = run("qwen3-8b", "--hardware", "H100-SXM", "--curves")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    cell = predict("qwen3-8b", "H100-SXM", (8,), (1024,), max_positions=32).cell("model", 8, 1024)
    mine = [row for row in rows if row["module"] == "model" and row["batch_size"] == "8"]
    assert [int(row["positions"]) for row in mine] == list(range(1, 33))
    assert [float(row["seconds"]) for row in mine] == pytest.approx(cell.seconds, rel=1e-5)
    assert float(mine[31]["ratio"]) == pytest.approx(cell.seconds[31] / cell.seconds[0], rel=1e-4)
    assert float(mine[31]["ratio_low"]) < float(mine[31]["ratio"]) < float(mine[31]["ratio_high"])
    assert mine[0]["ratio_low"] == mine[0]["ratio_high"] == "1"
    assert mine[31]["tokens"] == "256"


def test_curves_of_several_devices_are_one_file() -> None:
    done = run("qwen3-8b", "--hardware", "H100-SXM,A100-SXM4-80GB", "--curves")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["hardware"] for row in rows} == {"H100-SXM", "A100-SXM4-80GB"}
    attention = [
        row for row in rows if row["module"] == "attention" and row["hardware"].startswith("A100")
    ]
    # Attention was never scored on an A100: no interval is made up.
    assert {row["ratio_high"] for row in attention if row["positions"] != "1"} == {""}


def test_json_has_curves_only_if_asked() -> None:
    plain, full = (
        found("qwen3-8b", "--hardware", "H100-SXM", *more) for more in ((), ("--curves",))
    )
    assert "curve" not in plain["rows"][0]
    row = next(row for row in full["rows"] if row["module"] == "model")
    assert row["curve"][0][0] == 1
    assert len(row["curve"]) == len(row["curve_errors"]) == 32
    assert "80 % of public points" in full["curve_errors"]
    for one in full["rows"]:
        one.pop("curve"), one.pop("curve_errors")
    assert full["rows"] == plain["rows"]


def test_errors_are_of_the_module_the_generation_and_the_type() -> None:
    plain = predict("qwen3-8b", "H100-SXM", (1,), (1024,), max_positions=256)
    eight = predict("qwen3-8b", "H100-SXM", (1,), (1024,), max_positions=256, quantization="fp8")
    four = predict("qwen3-8b", "H100-SXM", (1,), (1024,), max_positions=256, quantization="int4")

    def errors(one: Any, module: str) -> Any:
        return curve_errors(one.cell(module, 1, 1024), one.shape, one.target)

    dense = errors(plain, "dense_ffn")
    assert dense[0] == 0
    assert dense[200] > dense[20] > 0  # more tokens, larger errors
    assert errors(eight, "dense_ffn") != dense
    assert errors(four, "dense_ffn") is None
    assert errors(four, "model") is None
    whole = errors(plain, "model")
    assert 0 < whole[1] < 0.2
