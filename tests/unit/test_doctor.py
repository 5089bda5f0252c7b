from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vllm_nfp import cpu_setup, doctor
from vllm_nfp.adapter import sources, targets, versions
from vllm_nfp.calibrate.device import DeviceError, Gpu
from vllm_nfp.cli import main
from vllm_nfp.config import ENV_VAR
from vllm_nfp.doctor import (
    Answer,
    BadQuestionError,
    Finding,
    Question,
    Status,
    diagnosis,
    machine,
    packages,
)
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES

SPECULATING = {
    "speculative": "ngram", "draft_lengths_by_batch_size": False, "draft_length": 1,
    "draft_table": [], "draft_slots": 0, "adaptive_verification": False,
}  # fmt: skip
BASE = {"platform": "cuda", "triton": True, "forced_runner": None}
OF_MODEL = {
    **BASE,
    "mode": "active", "reason": "", "features": [],
    "use_v2": True, "v2_unsupported": [],
    "backend": "FLASH_ATTN", "flash_attention": 3,
    "graphs": {"eager": False, "mode": "FULL", "largest": 512, "sizes": [*range(1, 513)]},
    "max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 32768,
    "speculative": None, "draft_lengths_by_batch_size": False, "data_parallel": 1,
    "tensor_parallel": 1, "expert_parallel": False, "quantization": None, "kv_cache_dtype": "auto",
}  # fmt: skip


