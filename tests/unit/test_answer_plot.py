"""The plot of answers over time shows what the records hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("matplotlib")

from benchmarks.claims import answer_plot
from benchmarks.claims.at_defaults_claims import RESULTS


def test_a_line_has_the_shares_of_each_moment() -> None:
    record = answer_plot.ROOT / RESULTS / "2026-11-28-h100-at-defaults" / "dense"
    line = answer_plot.line_of("dense", record)
    assert line.seconds == (0.0, 25.0, 70.0, 115.0)
    drafts, covered = line.shares
    assert drafts == (100.0, 100.0, 100.0, 100.0)
    assert (
        covered is not None and covered[-1] == 100.0 and covered[2] == pytest.approx(99.4, abs=0.1)
    )


def test_a_run_whose_truth_scores_no_draft_length_is_left_out_of_that_panel() -> None:
    record = answer_plot.ROOT / RESULTS / "2026-11-28-h200-at-defaults-e6aeccf" / "latent-attention"
    line = answer_plot.line_of("cut", record)
    assert line.shares[0] is None and line.shares[1] is not None
    left, right = answer_plot.draw([line]).axes
    assert (len(left.lines), len(right.lines)) == (0, 1)
