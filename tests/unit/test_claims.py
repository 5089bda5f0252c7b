"""Published figures agree with their records, and a figure that differs is found."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.claims import __main__ as program
from benchmarks.claims import recompute, recompute_costs
from benchmarks.claims.checking import check
from benchmarks.claims.claim import Claim, Planned, Quote, Run
from benchmarks.claims.evidence import page
from benchmarks.claims.recorded import CLAIMS, PLANNED
from benchmarks.claims.staleness import Age, age

MADE = Claim(
    "made", "{share} of cells", "none", "{cells} cells", lambda _: {"share": "97 %", "cells": "3"},
    "record", Run(("python run.py --out {out} --within {within}",), 600), None, "2026-01-01",
    "H100", ("code.py",), (Quote("page.md", "good in {share} of {cells} cells"),),
)  # fmt: skip
MOST_FIGURES_OF_THE_README = 10


def test_every_published_figure_agrees_with_its_record() -> None:
    result = CliRunner().invoke(program.main, ["check"])
    assert result.exit_code == 0, result.output
    assert {line.split(":")[0] for line in result.output.splitlines()} == {c.name for c in CLAIMS}
    assert "prediction-public: not computed (give --public)" in result.output


@pytest.mark.parametrize(
    "page, faults",
    [("It is good\nin **97 %** of 3 cells.", 0), ("It is good in 96 % of 3 cells.", 1), ("", 1)],
)
def test_a_page_that_says_something_else_is_a_fault(page: str, faults: int, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(page)
    found = check(tmp_path, MADE)
    assert len(found.faults) == faults
    assert all("page.md does not say: good in 97 % of 3 cells" in fault for fault in found.faults)


def repository(folder: Path) -> Callable[..., str]:
    """A new repository; runs git there and returns what it prints."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    return git