@pytest.fixture(autouse=True)
def sound_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound machine with a known GPU, whatever this one is."""
    gpu = Gpu("NVIDIA H100 80GB HBM3", 70 << 30, (9, 0))
    monkeypatch.setattr(machine, "gpu_at_hand", lambda: gpu)
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0")
    monkeypatch.setattr(cpu_setup, "is_cpu_build", lambda: False)
    monkeypatch.setattr(sources, "has_extension_point", lambda: False)
    monkeypatch.setattr(sources, "missing_targets", lambda *_: [])
    monkeypatch.setattr(packages, "installed_version", lambda name: "2.11.0")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ["nfp"])
    for name in ("VLLM_PLUGINS", "PROMETHEUS_MULTIPROC_DIR", ENV_VAR):
        monkeypatch.delenv(name, raising=False)


def diagnose(question: Question | None = None, **values: Any) -> dict[str, Finding]:
    return {f.name: f for f in whole(question, **values).findings}


def whole(question: Question | None = None, **values: Any) -> doctor.Diagnosis:
    question = question or Question()
    answer = Answer({**(BASE if question.model is None else OF_MODEL), **values})
    return doctor.diagnose(question, lambda _: answer)


MODEL = Question(Path("model"))


def test_a_sound_machine_works() -> None:
    found = whole()
    assert found.works
    told = found.to_json()
    assert (told["schema"], told["works"], told["mode"]) == (1, True, "active")
    assert {check["status"] for check in told["checks"]} <= {"ok", "warning"}
    names = [check["name"] for check in told["checks"]]
    assert len(names) == len(set(names))
    assert "H100" in diagnose()["device"].found
    assert diagnose()["predictions"].found == "hardware H100-SXM"


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: None)
    monkeypatch.setattr(packages, "installed_version", lambda name: None)

    def no_torch() -> None:
        raise DeviceError("torch cannot be asked for its GPU: No module named 'torch'")

    monkeypatch.setattr(machine, "gpu_at_hand", no_torch)
    found = doctor.diagnose(Question())
    broken = {f.name: f for f in found.findings if f.status is Status.BROKEN}
    assert set(broken) == {"torch", "vllm"}
    assert "0.29 to 0.33" in broken["vllm"].advice
    assert found.to_json()["mode"] == "off"


@pytest.mark.parametrize(
    ("version", "status", "mode", "works"),
    [
        ("0.28.1", Status.BROKEN, "off", False),
        ("0.29.0", Status.OK, "active", True),
        ("0.99.0", Status.WARNING, "passive", True),
    ],
)
def test_the_version_decides(
    version: str, status: Status, mode: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: version)
    found = whole()
    assert {f.name: f for f in found.findings}["vllm"].status is status
    assert found.to_json()["mode"] == mode
    assert found.works is works
    limits = [f for f in found.findings if f.name == "vllm limit"]
    assert bool(limits) is (version == "0.29.0")


def test_a_plugin_that_is_not_registered_or_excluded_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other,nfp")
    assert diagnose()["plugin"].status is Status.OK
    monkeypatch.setenv("VLLM_PLUGINS", "other, nfp")  # vLLM looks for " nfp"
    assert "no spaces" in diagnose()["plugin"].advice
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert "VLLM_PLUGINS='other'" in diagnose()["plugin"].found
    assert not whole().works
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert "no entry point" in diagnose()["plugin"].found


@pytest.mark.parametrize(
    ("values", "question", "told"),
    [
        ({}, Question(), "V2: the default"),
        ({"triton": False, "platform": "cpu"}, Question(), "CPU, derived from V1: V2 needs Triton"),
        ({"forced_runner": "0"}, Question(), "V1: VLLM_USE_V2_MODEL_RUNNER=0 asks for it"),
        ({"forced_runner": "1", "triton": False}, Question(), "V2: VLLM_USE_V2"),
        ({}, MODEL, "V2: vLLM's choice"),
        ({"use_v2": False, "v2_unsupported": ["x", "y"]}, MODEL, "V1: V2 does not support x, y"),
        ({"use_v2": False, "triton": False}, MODEL, "V1: V2 needs Triton"),
    ],
)
def test_the_runner_and_why(values: dict[str, Any], question: Question, told: str) -> None:
    assert diagnose(question, **values)["model runner"].found.startswith(told)


def test_a_model_that_cannot_be_probed_is_broken_with_the_reason() -> None:
    found = whole(MODEL, mode="off", reason="LoRA keeps state: serve without --enable-lora")
    assert not found.works
    finding = {f.name: f for f in found.findings}["this model"]
    assert (finding.status, finding.advice) == (
        Status.BROKEN, "LoRA keeps state: serve without --enable-lora",
    )  # fmt: skip


def test_every_feature_of_a_command_line_is_told_and_not_only_the_first_reason() -> None:
    made = [
        {"name": name, "mode": mode, "why": why, "needs": needs}
        for name, mode, why, needs in (
            ("mixture of experts", "active", "modules moe_ffn", ""),
            ("several nodes", "active", "each takes its own", "start all alike"),
            ("LoRA", "passive", "serve without --enable-lora", ""),
            ("pipeline parallelism", "passive", "probing needs 1", ""),
        )
    ]
    found = whole(MODEL, mode="passive", reason="probing needs 1", features=made)
    told = [(f.status, f.found, f.advice) for f in found.findings if f.name == "feature"]
    assert told == [
        (Status.OK, "mixture of experts: probed", ""),
        (Status.OK, "several nodes: probed", "start all alike"),
        (Status.WARNING, "LoRA: passive; serve without --enable-lora", ""),
        (Status.WARNING, "pipeline parallelism: passive; probing needs 1", ""),
    ]


@pytest.mark.parametrize(("eager", "told"), [(False, True), (True, False)])
def test_capture_sizes_are_checked_where_the_gpu_is(eager: bool, told: bool) -> None:
    graphs = {"eager": eager, "mode": "NONE", "largest": 0, "sizes": []}
    found = diagnose(MODEL, backend="CPU_ATTN", graphs=graphs)["CUDA graphs"]
    assert ("on the server's GPU host" in found.advice) == told


def test_backend_graphs_and_drafts_of_a_model() -> None:
    found = diagnose(MODEL)
    assert found["attention backend"].found == "FLASH_ATTN"
    assert found["CUDA graphs"].found == "FULL, up to 512 tokens"
    unknown = diagnose(
        MODEL, backend=None, graphs={"eager": True, "mode": "NONE", "largest": 0, "sizes": []}
    )
    assert unknown["attention backend"].status is Status.UNKNOWN
    assert unknown["CUDA graphs"].found.startswith("none")
    drafts = {**SPECULATING, "draft_lengths_by_batch_size": True, "draft_table": [[1, 256, 1]]}
    name = "drafting of this server"
    assert diagnose(MODEL, **drafts)[name].status is Status.OK
    ignored = diagnose(MODEL, **drafts, data_parallel=2)[name]
    assert ignored.status is Status.WARNING
    assert "with 2 data-parallel engines" in ignored.advice
    assert "num_speculative_tokens=1" in ignored.advice


LINTS = (
    "capture sizes", "tokens of a step", "table on the V1 runner", "table with ngram_gpu",
    "attention of drafts",
)  # fmt: skip
TABLE = {"draft_lengths_by_batch_size": True, "draft_table": [[1, 64, 7], [65, 256, 1]]}
DEFAULT_GRAPHS = {
    "eager": False, "mode": "FULL_AND_PIECEWISE", "largest": 512,
    "sizes": list(DEFAULT_CAPTURE_SIZES),
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, ()),
        (SPECULATING, ()),
        (
            {**SPECULATING, "draft_length": 7, "graphs": DEFAULT_GRAPHS},
            ("vLLM 0.32.0 runs B=65-256 with K=7 without any CUDA graph", "2048]}"),
        ),
        (
            {**SPECULATING, "draft_length": 7, "graphs": DEFAULT_GRAPHS,
             "adaptive_verification": True},
            (),
        ),
        ({**SPECULATING, **TABLE, "draft_length": 7, "graphs": DEFAULT_GRAPHS}, ()),
        ({**SPECULATING, "draft_length": 31}, ("256 fit and no prompt token fits", "above 8192")),
        (
            {**SPECULATING, "speculative": "dflash", "draft_length": 16, "draft_slots": 16},
            ("17 tokens and 16 slots for drafting each, 8448 in all", "248 fit"),
        ),
        ({**SPECULATING, **TABLE, "use_v2": False}, ("serve with VLLM_USE_V2_MODEL_RUNNER=1",)),
        ({**SPECULATING, **TABLE, "use_v2": False, "data_parallel": 2}, ()),
        (
            {**SPECULATING, **TABLE, "speculative": "ngram_gpu", "draft_length": 7,
             "use_v2": False, "graphs": {**DEFAULT_GRAPHS, "eager": True}},
            ("AssertionError", "num_speculative_tokens=7"),
        ),
        ({**SPECULATING, "flash_attention": 2}, ("contexts like 32768", "FLASHINFER")),
        ({**SPECULATING, "flash_attention": 2, "max_model_len": 2048}, ()),
        ({**SPECULATING, "flash_attention": 2, "backend": "TRITON_ATTN"}, ()),
    ],
)  # fmt: skip
def test_flags_that_keep_drafts_from_paying(values: dict[str, Any], told: tuple[str, ...]) -> None:
    graphs = {**OF_MODEL["graphs"], "sizes": [*range(1, 8193)]}  # type: ignore[dict-item]
    found = diagnose(MODEL, **{"graphs": graphs, **values})
    advice = [found[name].advice for name in LINTS if name in found]
    assert len(advice) == bool(told)
    assert all(part in advice[0] for part in told)


@pytest.mark.parametrize(
    ("values", "flags", "told"),
    [
        ({}, (), True),
        ({"use_v2": False}, (), False),
        ({"adaptive_verification": True}, (), False),
        ({"data_parallel": 2}, (), False),
        ({"graphs": {"eager": True, "mode": "NONE", "largest": 0, "sizes": []}}, (), False),
        ({}, ("--nfp-probe",), True),
        ({}, ("--nfp-config", '{"mend_graphs": true}'), False),
        ({}, ("--nfp-config", '{"mend_graphs": false}'), True),
        ({}, ("--nfp_draft_control=true",), False),
        ({}, ("--nfp-output-dir", "here"), True),
    ],
)
def test_graphs_that_a_table_makes_vllm_overlook(
    values: dict[str, Any], flags: tuple[str, ...], told: bool
) -> None:
    table = {"draft_lengths_by_batch_size": True, "draft_table": [[1, 2, 5], [3, 128, 1]]}
    asked = dataclasses.replace(MODEL, flags=flags)
    found = diagnose(asked, **{
        **SPECULATING, **table, "speculative": "eagle3", "draft_length": 5, "max_num_seqs": 128,
        "graphs": DEFAULT_GRAPHS, **values,
    })  # fmt: skip
    assert ("graphs of the table" in found) == told
    if told:
        assert found["graphs of the table"].status is Status.WARNING
        assert "29-30 and others up to 126 with K=1" in found["graphs of the table"].advice


def test_a_table_that_the_runner_ignores_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**SPECULATING, **TABLE, "draft_length": 7, "graphs": DEFAULT_GRAPHS}
    monkeypatch.setattr(versions, "installed_version", lambda: "0.29.0")
    assert "B=65-256 with K=7" in diagnose(MODEL, **values)["capture sizes"].advice
    on_v1 = diagnose(MODEL, **values, use_v2=False)
    assert "capture sizes" not in on_v1
    assert "vLLM 0.32 or later" in on_v1["table on the V1 runner"].advice


@pytest.mark.parametrize(
    ("target", "status", "without"),
    [
        (targets.INIT_DEVICE, Status.BROKEN, "start of the probe in a worker"),
        (targets.V2_EXECUTE_MODEL, Status.WARNING, "observation of steps"),
        (targets.RUN_BUSY_LOOP, Status.WARNING, "probes while no request is there"),
    ],
)
def test_a_hook_that_this_vllm_lacks_is_named_with_what_needs_it(
    target: targets.Target, status: Status, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "installed_tree", lambda: Path("site-packages"))
    assert diagnose()["hooks"].status is Status.OK
    monkeypatch.setattr(sources, "missing_targets", lambda *_: [target])
    found = diagnose()["hooks"]
    assert (found.status, found.advice) == (status, f"without: {without}")
    assert target.name in found.found


def test_vllm_that_does_not_import_is_broken() -> None:
    found = doctor.diagnose(Question(), lambda _: Answer({}, "operator torchvision::nms"))
    finding = {f.name: f for f in found.findings}["vllm import"]
    assert (finding.status, finding.found) == (Status.BROKEN, "operator torchvision::nms")


def test_a_used_prometheus_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "prometheus multiprocess"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert diagnose()[name].status is Status.OK
    (tmp_path / "gauge_1.db").touch()
    assert diagnose()[name].status is Status.WARNING
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "none"))
    assert diagnose()[name].status is Status.BROKEN


def test_an_output_folder_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    assert diagnose(Question(output_dir=str(tmp_path)))["output directory"].status is Status.OK
    bad = diagnose(Question(output_dir="/proc/nfp"))["output directory"]
    assert (bad.status, "cannot be written" in bad.found) == (Status.BROKEN, True)


def test_settings_that_are_left_in_the_environment_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "settings variable" not in diagnose()
    monkeypatch.setenv(ENV_VAR, "{}")
    finding = diagnose()["settings variable"]
    assert finding.status is Status.WARNING
    assert f"unset {ENV_VAR}" in finding.advice
    assert whole().works
    echo = f"import os; print('\"gone\"' if {ENV_VAR!r} not in os.environ else 1)"
    assert doctor.ask_vllm(Question(), program(tmp_path, echo)).values == "gone"


def test_a_missing_extra_is_a_warning_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "EXTRAS", {"report": ("no_such_module",)})
    finding = diagnose()["extra report"]
    assert finding.status is Status.WARNING
    assert "pip install 'vllm-nfp[report]'" in finding.advice
    assert whole().works


def test_extras_name_what_pyproject_installs() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    optional = tomllib.loads(text)["project"]["optional-dependencies"]
    for name, modules in packages.EXTRAS.items():
        required = " ".join(optional[name]).replace("-", "_")
        assert all(module in required for module in modules)


def program(tmp_path: Path, text: str) -> tuple[str, str]:
    path = tmp_path / "answer.py"
    path.write_text(text)
    return sys.executable, str(path)


def test_vllm_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    echo = "import sys; print('a log line'); print(sys.argv[1])"
    answer = doctor.ask_vllm(Question(Path("m"), ("--port", "1")), program(tmp_path, echo))
    assert answer.values == {"model": "m", "flags": ["--port", "1"]}


def test_flags_that_vllm_refuses_are_a_bad_question(tmp_path: Path) -> None:
    refuse = "import sys; print('vllm serve: error: no flag --x', file=sys.stderr); sys.exit(2)"
    with pytest.raises(BadQuestionError, match=r"^no flag --x$"):
        doctor.ask_vllm(Question(Path("m"), ("--x",)), program(tmp_path, refuse))


def test_a_model_that_vllm_cannot_read_is_told_from_a_vllm_that_is_broken(tmp_path: Path) -> None:
    only_model = "import sys, json; a = json.loads(sys.argv[1]); a['model'] and 1 / 0; print('{}')"
    with pytest.raises(BadQuestionError, match="vLLM cannot serve m: ZeroDivisionError"):
        doctor.ask_vllm(Question(Path("m")), program(tmp_path, only_model))
    answer = doctor.ask_vllm(Question(Path("m")), program(tmp_path, "raise OSError('libcuda')"))
    assert (answer.values, answer.error) == ({}, "OSError: libcuda")


def test_what_vllm_cannot_serve_is_told_in_its_words_and_not_by_a_link(tmp_path: Path) -> None:
    """Pydantic, which checks vLLM's configuration, ends each error with a link to its own pages."""
    refuse = """
import sys, json, pydantic
class ModelConfig(pydantic.BaseModel):
    layers: int
if json.loads(sys.argv[1])["model"]:
    ModelConfig(layers="no number")
print("{}")
"""
    said = "vLLM cannot serve m: layers: Input should be a valid int"
    with pytest.raises(BadQuestionError, match=said):
        doctor.ask_vllm(Question(Path("m")), program(tmp_path, refuse))


