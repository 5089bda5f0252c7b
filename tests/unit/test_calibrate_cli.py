"""``vllm-nfp calibrate`` as a user calls it; only the GPU and the processes are replaced."""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT

from vllm_nfp.calibrate.device import DeviceError, Gpu, gpu_at_hand
from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import read_samples
from vllm_nfp.calibrate.run import Failure, Outcome, Progress, Stage
from vllm_nfp.cli import calibrate, calibrate_samples, main
from vllm_nfp.principle.hardware_file import read_hardware_file, target_of

KERNELS = ROOT / "benchmarks" / "results" / "2026-11-24-h100-kernels"
REFERENCE = KERNELS / "reference"
GIB = 1 << 30
H100 = Gpu("NVIDIA H100 80GB HBM3", 79 * GIB, (9, 0))
A100 = Gpu("NVIDIA A100-SXM4-80GB", 79 * GIB, (8, 0))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


def refusal(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert not done.stdout
    return " ".join(done.stderr.split())


def test_reference_samples_give_the_committed_file(tmp_path: Path) -> None:
    out = tmp_path / "h100.json"
    done = run("--from-samples", REFERENCE, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["output"] == str(out)
    assert told["hardware"] == "H100-SXM"
    assert told["fitted"] is True
    most = {"gemm": 0.07, "fp8_gemm": 0.11, "attention": 0.05, "experts": 0.05}
    for part in told["parts"]:
        assert part["after"]["rms_log_ratio_error"] < most.pop(part["part"]), part
    assert not most
    written, committed = read_hardware_file(out), read_hardware_file(KERNELS / "h100-sxm.json")
    assert written.environment == committed.environment
    for name in ("gemm", "attention", "experts"):
        ours, theirs = (getattr(t.calibration, name) for t in (written, committed))
        for field in ours.__dataclass_fields__:
            if field not in ("fp8", "slow_steps"):
                expected = getattr(theirs, field)
                near = expected if expected is None else pytest.approx(expected, rel=1e-3)
                assert getattr(ours, field) == near
    ours, theirs = (dataclasses.asdict(t.calibration.gemm.fp8) for t in (written, committed))
    assert ours.pop("tile_slowdown") == pytest.approx(theirs.pop("tile_slowdown"), rel=1e-3)
    assert ours.pop("tile_tokens") == theirs.pop("tile_tokens")
    assert (ours.pop("tiles"), theirs.pop("tiles")) == (None, None)
    assert ours == pytest.approx(theirs, rel=1e-3)
    # They are not fitted anew.
    assert written.calibration.gemm.slow_steps == committed.calibration.gemm.slow_steps


def test_summary_and_default_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    packed = (REFERENCE / "mixtral-8x7b.jsonl.gz").read_bytes()
    (samples / "mixtral.jsonl").write_bytes(gzip.decompress(packed))
    monkeypatch.chdir(tmp_path)
    done = run("--from-samples", samples)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "h100-sxm.json").exists()
    for text in ("1 curves on NVIDIA H100", "gemm: no curves: constants are kept",
                 "activation_bandwidth", "hardware file: h100-sxm.json"):  # fmt: skip
        assert text in done.stdout
    assert "h100-sxm.json exists" in refusal("--from-samples", samples)
    assert run("--from-samples", samples, "--force").exit_code == 0


def test_from_samples_needs_no_torch() -> None:
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['vllm'] = None\n"
        "from vllm_nfp.cli import main\n"
        f"main(['calibrate', '--from-samples', {str(REFERENCE)!r}, '-o', '/nowhere/x.json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "the directory of /nowhere/x.json does not exist" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from-samples", "none"], "there is no directory none"),
        (["--from-samples", "."], "holds no .jsonl or .jsonl.gz file"),
        (["--from-samples", ".", "--trial"], "measures nothing: leave out"),
        (["--models", "gpt"], "--models: no model 'gpt' to calibrate with: choose of llama-3.1-8b"),
        (["--hardware", "V100"], "--hardware: hardware 'V100' is not in the catalogue: use one of"),
        (["--hardware", "none.json"], "--hardware: hardware file none.json cannot be read"),
        (["--trial", "-o", "x.json"], "--trial writes a file only with --hardware"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(*arguments)
    assert not list(tmp_path.iterdir())


def test_samples_of_nonsense_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}")
    assert "x.jsonl holds no kernel samples" in refusal("--from-samples", tmp_path)


def test_unknown_device_says_what_to_do(tmp_path: Path) -> None:
    raw = gzip.decompress((REFERENCE / "mixtral-8x7b.jsonl.gz").read_bytes())
    (tmp_path / "x.jsonl").write_bytes(raw.replace(b"NVIDIA H100 80GB HBM3", b"NVIDIA H200 NVL"))
    told = refusal("--from-samples", tmp_path)
    assert "the samples' device, 'NVIDIA H200 NVL', is not in the catalogue" in told
    assert "--hardware FILE.json" in told

    sheet = json.loads((KERNELS / "h100-sxm.json").read_text())
    sheet["hardware"] |= {"name": "H200-NVL", "memory_bytes_per_second": 3.9e12}
    sheet["calibration"] = {"source": "assumed"}
    file = tmp_path / "sheet.json"
    file.write_text(json.dumps(sheet))
    out = tmp_path / "nvl.json"
    done = run("--from-samples", tmp_path, "--hardware", file, "-o", out)
    assert done.exit_code == 0, done.output
    assert target_of(str(out)).hardware.name == "H200-NVL"
    assert target_of(str(out)).calibration.experts.bandwidth < 0.9  # a share of more bytes