def test_code_that_changed_since_the_run_is_stale(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("1")
    assert age(tmp_path, "abcdef0", ["code.py"]) is Age.UNKNOWN  # no repository: an archive
    git = repository(tmp_path)
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert age(tmp_path, commit, ["code.py"]) is Age.CURRENT
    assert age(tmp_path, None, ["code.py"]) is Age.UNKNOWN
    assert age(tmp_path, "abcdef0", ["code.py"]) is Age.UNKNOWN  # a shallow clone lacks it
    code.write_text("2")
    assert age(tmp_path, commit, ["code.py"]) is Age.STALE
    assert age(tmp_path, commit, ["other.py"]) is Age.CURRENT


def test_comments_docstrings_and_layout_make_no_record_stale(tmp_path: Path) -> None:
    git = repository(tmp_path)
    code, table = tmp_path / "code.py", tmp_path / "table.toml"
    code.write_text('def f():\n    """One."""\n    return 1\n')
    table.write_text("a = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit, both = git("rev-parse", "HEAD"), ["code.py", "table.toml"]
    code.write_text('"""Text."""\n\n\ndef f():\n    # of f\n    return (1)\n')
    assert age(tmp_path, commit, both) is Age.CURRENT
    code.write_text("def f():\n    return 2\n")
    assert age(tmp_path, commit, both) is Age.STALE
    assert age(tmp_path, commit, [".", ":(exclude)code.py"]) is Age.CURRENT
    code.write_text("def f(:\n")
    assert age(tmp_path, commit, both) is Age.STALE, "what cannot be read has changed"
    code.unlink()
    assert age(tmp_path, commit, both) is Age.STALE
    git("checkout", "-q", "code.py")
    table.write_text("# of a\na = 1\n")
    assert age(tmp_path, commit, both) is Age.STALE, "only Python is read so closely"


def test_a_record_outside_the_checkout_is_computed_where_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("It is good in 96 % of 3 cells.")
    outside = replace(MADE, record=None, rests_on=())
    assert check(tmp_path, outside).figures is None
    assert check(tmp_path, outside).faults == ()
    assert len(check(tmp_path, outside, tmp_path / "points.json").faults) == 1


def test_the_page_says_what_has_not_run() -> None:
    planned = Planned("later", "how long it lasts", MADE.run, "no GPU was at hand")
    text = page([check(program.ROOT, replace(MADE, quotes=()))], [planned])
    assert "| `later` | how long it lasts | no GPU was at hand |" in text
    assert "`later`:\n\n```sh\npython run.py --out DIR --within 600\n```" in text


def test_the_paths_of_claims_exist() -> None:
    for claim in CLAIMS:
        record = () if claim.record is None else (claim.record,)
        for path in (*record, *claim.rests_on, *(quote.path for quote in claim.quotes)):
            there = program.ROOT / path.removeprefix(":(exclude)")
            assert there.exists(), (claim.name, path)
        assert claim.commit or claim.added or claim.record is None, claim.name
    names = [one.name for one in (*CLAIMS, *PLANNED)]
    assert len(set(names)) == len(names)
    assert all(run.filled("out") for run in program.RUNS.values())


def test_the_readme_quotes_few_figures_and_each_from_a_claim() -> None:
    quotes = [q.text for claim in CLAIMS for q in claim.quotes if q.path == "README.md"]
    figures = sum(text.count("{") for text in quotes)
    assert 0 < figures <= MOST_FIGURES_OF_THE_README


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
    monkeypatch.setitem(program.RUNS, CLAIMS[0].name, MADE.run)
    arguments = ["run", CLAIMS[0].name, "--out", str(tmp_path / "o u t")]
    for further, seconds in (([], "600"), (["--within", "90"], "90")):
        result = CliRunner().invoke(program.main, [*arguments, *further])
        assert result.exit_code == 0, result.output
        place = str(tmp_path / "o u t")
        assert ran.pop() == ["python", "run.py", "--out", place, "--within", seconds]
    monkeypatch.setitem(program.RUNS, CLAIMS[0].name, Run(("python run.py --out {out}",)))
    result = CliRunner().invoke(program.main, [*arguments, "--within", "90"])
    assert result.exit_code == 2 and "its commands take no limit" in result.output


def test_outputs_that_differ_under_data_parallelism_are_no_claim(tmp_path: Path) -> None:
    outputs = {
        "token_ids_equal": True, "logprobs_equal": False, "pairs_meanwhile": 3.0, "prompts": 6,
        "tokens": 128,
    }  # fmt: skip
    (tmp_path / "outputs.json.gz").write_bytes(gzip.compress(json.dumps(outputs).encode()))
    with pytest.raises(ValueError, match="outputs differ"):
        recompute_costs.two_engines(tmp_path)


STATES = Path("benchmarks/results/2026-11-29-h200-states/shared-states.json")


@pytest.mark.parametrize(
    ("side", "changed", "fault"),
    [
        ("apart", {"layers_apart": 4}, r"\(4, 1\) sets of states for 9 layers"),
        ("shared", {"layers_apart": 2}, r"\(9, 2\) sets of states for 9 layers"),
        ("shared", {"execution": "piecewise"}, "no FULL graph"),
    ],
)
def test_states_that_differ_in_more_than_the_sharing_are_no_claim(
    side: str, changed: dict[str, object], fault: str, tmp_path: Path
) -> None:
    run = json.loads((program.ROOT / STATES).read_text())
    run["rows"][-1][side] |= changed
    (tmp_path / STATES.name).write_text(json.dumps(run))
    with pytest.raises(ValueError, match=fault):
        recompute.shared_states(tmp_path)


def test_shared_states_are_compared_with_those_apart(tmp_path: Path) -> None:
    def side(sets: int, step: float, layer: float) -> dict[str, object]:
        return {"layers_apart": sets, "step_us": step, "layer_us": layer, "execution": "full"}

    rows = [
        {"batch_size": 1, "positions": 8, "apart": side(3, 2000.0, 90.0),
         "shared": side(1, 1900.0, 89.1)},
        {"batch_size": 2, "positions": 1, "apart": side(3, 3000.0, 100.0),
         "shared": side(1, 3030.0, 100.0)},
    ]  # fmt: skip
    (tmp_path / STATES.name).write_text(json.dumps({"rows": rows}))
    found = recompute.shared_states(tmp_path)
    assert (found["shapes"], found["layers"]) == ("2", "3")
    assert (found["least"], found["most"], found["understated"]) == ("0.950", "1.010", "5.0")
    assert (found["layer_least"], found["layer_understated"]) == ("0.990", "1.0")
    assert (found["step_apart_1_8"], found["layer_shared_1_8"]) == ("2000", "89.1")
