"""The parent side of a measurement, with children that are no vLLM."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress as Bar

from vllm_nfp import measure
from vllm_nfp.cli import main
from vllm_nfp.cli.measure import CAPTURE_SECONDS, GRAPH_MEMORY_MIB, _teller
from vllm_nfp.cli.profile_table import print_profile
from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.profile import Profile, save_profile
from vllm_nfp.types import Basis, Boundary, CurvePoint

T = TypeVar("T", CurvePoint, Boundary)

WRITES = """
import dataclasses, os, sys, time
from vllm_nfp.config import config_from_environment
from vllm_nfp.results.snapshot import Snapshot, State, engine_file, write_snapshot
config = config_from_environment()
def tell(state, **values):
    write_snapshot(engine_file(config.run_dir, "0"), Snapshot("m", "0", state, **values))
def keep(name):
    import shutil
    shutil.copy(name, config.output_dir + "/profile-0.json")
"""


@pytest.fixture
def settings() -> measure.Settings:
    return measure.Settings("a-model", ProbeConfig(startup_seconds=5.0), {"max_model_len": 64})


def run(
    settings: measure.Settings, tmp_path: Path, code: str
) -> tuple[Profile, list[measure.Progress]]:
    """Measure with a child that runs this code in the engine's place."""
    script = tmp_path / "child.py"
    script.write_text(WRITES + code)
    told: list[measure.Progress] = []

    def tell(progress: measure.Progress) -> None:
        told.append(progress)
        (tmp_path / f"told-{progress.pairs_done}").touch()
        (tmp_path / f"waits-for-{progress.waits_for}").touch()

    command = (sys.executable, str(script))
    return measure.measure(settings, tmp_path / "log", tell, command), told


def test_the_child_is_the_program_that_starts_an_engine() -> None:
    assert (sys.executable, "-m", "vllm_nfp.adapter.engines") == measure.ENGINE
    assert importlib.util.find_spec("vllm_nfp.adapter.engines") is not None


def test_the_child_gets_its_arguments_and_leaves_a_profile(
    settings: measure.Settings, tmp_path: Path, dense_profile: Profile
) -> None:
    source = tmp_path / "made.json"
    save_profile(source, dense_profile)
    found, told = run(
        settings,
        tmp_path,
        f"""
assert sys.argv[1] == '{{"max_model_len": 64, "model": "a-model"}}', sys.argv
assert config.startup_seconds == 5.0 and config.run_dir == config.output_dir
assert config.fill_first
tell(State.WARMING, reason="filling")
while not os.path.exists({str(tmp_path / "waits-for-filling")!r}):
    time.sleep(0.05)
tell(State.WARMING, probes={{"measured": 3}}, missing_pairs=9)
while not os.path.exists({str(tmp_path / "told-3")!r}):
    time.sleep(0.05)
tell(State.STEADY, probes={{"startup": 12}}, missing_pairs=0)
keep({str(source)!r})
""",
    )
    assert found == dense_profile
    assert measure.Progress(True, waits_for="filling") in told
    assert measure.Progress(True, 3, 9) in told
    assert told[-1] == measure.Progress(True, 12, 0)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (
            "print('vllm-nfp-failure: no such model', file=sys.stderr); sys.exit(1)",
            "the engine did not start: no such model; its log is",
        ),
        ("os.abort()", "the engine did not start: it ended with code -6: see"),
        (
            "tell(State.PASSIVE, reason='vLLM 0.99.0 is newer')",
            "the probe is passive: vLLM 0.99.0 is newer; the engine's log",
        ),
        (
            "tell(State.DISABLED, reason='LoRA keeps state')",
            "the probe is disabled: LoRA keeps state; the engine's log",
        ),
        ("tell(State.STEADY)", "the engine ended without a profile"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    settings: measure.Settings, tmp_path: Path, code: str, part: str
) -> None:
    with pytest.raises(measure.MeasureError) as caught:
        run(settings, tmp_path, code)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def predicted(profile: Profile, beyond: int) -> Profile:
    """The profile as if nothing beyond so many positions was measured, and all else was."""

    def changed(row: T) -> T:
        return replace(row, basis=Basis.PREDICTED if row.positions > beyond else Basis.MEASURED)

    return replace(
        profile,
        curves=tuple(map(changed, profile.curves)),
        boundaries=tuple(map(changed, profile.boundaries)),
    )


