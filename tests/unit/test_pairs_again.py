"""A few pairs of a recorded truth tell how many experts the positions of a sequence share."""

from __future__ import annotations

import sys

from click.testing import CliRunner
from conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.answers.pairs_again import ROUNDS, main

RUN = ROOT / "benchmarks" / "results" / "2026-11-28-h200x4-at-defaults" / "moe-again"


def test_pairs_that_read_contexts_tell_it_for_all_batch_sizes() -> None:
    """Those of one sequence alone at first; pairs without contexts leave it open."""
    result = CliRunner().invoke(main, [str(RUN), "--draws", "1"])
    assert result.exit_code == 0, result.output
    rows = dict(line.split(" | ", 1) for line in result.output.splitlines()[1:])
    assert list(rows) == [name for name, _ in ROUNDS]
    errors = [float(rest.split("%")[0]) for rest in rows.values()]
    held = [float(rest.split(" | ")[2].split("%")[0]) for rest in rows.values()]
    assert errors[1] > 10.0 and errors[2] < 8.0 and errors[4] < 3.0
    assert min(held) > 95.0
