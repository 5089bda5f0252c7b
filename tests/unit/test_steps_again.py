"""A recorded run is answered again: real steps of a model with experts count less."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.answers.steps_again import (
    MOMENTS,
    SCATTER,
    bare_shapes,
    counts_of,
    curves_at,
    main,
    pairs_of,
)
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.results.scrape import Samples
from vllm_nfp.types import Shape

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
RUNS = RESULTS / "2026-11-28-h100-at-defaults"
ALIKE = RESULTS / "2026-11-28-h200x2-alike/moe"


def test_real_steps_do_not_bend_the_answers_at_their_present_deviation() -> None:
    result = CliRunner().invoke(main, [str(RUNS / "moe-again"), "--truth", str(RUNS / "moe")])
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.output.splitlines()[1:]]
    assert [row[0] for row in rows[-2:]] == ["phase-3, 16, 3"] * 2
    held = {row[1]: float(row[4].split("%")[0]) for row in rows[-2:]}
    assert held["0.01"] <= held["0.05"]
    assert held["0.05"] > 97.0


def test_draft_lengths_are_scored_beside_the_errors() -> None:
    options = [str(ALIKE), "--hardware", "H200", "--deviation", "0.05"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    row = result.output.splitlines()[-1].split(" | ")
    median, most, drafts, worst = (float(row[at].split("%")[0]) for at in (2, 3, 5, 6))
    assert median < 3.0 < most < 8.0
    assert row[5].endswith("of 42")  # the cells whose every point was measured
    assert drafts > 75.0 and 0.9 < worst < 1.0


def test_pairs_of_the_start_read_no_contexts_until_others_replace_them() -> None:
    moments = [curves_at(ALIKE / f"{moment}.prom.gz")[0] for moment in MOMENTS]
    bare = dict(zip(MOMENTS, bare_shapes(moments), strict=True))
    assert bare["start"] == set(counts_of(moments[0]))
    # As many pairs were kept as were run: none had been replaced.
    assert bare["phase-1"] == bare["start"]
    # Of the first two fewer are kept. Of the third there are more, but more had left as well.
    replaced = {Shape(1, 1024, 32), Shape(4, 4096, 8), Shape(8, 4096, 4)}
    assert bare["phase-2"] == bare["phase-3"] == bare["start"] - replaced


def test_pairs_that_read_no_contexts_take_a_truth_of_their_own() -> None:
    samples, said = curves_at(ALIKE / "start.prom.gz")
    shape = Shape(1, 1024, 32)
    true, bare_true = (
        {(1, 1024): StepCurve(1, 1024, 1.0, ((1, 1.0), (32, ratio)))} for ratio in (1.5, 2.5)
    )
    for bare, ratio in ((frozenset({shape}), 2.5), (frozenset[Shape](), 1.5)):
        pairs = pairs_of(samples, true, said, bare, bare_true, scatter=0.0)
        found = {one.many.shape: one for one in pairs}
        assert len(found) == counts_of(samples).total() == 7
        assert found[shape].written is (shape not in bare)
        assert found[shape].many.step_seconds == ratio
        longer, other = found[Shape(1, 4096, 32)], found[Shape(8, 4096, 4)]
        assert longer.written and longer.many.step_seconds == 1.5  # at the nearest context
        assert other.many.step_seconds == said[8, 4096].ratio(4)


def test_the_start_tells_less_where_its_pairs_read_no_contexts() -> None:
    options = [str(ALIKE), "--hardware", "H200", "--deviation", "0.05"]
    bare = ["--bare", str(RESULTS / "2026-11-28-h200x2-at-defaults/moe")]
    errors = []
    for more in ([], bare):
        result = CliRunner().invoke(main, options + more)
        assert result.exit_code == 0, result.output
        errors.append(float(result.output.splitlines()[1].split(" | ")[2].split("%")[0]))
    assert errors[0] < 2.0 and errors[1] > 4.0 * errors[0]


def test_a_shape_that_more_pairs_were_run_of_keeps_those_without_contexts() -> None:
    moments = [kept(1, run=1), kept(3, run=3), kept(2, run=5), kept(3, run=6)]
    assert [len(bare) for bare in bare_shapes(moments)] == [1, 1, 0, 0]
    assert [len(bare) for bare in bare_shapes([kept(1, run=1), kept(2, run=3)])] == [1, 0]


def test_pairs_of_a_shape_scatter_as_recorded_ones_do() -> None:
    said = {(1, 256): StepCurve(1, 256, 1.0, ((1, 1.0), (8, 1.5)))}
    once, again = (list(pairs_of(kept(400, run=400), said, {})) for _ in range(2))
    assert once == again
    logs = [math.log(one.many.step_seconds / 1.5) for one in once]
    assert statistics.pstdev(logs) == pytest.approx(SCATTER, rel=0.15)


def kept(pairs: int, run: int) -> Samples:
    labels = {"module": "model", "batch_size": "1", "context": "256", "positions": "8"}
    probes = [({"outcome": "measured"}, float(run))]
    return {"vllm_nfp_samples": [(labels, float(pairs))], "vllm_nfp_probes_total": probes}