def test_a_scan_without_a_pair_is_no_measurement(
    settings: measure.Settings, tmp_path: Path, dense_profile: Profile
) -> None:
    """The profile holds the prediction then, which nobody asked for."""
    source = tmp_path / "made.json"
    save_profile(source, predicted(dense_profile, 1))
    with pytest.raises(measure.MeasureError) as caught:
        run(settings, tmp_path, f"tell(State.PROBING)\nkeep({str(source)!r})\n")
    assert "nothing was measured: give the scan more --seconds" in str(caught.value)
    save_profile(source, predicted(dense_profile, 2))
    found, _ = run(settings, tmp_path, f"tell(State.PROBING)\nkeep({str(source)!r})\n")
    assert {row.basis for row in found.curves} == {Basis.MEASURED, Basis.PREDICTED}


def test_what_was_not_measured_in_time_is_marked_and_told_in_one_sentence(
    dense_profile: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_profile(predicted(dense_profile, 64))
    shown = capsys.readouterr().out
    assert "12 measured; + this or more" in shown
    assert "Answers" not in shown
    late = predicted(dense_profile, 16)
    late = replace(
        late,
        run=replace(late.run, missing_pairs=7),
        probe=replace(late.probe, wanted_samples=12),
    )
    print_profile(late)
    shown = capsys.readouterr().out
    assert "64+? [64, 64]" in shown
    others = sum(row.positions > 16 for row in late.boundaries)
    told = f"Answers: {len(late.boundaries) - others} measured, {others} predicted; "
    (line,) = (line for line in shown.splitlines() if line.startswith("Answers"))
    assert line == f"{told}time ran out before every point had its samples: 7 pairs are missing."


def test_a_child_is_ended_with_its_parent(settings: measure.Settings, tmp_path: Path) -> None:
    def interrupt(progress: measure.Progress) -> None:
        if progress.started:
            raise KeyboardInterrupt

    script = tmp_path / "child.py"
    script.write_text(
        WRITES + "print(os.getpid(), flush=True)\ntell(State.WARMING)\ntime.sleep(600)\n"
    )
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure.measure(settings, tmp_path / "log", interrupt, (sys.executable, str(script)))
    with pytest.raises(ProcessLookupError):  # it was reaped
        os.kill(int((tmp_path / "log").read_text()), 0)
    assert time.monotonic() - begun < 300


def test_the_child_loads_the_probe_whatever_plugins_the_caller_allows(
    settings: measure.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(measure.MeasureError, match=r"without a profile|did not start"):
        run(settings, tmp_path, "import os; print(os.environ['VLLM_PLUGINS'])\n")
    assert "other,nfp" in (tmp_path / "log").read_text()


def test_an_engine_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    child = (
        "import time; from vllm_nfp.start.process import end_with_parent; "
        "end_with_parent(); print('ready', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE, "
        "start_new_session=True); p.stdout.readline(); print(p.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 120
    while running(pid):
        assert time.monotonic() < deadline, "the engine outlives its parent"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_engine_that_fails_says_why_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vllm_nfp.adapter.engines", "no JSON"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vllm-nfp-failure: Expecting value")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["./nowhere"], "there is no model directory ./nowhere: give one that exists"),
        (["m", "--batch-sizes", "1,x"], "--batch-sizes holds 'x', which is not a whole number"),
        (["m", "--batch-sizes", "8,1"], "--batch-sizes must be ascending"),
        (["m", "--contexts", "1.5"], "--contexts holds '1.5', which is not a whole number"),
        (["m", "--epsilon", "0,1"], "each value of --epsilon must be a fraction from 0.001 to 1"),
        (["m", "--max-positions", "1"], "--max-positions must be a number of positions from 2"),
        (["m", "--samples", "99999"], "--samples must be a number of samples from 0 to 10000"),
        (["m", "--layers", "-1"], "--layers must be a number of layers from 0"),
        ([str(Path(__file__).parent)], "holds no config.json: give the directory of a model"),
        (["m", "--samples", "0"], "0 is not in the range x>=1"),
        (["m", "--seconds", "9999"], "Error: --seconds must be seconds from 0 to 600"),
        (["m", "--engine-args", "[]"], "--engine-args must be a JSON object"),
        (["m", "--engine-args", '{"model": "x"}'], "--engine-args must not name a model"),
        (["m", "--nfp-config", '{"contexts": [1]}'], "hold 'contexts' here: give it as --contexts"),
        (["m", "--nfp-config", '{"run_dir": "/"}'], "must not hold 'run_dir' here: leave it out"),
        (["m", "--nfp-config", '{"fill_first": false}'], "hold 'fill_first' here: leave it out"),
        (["m", "--nfp-config", '{"bogus": 1}'], "unknown field 'bogus'"),
        (["m", "-o", "no/such/folder.json"], "the directory of no/such/folder.json does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_an_engine_starts(
    arguments: list[str], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("an engine was started"))
    done = CliRunner().invoke(main, ["measure", *arguments])
    assert done.exit_code == 2, done.output
    assert part in done.output


def test_the_command_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_profile: Profile
) -> None:
    import json

    from vllm_nfp import load_profile

    seen: list[measure.Settings] = []

    def fake(settings: measure.Settings, *_: object) -> Profile:
        seen.append(settings)
        return dense_profile

    monkeypatch.setattr(measure, "measure", fake)
    out = tmp_path / "p.json"
    done = CliRunner().invoke(
        main,
        [
            "measure",
            "name",
            "--samples",
            "20",
            "--seconds",
            "7",
            "--layers",
            "0",
            "-o",
            str(out),
            "--nfp-config",
            '{"graph_memory_mib": 99}',
        ],
        env={"COLUMNS": "120"},
    )
    assert done.exit_code == 0, done.output
    assert "qwen3-8b on NVIDIA H100 80GB HBM3, vLLM 0.32.0, bfloat16" in done.output
    assert "64+ [64, 64]" in done.output
    assert load_profile(out) == dense_profile
    probe = seen[0].probe
    assert probe.min_samples == ProbeConfig().min_samples
    assert (probe.wanted_samples, probe.max_samples, probe.sampled_layers) == (20, 32, 0)
    assert probe.startup_seconds == 7.0
    assert (probe.graph_memory_mib, probe.capture_seconds) == (99, 60.0)
    done = CliRunner().invoke(main, ["measure", "name", "-o", str(out), "--json"])
    assert json.loads(done.stdout) == json.loads(json.dumps(dense_profile.to_dict()))