Measure = Callable[..., list[str]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Run the command on a GPU whose processes bring recorded samples; what was run."""
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def fake(plans: Any, folder: Path, report: Any, *, on_progress: Any) -> Outcome:
        samples, failures = [], []
        for plan in plans:
            ran.append(plan.label)
            on_progress(Progress(plan.label, Stage.MEASURING, 1, 2))
            folder.mkdir(exist_ok=True)
            if plan.label == "qwen3-1.7b":
                failures.append(Failure(plan.label, folder / "qwen3-1.7b.log"))
                continue
            found = read_samples(REFERENCE / f"{plan.label}.jsonl.gz")
            samples.append(found)
        return Outcome(tuple(samples), tuple(failures))

    def go(gpu: Gpu | None) -> list[str]:
        monkeypatch.setattr(calibrate, "gpu_at_hand", lambda: gpu)
        monkeypatch.setattr(calibrate_samples, "run_plans", fake)
        return ran

    return go


def test_a_gpu_is_measured_and_its_failures_told(measure: Measure, tmp_path: Path) -> None:
    ran = measure(H100)
    done = run("--models", "qwen3-1.7b,mixtral-8x7b,llama-3.1-8b-fp8")
    assert done.exit_code == 0, done.output
    assert sorted(ran) == ["llama-3.1-8b-fp8", "mixtral-8x7b", "qwen3-1.7b"]
    assert "qwen3-1.7b could not be timed to the end: see " in done.stdout
    assert read_hardware_file(tmp_path / "h100-sxm.json").environment["vllm"] == "0.32.0"


def test_fp8_and_what_does_not_fit_are_left_out(measure: Measure) -> None:
    ran = measure(Gpu(A100.name, 10 * GIB, A100.capability))
    done = run("--models", "mixtral-8x7b,llama-3.1-8b-fp8,llama-3.1-70b", "-o", "a.json", "--json")
    assert done.exit_code == 0, done.output
    assert ran == ["mixtral-8x7b"]
    notes = json.loads(done.stdout)["notes"]
    assert f"llama-3.1-8b-fp8 is left out: {A100.name} has no FP8" in notes
    start = "llama-3.1-70b is left out: it needs about "
    assert any(note.startswith(start) and note.endswith("10.0 GiB are free") for note in notes)


def test_nothing_left_or_measured_is_told(measure: Measure, tmp_path: Path) -> None:
    measure(Gpu(A100.name, 2 * GIB, A100.capability))
    assert "no model is left to time; llama-3.1-8b-fp8 is left out" in refusal()
    measure(H100)
    done = run("--models", "qwen3-1.7b")
    assert done.exit_code == 1
    assert "nothing was measured; qwen3-1.7b could not be timed" in done.stderr
    assert not list(tmp_path.glob("*.json"))


def test_no_gpu_unknown_gpu_and_kept_samples(measure: Measure, tmp_path: Path) -> None:
    ran = measure(None)
    assert "there is no GPU to calibrate" in refusal()
    measure(Gpu("NVIDIA L4000", 79 * GIB, (9, 0)))
    assert "this GPU, 'NVIDIA L4000', is not in the catalogue" in refusal()
    measure(H100)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.jsonl").write_text("{}")
    assert "kept holds samples" in refusal("--samples", "kept")
    (tmp_path / "h100-sxm.json").write_text("mine")
    assert "h100-sxm.json exists" in refusal()
    assert ran == []
    assert (tmp_path / "h100-sxm.json").read_text() == "mine"


def test_has_fp8() -> None:
    assert not A100.has_fp8
    assert Gpu("L4", 1, (8, 9)).has_fp8
    assert Gpu("MI300X", 1, (9, 4), rocm=True).has_fp8


def ask(code: str) -> Gpu | None:
    return gpu_at_hand((sys.executable, "-c", code))


def test_asking_for_the_gpu() -> None:
    told = {"name": "NVIDIA L4", "free_bytes": 5, "capability": [8, 9], "rocm": False}
    assert ask(f"print('noise'); print({json.dumps(json.dumps(told))})") == (
        Gpu("NVIDIA L4", 5, (8, 9))
    )
    assert ask("print('null')") is None
    with pytest.raises(DeviceError, match="No module named 'torch'"):
        ask("raise ImportError(\"No module named 'torch'\")")
    with pytest.raises(DeviceError, match="no answer"):
        ask("print('what?')")


def test_plans_fit_together_with_labels_of_files() -> None:
    for plan in calibrate.REFERENCE:
        assert isinstance(plan, ModelPlan)
        assert (REFERENCE / f"{plan.label}.jsonl.gz").exists()
