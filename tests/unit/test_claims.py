"""Published figures agree with their records, and a figure that differs is found."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.claims import __main__ as program
from benchmarks.claims.checking import check
from benchmarks.claims.claim import Claim, Quote
from benchmarks.claims.recorded import CLAIMS
from benchmarks.claims.staleness import Age, age

MADE = Claim(
    "made", "{share} of cells", "none", "{cells} cells", lambda _: {"share": "97 %", "cells": "3"},
    "record", ("python run.py --out {out}",), None, "2026-01-01", "H100", ("code.py",),
    (Quote("page.md", "good in {share} of {cells} cells"),),
)  # fmt: skip


def test_every_published_figure_agrees_with_its_record() -> None:
    result = CliRunner().invoke(program.main, ["check"])
    assert result.exit_code == 0, result.output
    assert {line.split(":")[0] for line in result.output.splitlines()} == {c.name for c in CLAIMS}


@pytest.mark.parametrize(
    "page, faults",
    [("It is good\nin **97 %** of 3 cells.", 0), ("It is good in 96 % of 3 cells.", 1), ("", 1)],
)
def test_a_page_that_says_something_else_is_a_fault(page: str, faults: int, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(page)
    found = check(tmp_path, MADE)
    assert len(found.faults) == faults
    assert all("page.md does not say: good in 97 % of 3 cells" in fault for fault in found.faults)


def test_code_that_changed_since_the_run_is_stale(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    code = tmp_path / "code.py"
    code.write_text("1")
    assert age(tmp_path, "abcdef0", ["code.py"]) is Age.UNKNOWN  # no repository: an archive
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert age(tmp_path, commit, ["code.py"]) is Age.CURRENT
    assert age(tmp_path, None, ["code.py"]) is Age.UNKNOWN
    assert age(tmp_path, "abcdef0", ["code.py"]) is Age.UNKNOWN  # a shallow clone lacks it
    code.write_text("2")
    assert age(tmp_path, commit, ["code.py"]) is Age.STALE
    assert age(tmp_path, commit, ["other.py"]) is Age.CURRENT


def test_the_paths_of_claims_exist() -> None:
    for claim in CLAIMS:
        for path in (claim.record, *claim.rests_on, *(quote.path for quote in claim.quotes)):
            assert (program.ROOT / path).exists(), (claim.name, path)
        assert all("{out}" in command for command in claim.commands)
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_a_run_needs_a_known_claim_and_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(program.shutil, "which", lambda _: None)
    out = ["--out", str(tmp_path / "out")]
    unknown = CliRunner().invoke(program.main, ["run", "nothing", *out])
    assert unknown.exit_code == 2 and "roofline-rule" in unknown.output
    result = CliRunner().invoke(program.main, ["run", CLAIMS[0].name, *out])
    assert result.exit_code == 2 and "nvidia-smi is not on the PATH" in result.output
    assert not (tmp_path / "out").exists()


def test_a_run_puts_the_directory_into_its_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(program.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(program.subprocess, "run", lambda words, **_: ran.append(words))
    monkeypatch.setattr(program, "CLAIMS", (replace(MADE, name=CLAIMS[0].name),))
    result = CliRunner().invoke(
        program.main, ["run", CLAIMS[0].name, "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert ran == [["python", "run.py", "--out", str(tmp_path / "out")]]
