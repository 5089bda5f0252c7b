"""``vllm_nfp.predict`` and ``vllm-nfp predict``: answers, refusals, pictures, what is loaded."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_principle_models import (
    DEEPSEEK_V2_LITE,
    GEMMA_3_4B,
    LLADA_8B,
    LLAMA_3_8B,
    QWEN_3_8B,
    QWEN_3_30B_A3B,
)

import vllm_nfp
from vllm_nfp.cli import main
from vllm_nfp.cli.predict_table import notes
from vllm_nfp.principle import (
    CATALOGUE,
    H100_CALIBRATION,
    HardwareError,
    PredictionError,
    ShapeError,
    Target,
    shape_from_config,
    target_of,
    write_hardware_file,
)
from vllm_nfp.principle.arguments import MOST_VALUES
from vllm_nfp.principle.attention import default_backend
from vllm_nfp.principle.explain import explain
from vllm_nfp.principle.model_files import model_name
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.report import prediction_plot
from vllm_nfp.report.page import ReportError

CONTRACT = ["module", "batch_size", "context", "epsilon", "nfp", "idle_compute_nfp", "limited_by"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path, "qwen3-8b", QWEN_3_8B)


def folder(parent: Path, name: str, config: dict[str, Any]) -> Path:
    path = parent / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, args)])


def small(config: Any = QWEN_3_8B, hardware: Any = "H100-SXM", **options: Any) -> Predictions:
    values: dict[str, Any] = {"batch_sizes": (1, 8), "contexts": (1024,), "max_positions": 64}
    return vllm_nfp.predict(config, hardware, **{**values, **options})


# Python


def test_predict_is_public_and_a_function() -> None:
    assert "predict" in vllm_nfp.__all__
    assert callable(vllm_nfp.predict)
    for module in ("vllm_nfp.cli.predict", "vllm_nfp.principle.predict"):
        importlib.import_module(module)
    assert callable(vllm_nfp.predict)


def test_rows_are_the_contracts(model: Path) -> None:
    found = vllm_nfp.predict(model, "H100-SXM")
    values = found.to_dict()
    names = ["schema", "model", "hardware", "basis", "bases", "model_facts", "assumptions"]
    names += ["host_time", "rows"]
    assert list(values) == names
    assert values["basis"] == "own runs"
    assert values["bases"]["attention"] == "own runs"
    assert values["bases"]["link"] == "public kernels"
    assert (values["schema"], values["model"], values["hardware"]) == (1, "qwen3-8b", "H100-SXM")
    assert len(values["rows"]) == 3 * 3 * 2  # a dense model has no moe_ffn
    for row in values["rows"]:
        assert list(row)[:7] == CONTRACT
        assert list(row)[7:] == ["at_limit", "largest_free"]
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_rows_become_a_dataframe() -> None:
    pytest.importorskip("pandas")
    found = small()
    frame = found.to_dataframe()
    assert list(frame.columns) == [*CONTRACT, "at_limit", "largest_free"]
    assert frame.to_dict("records") == [row.to_dict() for row in found.rows]


def test_cells_are_those_of_the_rows() -> None:
    found = small(epsilons=(0.1, 0.2))
    for row in found.rows:
        cell = found.cell(row.module, row.batch_size, row.context)
        (edge,) = (b for b in cell.boundaries if b.epsilon == row.epsilon)
        assert (edge.nfp, edge.limited_by, edge.at_limit) == (row.nfp, row.limited_by, row.at_limit)


def test_targets_and_parsed_configs_are_taken() -> None:
    strange = Target(dataclasses.replace(target_of("L4").hardware, name="mine"), H100_CALIBRATION)
    found = small(LLAMA_3_8B, strange)
    assert (found.model, found.hardware) == ("llama", "mine")


def test_options_reach_the_shape_and_the_step() -> None:
    found = small(
        QWEN_3_30B_A3B,
        tensor_parallel_size=2,
        data_parallel_size=2,
        expert_parallel=True,
        attention_backend="TRITON_ATTN",
        quantization="fp8",
        kv_cache_dtype="fp8",
        bidirectional=True,
        capture_sizes=(8, 1, 4),
    )
    shape = found.shape
    assert (shape.tensor_parallel_size, shape.data_parallel_size) == (2, 2)
    assert shape.expert_parallel
    assert shape.bidirectional
    assert (shape.quantization, shape.kv_bytes) == ("fp8", 1)
    assert found.backend.name == "TRITON_ATTN"
    assert found.serving.graphs.sizes == (1, 4, 8)
    assert small(quantization="int4").shape.quantization == "wna16"
    assert small(capture_sizes=()).serving.graphs.sizes == ()


def test_a_cache_dtype_overrides_the_checkpoints() -> None:
    config = {**LLAMA_3_8B, "quantization_config": {"quant_method": "fp8", "kv_cache_scheme":
              {"type": "float", "num_bits": 8}}}  # fmt: skip
    assert small(config).shape.kv_bytes == 1
    assert small(config, kv_cache_dtype="bfloat16").shape.kv_bytes == 2


@pytest.mark.parametrize(
    ("config", "hardware", "options", "backend"),
    [
        (LLAMA_3_8B, "H100-SXM", {}, "FLASH_ATTN"),
        (LLAMA_3_8B, "L4", {"kv_bits": 8}, "FLASHINFER"),
        (LLAMA_3_8B, "B200", {}, "FLASHINFER"),
        (LLADA_8B, "B200", {}, "FLASH_ATTN"),
        (LLAMA_3_8B, "MI300X", {}, "TRITON_ATTN"),
        (DEEPSEEK_V2_LITE, "H200", {}, "FLASH_ATTN_MLA"),
        (DEEPSEEK_V2_LITE, "H200", {"kv_bits": 8}, "FLASHMLA"),
        (DEEPSEEK_V2_LITE, "B200", {}, "FLASHINFER_MLA"),
        (DEEPSEEK_V2_LITE, "A100-SXM4-80GB", {}, "TRITON_MLA"),
        (DEEPSEEK_V2_LITE, "MI300X", {}, "TRITON_MLA"),
    ],
)
def test_the_backend_is_what_vllm_takes(
    config: Any, hardware: str, options: Any, backend: str
) -> None:
    shape = shape_from_config(config, **options)
    assert default_backend(shape, target_of(hardware).hardware) == backend


@pytest.mark.parametrize("hardware", CATALOGUE, ids=lambda hardware: hardware.name)
@pytest.mark.parametrize("config", [LLAMA_3_8B, DEEPSEEK_V2_LITE, GEMMA_3_4B, LLADA_8B])
def test_every_device_predicts_by_default(config: Any, hardware: Any) -> None:
    found = small(config, hardware.name, batch_sizes=(4,), max_positions=8)
    assert {row.module for row in found.rows} == set(found.modules) >= {"attention", "model"}
    assert all(1 <= row.nfp <= 8 for row in found.rows)


def test_constants_of_another_device_are_called_carried_over(tmp_path: Path) -> None:
    mine = dataclasses.replace(
        H100_CALIBRATION,
        source="my L4",
        gemm=dataclasses.replace(H100_CALIBRATION.gemm, bandwidth=0.5),
    )
    path = tmp_path / "l4.json"
    write_hardware_file(path, Target(target_of("L4").hardware, mine))
    same = small(hardware="L4", calibration=path).target
    assert same.calibration == mine
    other = small(hardware="H200", calibration=str(path)).target
    assert other.hardware.name == "H200"
    assert other.calibration.gemm.bandwidth == 0.5
    assert (other.calibration.fitted, other.calibration.source) == (
        False,
        "carried over from L4: my L4",
    )


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("qwen",), "qwen"),
        (("qwen", "config.json"), "qwen"),
        (("other.json",), "other"),
        (("models--Qwen--Qwen3-8B", "snapshots", "0123abcd"), "Qwen/Qwen3-8B"),
    ],
)
def test_models_have_the_name_of_their_folder(
    tmp_path: Path, parts: tuple[str, ...], name: str
) -> None:
    path = tmp_path.joinpath(*parts)
    if path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    else:
        path.mkdir(parents=True)
    assert model_name(path) == name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_sizes": ()}, PredictionError, "batch_sizes is empty"),
        ({"batch_sizes": (8, 1, 8)}, PredictionError, "batch_sizes holds 8 twice"),
        ({"batch_sizes": (0,)}, PredictionError, "batch_sizes must hold .* from 1 to 65536, not 0"),
        ({"batch_sizes": (1.5,)}, PredictionError, r"batch_sizes must hold .* not 1\.5"),
        ({"batch_sizes": (True,)}, PredictionError, "batch_sizes must hold .* not True"),
        ({"batch_sizes": (10**400,)}, PredictionError, "not a number of 1329 bits"),
        ({"batch_sizes": range(1, 66)}, PredictionError, "batch_sizes holds 65 values: give at mo"),
        ({"contexts": (-1,)}, PredictionError, "contexts must hold .* not -1"),
        ({"contexts": (1 << 40,)}, PredictionError, "contexts must hold"),
        ({"epsilons": ()}, PredictionError, "epsilons is empty"),
        ({"epsilons": (0.1, 0.1)}, PredictionError, r"epsilons holds 0\.1 twice"),
        ({"epsilons": (-0.1,)}, PredictionError, "epsilon must be between 0 .* not -0.1"),
        ({"epsilons": (math.nan,)}, PredictionError, "epsilon must be .* not nan"),
        ({"epsilons": (math.inf,)}, PredictionError, "epsilon must be .* not inf"),
        ({"capture_sizes": (0,)}, PredictionError, "capture_sizes must hold"),
        ({"capture_sizes": (4, 4)}, PredictionError, "capture_sizes holds 4 twice"),
        ({"max_positions": 0}, PredictionError, "max_positions must lie from 1 to 8192"),
        ({"dtype": "float8"}, PredictionError, "dtype must be one of auto, bfloat16, float16"),
        ({"quantization": "int2"}, PredictionError, "quantization must be one of fp8, int4"),
        ({"kv_cache_dtype": "int8"}, PredictionError, "kv_cache_dtype must be one of auto"),
        ({"attention_backend": "PAGED"}, PredictionError, "unknown attention backend 'PAGED'"),
        ({"attention_backend": "FLASHMLA"}, PredictionError, "cannot serve qwen3, which caches k"),
        ({"tensor_parallel_size": 3}, ShapeError, "tensor_parallel_size 3 does not divide 32"),
        ({"tensor_parallel_size": 0}, ShapeError, "tensor_parallel_size must be"),
        ({"expert_parallel": True}, ShapeError, "expert_parallel needs experts"),
        ({"hardware": "V100"}, HardwareError, "'V100' is not in the catalogue: use one of A100"),
        ({"calibration": "none.json"}, HardwareError, "none.json cannot be read"),
        ({"config": {"model_type": "mystery"}}, ShapeError, "model_type 'mystery' .*lacks num_hi"),
    ],
)
def test_refused_arguments(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        small(**options)


def test_a_latent_cache_needs_a_backend_for_it() -> None:
    with pytest.raises(PredictionError, match="caches a latent: use one of FLASH_ATTN_MLA, FLASHM"):
        small(DEEPSEEK_V2_LITE, attention_backend="FLASH_ATTN")


def test_stored_weights_are_not_overruled() -> None:
    config = {**LLAMA_3_8B, "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(PredictionError, match=r"the config\.json says how weights are stored"):
        small(config, quantization="int4")


# Command


def test_json_is_the_contract_and_nothing_else(model: Path) -> None:
    result = run(model, "--hardware", "H100-SXM", "--epsilon", "0.1,0.2", "--json")
    assert result.exit_code == 0
    assert (
        json.loads(result.output)
        == vllm_nfp.predict(model, "H100-SXM", epsilons=(0.1, 0.2)).to_dict()
    )


def test_flags_reach_the_prediction(tmp_path: Path) -> None:
    path = folder(tmp_path, "moe", QWEN_3_30B_A3B)
    flags = {
        "--batch-sizes": "2",
        "--contexts": "512",
        "--epsilon": "0.3",
        "--tensor-parallel-size": "2",
        "--data-parallel-size": "2",
        "--attention-backend": "FLASHINFER",
        "--dtype": "float16",
        "--quantization": "fp8",
        "--kv-cache-dtype": "fp8",
        "--cudagraph-capture-sizes": "8,16",
        "--max-positions": "32",
    }
    given = [text for flag in flags.items() for text in flag]
    given += ["--enable-expert-parallel", "--bidirectional", "--json"]
    found = vllm_nfp.predict(
        path, "H200", (2,), (512,), (0.3,), tensor_parallel_size=2, data_parallel_size=2,
        expert_parallel=True, attention_backend="FLASHINFER", dtype="float16",
        quantization="fp8", kv_cache_dtype="fp8", bidirectional=True, capture_sizes=(8, 16),
        max_positions=32,
    )  # fmt: skip
    result = run(path, "--hardware", "H200", *given)
    assert json.loads(result.output) == found.to_dict()


def test_no_graphs_can_be_asked_for(model: Path) -> None:
    result = run(model, "--hardware", "H100-SXM", "--cudagraph-capture-sizes", "none")
    assert result.exit_code == 0
    assert "Without CUDA graphs" in result.output


def table(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if "x " in line and "over" not in line]


def test_the_table_shows_each_cell(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(model, "--hardware", "H100-SXM", "--max-positions", 16)
    assert result.exit_code == 0
    rows = table(result.output)
    assert len(rows) == 3 + 6 + 6  # contexts are all one to a feed-forward block
    assert rows[0][0] == "model", "the whole step first, as everywhere"
    first = next(row for row in rows if row[0] == "dense_ffn")
    assert first == ["dense_ffn", "any", "1", "16+", "295", "<18x", "memory"]
    assert "+ still free at N = 16, the largest evaluated" in result.output
    assert "Constants: fitted to kernels of vLLM 0.32 on an H100 SXM" in result.output
    assert max(len(line) for line in result.output.splitlines()) <= 80


def test_three_tolerances_fit_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = folder(tmp_path, "moe", QWEN_3_30B_A3B)
    result = run(path, "--hardware", "h200", "--epsilon", "0.05,0.1,0.2")
    assert "…" not in result.output
    moe = next(row for row in table(result.output) if row[0] == "moe_ffn")
    assert moe == ["moe_ffn", "any", "1", "1", "1", "1", "206", "206x", "experts"]


def test_notes_say_what_is_assumed() -> None:
    assert len(notes(small())) == 1
    carried, rules = notes(small(hardware="L4"))
    assert "not fitted to L4, assumed as H100-SXM (dense products" in carried
    assert carried.endswith("dense products, attention and experts rests on: assumption.")
    # Its own kernels were fitted to, and "not fitted to H200, kernels of H200" contradicts itself.
    (own, *_) = notes(small(hardware="H200"))
    assert "Constants: not all fitted to H200, kernels of vLLM 0.32 on an H200" in own
    assert "FLASH_ATTN_2 were never timed" in rules
    assumed = "transfers between ranks are assumed"
    assert any(assumed in note for note in notes(small(hardware="L4", tensor_parallel_size=2)))
    assert not any(assumed in note for note in notes(small(tensor_parallel_size=2)))


def test_transfers_between_ranks_have_rows_and_an_explanation() -> None:
    found = small(tensor_parallel_size=2)
    assert "communication" in found.modules
    (row,) = (r for r in found.rows if r.module == "communication" and r.batch_size == 1)
    assert row.limited_by == "communication"
    told = " ".join(explain(found, "communication", 1, 1024).sentences)
    assert "transfers are neither" in told


def test_leaving_the_graphs_is_noted() -> None:
    edge = small(batch_sizes=(1, 8, 600), capture_sizes=(1, 2, 4, 8))
    assert [edge.in_graphs(b) for b in (1, 8, 600)] == [8, 1, 0]
    beyond, never = notes(edge)[-2:]
    assert beyond.startswith("Beyond N = 8 at B = 1, N = 1 at B = 8 the step leaves its CUDA graph")
    assert never.startswith("At B = 600 no step fits a CUDA graph")
    assert all("launch time is not predicted" in note for note in (beyond, never))


def test_graphs_end_at_the_first_step_that_fits_none() -> None:
    # 8 x 6 tokens find none of 12, 30 and 102, the last above the largest; 8 x 7 run in one of 98.
    assert small(capture_sizes=(8, 25, 100)).in_graphs(8) == 5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Missing option '--hardware'"),
        (("--hardware", "V100"), "hardware 'V100' is not in the catalogue: use one of A100"),
        (("--hardware", "none.json"), "hardware file none.json cannot be read"),
        (("--hardware", "L4", "--batch-sizes", ""), "--batch-sizes holds '', which is not a whole"),
        (("--hardware", "L4", "--batch-sizes", "1,x"), "--batch-sizes holds 'x', which is not a w"),
        (("--hardware", "L4", "--batch-sizes", "9" * 5000), "--batch-sizes holds '9999"),
        (("--hardware", "L4", "--contexts", "1,1"), "Error: --contexts holds 1 twice"),
        (("--hardware", "L4", "--epsilon", "-0.1"), "Error: --epsilon must be between 0 and 1 "),
        (
            ("--hardware", "L4", "--max-positions", "9000"),
            "Error: --max-positions must lie from 1 to 8192",
        ),
        (("--hardware", "L4", "--explain", "8"), "--explain must be B,L or B,L,MODULE, for"),
        (
            ("--hardware", "L4", "--explain", "8,x,model"),
            "attention, not '8,x,model': the modules are",
        ),
        (("--hardware", "L4", "--explain", "1,8,moe_ffn"), "has no module 'moe_ffn': use one of"),
        (("--hardware", "L4", "--explain", "--json"), "--explain prints text only"),
        (("--hardware", "L4", "--plot", "x.pdf"), "--plot x.pdf has no known ending"),
        (
            ("--hardware", "L4", "--plot", "none/x.png"),
            "the directory of none/x.png does not exist",
        ),
    ],
)
def test_refusals_are_one_sentence(model: Path, args: tuple[str, ...], message: str) -> None:
    result = run(model, *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()[-1]) < 400
    assert result.stdout == ""


def test_too_many_values_are_refused(model: Path) -> None:
    many = ",".join(map(str, range(1, MOST_VALUES + 2)))
    result = run(model, "--hardware", "L4", "--batch-sizes", many)
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --batch-sizes holds 65 values: give at most 64\n",
    )


def test_unknown_families_are_named_and_may_be_assumed(tmp_path: Path) -> None:
    config = {**LLAMA_3_8B, "model_type": "mystery"}
    path = folder(tmp_path, "mystery-8b", config)
    refused = run(path, "--hardware", "L4")
    assert refused.exit_code == 2
    assert "'mystery' is not a known family" in refused.stderr
    assert "--assume-dense" in refused.stderr
    taken = run(path, "--hardware", "L4", "--assume-dense", "--json")
    llama = small(
        LLAMA_3_8B, "L4", batch_sizes=(1, 8, 32), contexts=(1024, 4096), max_positions=512
    )
    assert json.loads(taken.output)["rows"] == llama.to_dict()["rows"]
    (assumed,) = json.loads(taken.output)["assumptions"]
    assert "'mystery' is not a known family: it is read like Llama" in assumed
    assert "it is read like Llama" in " ".join(
        run(path, "--hardware", "L4", "--assume-dense").output.split()
    )
    missing = {key: value for key, value in config.items() if key != "hidden_size"}
    lacking = run(folder(tmp_path, "lacking", missing), "--hardware", "L4", "--assume-dense")
    assert lacking.exit_code == 2
    assert "hidden_size" in lacking.stderr


@pytest.mark.parametrize("text", [None, "{", "[]", '"x"'])
def test_bad_models_are_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    result = run(path, "--hardware", "L4")
    assert result.exit_code == 2
    assert "config.json" in result.stderr


def test_control_characters_never_reach_the_terminal(tmp_path: Path) -> None:
    path = folder(tmp_path, "evil\x1b[31m", {**QWEN_3_8B, "_name_or_path": "a\x1b]0;b"})
    result = run(path, "--hardware", "L4")
    assert result.exit_code == 0
    assert "\x1b" not in result.output


# Explanation


@pytest.mark.parametrize("config", [QWEN_3_8B, QWEN_3_30B_A3B, DEEPSEEK_V2_LITE, GEMMA_3_4B])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_explained_terms_add_up(config: Any, batch_size: int) -> None:
    found = small(config)
    for module in found.modules:
        told = explain(found, module, batch_size, 4096)
        edge = found.cell(module, batch_size, 4096).boundaries[0]
        last = edge.nfp if edge.at_limit else edge.nfp + 1
        assert told.positions == tuple(sorted({1, edge.nfp, last}))
        for lines in (told.terms, told.parts):
            if lines:
                sums = [sum(values) for values in zip(*(x.seconds for x in lines), strict=True)]
                assert sums == pytest.approx(told.total.seconds, rel=2e-3)
        assert bool(told.parts) == (module == "model")
        assert edge.limited_by in told.sentences[1]
        assert (
            f"The idle-compute rule gives {found.cell(module, batch_size, 4096).idle_compute_nfp} "
            in (told.sentences[-1])
        )


def test_explained_granularity_by_hand() -> None:
    found = small(QWEN_3_30B_A3B, max_positions=64)
    attention = " ".join(explain(found, "attention", 32, 65536).sentences)
    # 8 query heads share a KV head: 8 positions fill a block of 64 rows.
    assert "(query heads per KV head: 8)" in attention
    assert "at N = 1 8 rows in 1 block of 64" in attention
    experts = " ".join(explain(found, "moe_ffn", 1, 1024).sentences)
    assert "Of a layer's 128 experts on a rank, on average 8 at N = 1, 15.5 at" in experts
    dense = " ".join(explain(small(), "dense_ffn", 3, 1024).sentences)
    assert "CUDA graphs: 3 tokens at N = 1 in a graph of 4" in dense


def test_explanations_tell_of_the_end_of_graphs_and_of_the_scan() -> None:
    out = explain(small(capture_sizes=(1,)), "model", 4, 1024).sentences
    assert any("in no graph" in s and "launch time is not predicted" in s for s in out)
    short = explain(small(max_positions=2), "dense_ffn", 1, 1024).sentences
    assert "No N up to 2, the largest evaluated, exceeds the tolerance of 0.1" in short[0]
    assert "nothing grew" in explain(small(max_positions=1), "dense_ffn", 1, 1024).sentences[1]


def test_the_command_explains_a_cell(model: Path) -> None:
    every = run(model, "--hardware", "H100-SXM", "--explain")
    assert every.exit_code == 0
    for module in ("dense_ffn", "attention", "model"):
        assert f"{module}, B=1, L=1024" in every.output
    one = run(model, "--hardware", "H100-SXM", "--explain", "16,9000,attention")
    assert "attention, B=16, L=9000" in one.output
    assert "dense_ffn" not in one.output


# Plot


@pytest.mark.parametrize("config", [QWEN_3_8B, DEEPSEEK_V2_LITE])
def test_svg_holds_title_and_every_cell(tmp_path: Path, config: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    path, out = folder(tmp_path, "a <model>", config), tmp_path / "curves.svg"
    result = run(path, "--hardware", "H100-SXM", "--plot", out, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"] == "a <model>"
    text = " ".join(ET.parse(out).getroot().itertext())
    for part in ("Predicted: a <model> on H100-SXM", "B=32 L=4096", "whole step", "1 + 0.1"):
        assert part in text
    assert out.read_bytes() == prediction_plot.draw(vllm_nfp.predict(path, "H100-SXM"), "svg")


def test_png_is_replaced_whole(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.PNG"
    out.write_text("older")
    result = run(model, "--hardware", "H200", "--batch-sizes", "1,600", "--plot", out)
    assert result.exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.PNG", "qwen3-8b"]


def test_a_failed_plot_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.png"
    out.write_text("older")

    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prediction_plot, "draw", fail)
    with pytest.raises(OSError, match="No space"):
        prediction_plot.write_plot(out, small())
    assert out.read_text() == "older"


def test_plots_of_too_many_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="at most 6 batch sizes, not 7"):
        prediction_plot.write_plot(tmp_path / "x.png", small(batch_sizes=range(1, 8)))
    with pytest.raises(ReportError, match="at most 3 contexts, not 4"):
        prediction_plot.write_plot(tmp_path / "x.png", small(contexts=range(1, 5)))


def test_without_matplotlib_there_is_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(model, "--hardware", "L4", "--plot", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "a plot needs matplotlib, which is not installed: pip install 'vllm-nfp[report]'" in (
        result.stderr
    )


# Weight of it


def test_neither_torch_nor_vllm_is_loaded(model: Path) -> None:
    code = f"""
