from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllm_nfp.cli import main
from vllm_nfp.dashboards import ExportError, export, kubernetes, source_folder

ROOT = Path(__file__).parents[2]
FILES = {
    "compose.yaml",
    "grafana/nfp-deep-dive.json",
    "grafana/nfp-fleet.json",
    "grafana/nfp-overview.json",
    "prometheus.yml",
    "provisioning/dashboards/nfp.yml",
    "provisioning/datasources/prometheus.yml",
    "rules/nfp.rules.yml",
}
KUBERNETES = {f"kubernetes/{name}" for name in kubernetes.STATIC}


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_export_writes_all_and_then_finds_nothing_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    first = export(folder)
    assert set(first.written) == FILES
    assert files_in(folder) == {name: (source_folder() / name).read_bytes() for name in FILES}
    again = export(folder)
    assert again.written == ()
    assert set(again.unchanged) == FILES


def test_a_file_of_somebodys_is_kept_and_nothing_else_is_written(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    mine = tmp_path / "rules" / "nfp.rules.yml"
    mine.write_text("mine")
    with pytest.raises(ExportError, match=r"nfp\.rules\.yml exists and differs .*--force"):
        export(tmp_path)
    assert files_in(tmp_path) == {"rules/nfp.rules.yml": b"mine"}
    done = export(tmp_path, force=True)
    assert set(done.written) == FILES
    assert mine.read_bytes() == (source_folder() / "rules/nfp.rules.yml").read_bytes()


def test_the_command_prints_json_and_refuses_in_one_sentence(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path), "--json"])
    assert run.exit_code == 0
    said = json.loads(run.stdout)
    assert said["schema"] == 1
    assert set(said["written"]) == FILES
    (tmp_path / "prometheus.yml").write_text("mine")
    run = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path)])
    assert run.exit_code == 2
    assert "prometheus.yml exists and differs" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    run = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path), "--force"])
    assert run.exit_code == 0
    assert "wrote" in run.output


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path / "file" / "below")])
    assert run.exit_code == 2
    assert "cannot be written" in run.stderr


def test_a_built_package_carries_the_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build"),
         "egg_info", "--egg-base", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    package = tmp_path / "build" / "lib" / "vllm_nfp" / "dashboards"
    assert set(files_in(package / "data")) == FILES | KUBERNETES
    # The copy finds its own files, without the checkout.
    found = subprocess.run(
        [sys.executable, "-c", "from vllm_nfp.dashboards import source_folder as f; print(f())"],
        cwd=tmp_path / "build" / "lib",
        env={"PYTHONPATH": str(tmp_path / "build" / "lib"), "PATH": ""},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()) == package / "data"