def test_a_message_of_several_lines_is_told_whole(tmp_path: Path) -> None:
    """As vLLM says what a directory lacks; and the last one of several messages alone."""
    refuse = """
import sys, json, pydantic
class ModelConfig(pydantic.BaseModel):
    layers: int = 1
    @pydantic.field_validator("layers")
    def check(cls, layers):
        raise ValueError("no model:\\n1. a config.json\\n2. or params.json\\n")
class Config(pydantic.BaseModel):
    first: ModelConfig
    second: int
if json.loads(sys.argv[1])["model"]:
    kinds = {"m": {"layers": 2}, "both": {"first": {"layers": 2}, "second": "x"}}
    (ModelConfig if json.loads(sys.argv[1])["model"] == "m" else Config)(
        **kinds[json.loads(sys.argv[1])["model"]]
    )
print("{}")
"""
    whole = "vLLM cannot serve m: layers: no model: 1. a config.json 2. or params.json$"
    with pytest.raises(BadQuestionError, match=whole):
        doctor.ask_vllm(Question(Path("m")), program(tmp_path, refuse))
    with pytest.raises(BadQuestionError, match="serve both: second: Input should be a valid int"):
        doctor.ask_vllm(Question(Path("both")), program(tmp_path, refuse))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(diagnosis, "ask_vllm", lambda question: Answer(BASE))
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_the_command_prints_json_and_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["works"] is True
    assert {"name", "status", "found", "advice"} == set(told["checks"][0])