import sys, time
import vllm_nfp
assert "numpy" not in sys.modules, "import vllm_nfp must stay light"
from click.testing import CliRunner
from vllm_nfp.cli import main
result = CliRunner().invoke(main, ["predict", {str(model)!r}, "--hardware", "H100-SXM"])
assert result.exit_code == 0, result.output
vllm_nfp.predict({str(model)!r}, "H200")
heavy = {{"torch", "vllm", "transformers", "scipy", "pandas", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy

def seconds():
    start = time.process_time()
    vllm_nfp.predict({str(model)!r}, "H100-SXM", (8,), (4096,))
    return time.process_time() - start

best = min(seconds() for _ in range(5))
assert best < 0.1, best
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_skewed_routing_takes_less_time_and_is_told(tmp_path: Path) -> None:
    uniform, typical = (small(QWEN_3_30B_A3B, routing=r) for r in ("uniform", 0.75))
    assert small(QWEN_3_30B_A3B, routing="Typical").rows == typical.rows
    before, after = (found.cell("moe_ffn", 1, 1024) for found in (uniform, typical))
    assert after.seconds[0] == pytest.approx(before.seconds[0])
    assert after.seconds[15] < 0.92 * before.seconds[15]
    assert (uniform.to_dict()["routing_skew"], typical.to_dict()["routing_skew"]) == (0.0, 0.75)
    (tmp_path / "config.json").write_text(json.dumps(QWEN_3_30B_A3B))
    for routing, sentence in (("uniform", "assumed uniform"), ("0.5", "assumed skewed")):
        args = [tmp_path, "--hardware", "H100-SXM", "--routing", routing]
        found = run(*args)
        assert f"Routing is {sentence}" in " ".join(found.output.split())
    for wrong in ("even", "3", "-1", "nan"):
        with pytest.raises(PredictionError, match="routing must be uniform, typical or an expon"):
            small(QWEN_3_30B_A3B, routing=wrong)


def test_a_line_says_what_was_understood_of_the_model(tmp_path: Path) -> None:
    path = folder(tmp_path, "llama", LLAMA_3_8B)
    first, *_ = run(path, "--hardware", "L4").output.splitlines()
    assert first.startswith("8.03 B parameters, 16.1 GB of weights, layers: 32 full attention")
    facts = json.loads(run(path, "--hardware", "L4", "--json").output)["model_facts"]
    assert facts["layers"] == {"full_attention": 32, "dense_ffn": 32}
    assert facts["parameters"] == pytest.approx(8.03e9, rel=0.001)
    assert facts["weight_bytes"] == 2 * facts["parameters"]
    # Keys and values of 8 heads of 128 in 32 layers, 2 bytes each.
    assert facts["kv_bytes_per_token"] == 2 * 8 * 128 * 2 * 32
    assert facts["state_bytes_per_sequence"] == 0


def test_facts_are_of_the_whole_model() -> None:
    alone = small(LLAMA_3_8B, "L4").model_facts
    assert small(LLAMA_3_8B, "L4", tensor_parallel_size=4).model_facts == alone