def test_what_has_to_be_said_of_the_scan_is_a_sentence_beside_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_profile: Profile
) -> None:
    noted = replace(dense_profile, run=replace(dense_profile.run, reason="the cache was empty"))
    monkeypatch.setattr(measure, "measure", lambda *_: noted)
    out = str(tmp_path / "p.json")
    done = CliRunner().invoke(main, ["measure", "name", "-o", out, "--json"])
    assert done.stderr.splitlines()[-1] == "the cache was empty."
    assert "the cache" in done.stdout, "the profile has it as well"


@pytest.mark.parametrize(
    ("ends", "left"), [(KeyboardInterrupt(), 0), (measure.MeasureError("see its log"), 1)]
)
def test_a_log_stays_only_where_it_is_named(
    ends: BaseException, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C left one directory after the other in /tmp."""

    def end(_settings: measure.Settings, log: Path, _tell: object) -> Profile:
        log.touch()
        raise ends

    monkeypatch.setattr(measure, "measure", end)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = CliRunner().invoke(main, ["measure", "m", "-o", str(tmp_path / "p.json")])
    assert done.exit_code != 0
    assert len(list(tmp_path.glob("vllm-nfp-log-*"))) == left


def test_the_guide_names_the_defaults_of_the_command() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    assert f"{CAPTURE_SECONDS:g} s for capturing, " in guide
    assert f", {GRAPH_MEMORY_MIB} MiB for CUDA graphs" in guide


def test_the_progress_says_what_the_scan_waits_for() -> None:
    with Bar(console=Console(file=io.StringIO())) as bar:
        tell = _teller(bar)
        tell(measure.Progress(True, waits_for="filling the cache"))
        assert (bar.tasks[0].description, bar.tasks[0].total) == ("filling the cache", None)
        tell(measure.Progress(True, 3, 9))
        assert (bar.tasks[0].description, bar.tasks[0].total) == ("scanning", 12)
        assert bar.tasks[0].fields["pairs"] == "3/12 pairs"