def test_the_command_ends_with_1_where_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setattr(packages, "EXTRAS", {"report": ("no_such_module",)})
    result = run(monkeypatch)
    assert result.exit_code == 1
    assert "vllm-nfp[report]" in result.stdout, "the brackets were taken for markup"
    assert "the probe will not work" in result.stdout
    assert "add nfp to VLLM_PLUGINS" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "/no/such"], "does not exist"),
        (["--", "--port", "1"], "give --model"),
    ],
)
def test_bad_flags_end_with_2(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(monkeypatch, *arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_folder_without_a_model_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(monkeypatch, "--model", str(tmp_path))
    assert result.exit_code == 2
    assert "holds no config.json: give the directory of a model" in result.output


def test_a_model_in_mistrals_format_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: Question) -> Answer:
        raise BadQuestionError(f"vLLM was asked of {question.model}")

    (tmp_path / "params.json").write_text("{}")
    monkeypatch.setattr(diagnosis, "ask_vllm", ask)
    result = CliRunner().invoke(main, ["doctor", "--model", str(tmp_path)])
    assert f"vLLM was asked of {tmp_path}" in result.output.replace("\n", "")


def test_the_command_imports_neither_torch_nor_vllm() -> None:
    program = (
        "import sys; import vllm_nfp.cli, vllm_nfp.doctor; "
        "print([m for m in ('torch', 'vllm', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "[]"
