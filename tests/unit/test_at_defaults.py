"""The score of a server at the defaults against a measurement of every point."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.answers import at_defaults
from benchmarks.answers.at_defaults_score import scores_of
from tests.unit.test_profile import ENVIRONMENT
from vllm_nfp import measure
from vllm_nfp.cli import main as main_command
from vllm_nfp.config import ProbeConfig, config_from_mapping
from vllm_nfp.metrics.families import families_of
from vllm_nfp.results.profile import profile_of, save_profile
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import Basis, Boundary, CurvePoint, ModelDescription, Module, State

COUNTS = (1, 2, 4, 8, 16)
TRUE = (1.0, 1.02, 1.05, 1.3, 2.6)


def snapshot_of(ratios: tuple[float, ...], nfp: int, basis: Basis) -> Snapshot:
    curve = tuple(
        CurvePoint(
            Module.MODEL, 8, 1024, n, 6, 0.01 * ratio, ratio, ratio * 0.99, ratio * 1.01, "full",
            basis=basis,
        )
        for n, ratio in zip(COUNTS, ratios, strict=True)
    )  # fmt: skip
    line = Boundary(Module.MODEL, 8, 1024, 0.1, nfp, nfp, nfp, False, nfp, basis)
    return Snapshot(
        "m", "0", State.PROBING, boundaries=(line,), curves=curve,
        probes={"startup": 20, "measured": 3, "refused": 2},
    )  # fmt: skip


def keep(folder: Path, moment: str, snapshot: Snapshot) -> None:
    registry = CollectorRegistry()

    class Shown:
        def collect(self) -> object:
            return families_of([snapshot])

    registry.register(Shown())  # type: ignore[arg-type]
    (folder / f"{moment}.prom").write_bytes(generate_latest(registry))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    truth = profile_of(
        snapshot_of(TRUE, 4, Basis.MEASURED),
        ENVIRONMENT,
        ModelDescription("m"),
        ProbeConfig().for_server(32, 16384),
    )
    save_profile(tmp_path / at_defaults.TRUTH, truth)
    about = {"shape": "tiny", "layers": 2, "flags": ""}
    (tmp_path / "about.json").write_text(json.dumps(about))
    wrong = tuple(1.0 + 0.5 * (n - 1) for n in COUNTS)
    keep(tmp_path, at_defaults.START, snapshot_of(wrong, 1, Basis.PREDICTED))
    keep(tmp_path, "phase-1", snapshot_of(TRUE, 4, Basis.INFERRED))
    return tmp_path


def test_a_right_answer_scores_and_a_wrong_one_does_not(run: Path) -> None:
    at_start, later = scores_of(run)
    assert (at_start.moment, later.moment) == ("start", "phase-1")
    assert later.pairs == {"startup": 20, "measured": 3}
    assert (at_start.near, at_start.boundaries) == (0, 1)
    assert (later.near, later.near_inside, later.inside, later.held) == (1, 1, 1, 1)
    assert (at_start.steps.covered, later.steps.covered) == (0, 4)
    assert max(later.steps.errors) == pytest.approx(0.0) and min(at_start.steps.errors) > 0.3
    assert (later.steps.good, later.steps.drafts) == (3, 3) and later.steps.worst > 0.98
    # No drafts at all where each position seemed to cost half a step.
    assert at_start.steps.good < 3 and at_start.steps.worst < 0.7
    assert (at_start.bases, later.bases) == ({"predicted": 1}, {"inferred": 1})


def test_what_was_not_measured_is_no_truth(run: Path) -> None:
    path = run / at_defaults.TRUTH
    values = json.loads(path.read_text())
    for line in values["boundaries"]:
        line["basis"] = "inferred"
    path.write_text(json.dumps(values))
    assert [row.boundaries for row in scores_of(run)] == [0, 0]


def test_points_that_were_not_measured_score_no_ratio_and_no_draft(run: Path) -> None:
    path = run / at_defaults.TRUTH
    values = json.loads(path.read_text())
    for point in values["curves"]:
        if point["positions"] == 8:
            point["basis"], point["samples"] = "inferred", 0
    path.write_text(json.dumps(values))
    later = list(scores_of(run))[1]
    assert (len(later.steps.errors), later.steps.covered, later.steps.drafts) == (3, 3, 0)


def test_points_without_a_graph_count_for_drafts_alone(run: Path) -> None:
    path = run / at_defaults.TRUTH
    values = json.loads(path.read_text())
    for point in values["curves"]:
        if point["positions"] >= 8:
            point["execution"] = "none"
    path.write_text(json.dumps(values))
    later = list(scores_of(run))[1]
    assert len(later.steps.errors) == 2 and later.steps.drafts == 3


def test_a_run_keeps_the_probes_part_of_the_metrics(tmp_path: Path) -> None:
    class Answering:
        def metrics(self) -> str:
            return "vllm:x 1\n# HELP vllm_nfp_state s\nvllm_nfp_state 1\n"

    at_defaults.keep_metrics(Answering(), "start", tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "start.prom").read_text() == "# HELP vllm_nfp_state s\nvllm_nfp_state 1\n"


def test_scores_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at_defaults.main.main(["--score", str(run)], standalone_mode=False)
    told = capsys.readouterr().out
    assert "20 startup" in told and "phase-1" in told and "100.0% of 4" in told


def test_the_truth_excludes_nothing_that_was_measured(run: Path) -> None:
    """A basis of one row takes no other row away."""
    snapshot = snapshot_of(TRUE, 4, Basis.INFERRED)
    other = replace(snapshot.boundaries[0], epsilon=0.2)
    keep(run, "phase-1", replace(snapshot, boundaries=(*snapshot.boundaries, other)))
    assert list(scores_of(run))[1].boundaries == 1


def test_this_or_more_is_right_where_the_truth_is_more(run: Path) -> None:
    snapshot = snapshot_of(TRUE, 4, Basis.INFERRED)
    for nfp, near in ((1, 1), (16, 0)):
        line = replace(snapshot.boundaries[0], positions=nfp, lower=1, upper=nfp, at_limit=True)
        keep(run, "phase-1", replace(snapshot, boundaries=(line,)))
        later = list(scores_of(run))[1]
        assert (later.near, later.inside) == (near, 1 - near)


def test_the_truth_has_the_settings_of_the_measure_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def keep(settings: measure.Settings, *_: object) -> None:
        asked.append(settings)
        raise measure.MeasureError("enough")

    monkeypatch.setattr(measure, "measure", keep)
    run = subprocess.run

    def in_this_process(command: list[str], **_: object) -> None:
        CliRunner().invoke(main_command, command[3:])

    monkeypatch.setattr(subprocess, "run", in_this_process)
    (tmp_path / "config.json").write_text("{}")  # a model's directory
    at_defaults.measure_truth(tmp_path, "{}", 77.0, tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    given = config_from_mapping(at_defaults.truth_settings(77.0, tmp_path))
    assert replace(given, output_dir=None) == asked[0].probe


def test_a_server_that_takes_no_truth_is_named(tmp_path: Path) -> None:
    server = SimpleNamespace(url="http://127.0.0.1:9")  # nothing listens there
    answer = at_defaults.truth_in_server(server, 20.0, tmp_path)  # type: ignore[arg-type]
    assert "see server.log" in answer["fault"]
    assert not (tmp_path / at_defaults.TRUTH).exists()


def test_a_run_without_a_truth_is_named(run: Path) -> None:
    (run / at_defaults.TRUTH).unlink()
    done = CliRunner().invoke(at_defaults.main, ["--score", str(run)])
    assert done.exit_code == 1 and f"no truth to score by: {run}" in done.output


def test_the_truth_follows_the_probe_in_the_place_of_its_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from vllm_nfp.probe import engine
    from vllm_nfp.session.session import Session

    # Imported by workers alone: it hooks sessions, which this undoes.
    monkeypatch.setattr(Session, "after_warm_up", Session.after_warm_up)
    monkeypatch.delitem(sys.modules, "benchmarks.answers.truth_extension", raising=False)
    extension = importlib.import_module("benchmarks.answers.truth_extension")
    told: list[Any] = []
    noted: list[Any] = []
    monkeypatch.setattr(engine, "written_blocks", lambda *_: "nothing")

    class Outcome:
        """Where a session writes."""

        def __init__(self, name: str) -> None:
            self.name = name

        def end(self) -> None:
            told.append(f"{self.name} ends")

        def write_last(self, results: Callable[[], Snapshot]) -> None: ...

        def close(self) -> None: ...

    def session(name: str) -> Session:
        cost = SimpleNamespace(begin=lambda: None, end=lambda: None, seconds=1.0)
        worker = SimpleNamespace(identity=Snapshot("m", "0", State.PROBING), cost=cost)

        def starts(worker: Any, runner: Any, place: Any, output: Any) -> Any:
            told.append((name, runner, place))
            noted.append(engine.written_blocks(runner, ()))  # as an engine of the probe asks
            made = SimpleNamespace(written="of the traffic", close=lambda: None)
            return SimpleNamespace(lead=None, engine=made)

        return Session(worker, Outcome(name), starts)  # type: ignore[arg-type]

    settings = at_defaults.truth_settings(20.0, tmp_path)
    live = session("live")
    live.after_warm_up("runner", "pool", lambda: told.append("unhooked"))
    asked: list[ProbeConfig] = []

    def open_session(config: ProbeConfig, *_: Any) -> Session:
        asked.append(config)
        return session("truth")

    monkeypatch.setattr(extension, "open_session", open_session)
    server = extension.TruthServer()
    server.vllm_config, server.model_runner = None, "runner"
    answer = json.loads(server.nfp_truth(json.dumps(settings)))
    assert told == [
        ("live", "runner", "pool"), "live ends", "unhooked",
        ("truth", "runner", "pool"), "truth ends",
    ]  # fmt: skip
    assert noted == ["nothing", "of the traffic"]
    assert answer["active"] and not live.active
    assert asked == [config_from_mapping(settings)]


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [("", 15.0), ("--quantization fp8", 15.0), ("--tensor-parallel-size 2", 60.0), ("-tp 2", 60.0)],
)
def test_a_limited_truth_leaves_several_ranks_the_time_of_all_captures(
    flags: str, seconds: float
) -> None:
    assert at_defaults.captures_of(flags) == seconds
