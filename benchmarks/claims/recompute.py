"""Figures from their records, by the programs that scored them first."""

from __future__ import annotations

import gzip
import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.at_defaults_score import Score, scores_of
from benchmarks.claims.claim import Figures
from benchmarks.draft_rates import STEADY, point_rows
from benchmarks.switched_summary import cells
from benchmarks.validation_cells import all_cells
from benchmarks.validation_outcomes import outcomes, summary
from vllm_nfp.principle import target_of

GOOD = 0.98
HOOKS = "active"
"""The variant with probes, against which hooks that are off are held."""


def at_defaults(record: Path) -> Figures:
    """A run of benchmarks.at_defaults: right after the start, and after all of its traffic."""
    with _unpacked(record) as folder:
        scores = list(scores_of(folder))
    return {**_of_score("start_", scores[0]), **_of_score("", scores[-1])}


def _of_score(prefix: str, found: Score) -> Figures:
    errors = np.array(found.errors or [math.nan])
    named = {
        "pairs": str(sum(found.pairs.values())),
        "near": _percent(found.near, found.boundaries),
        "boundaries": str(found.boundaries),
        "held": _percent(found.held, found.boundaries),
        "error": f"{np.median(errors):.2%}".replace("%", " %"),
        "error_p90": f"{np.quantile(errors, 0.9):.2%}".replace("%", " %"),
        "covered": _percent(found.covered, len(found.errors)),
        "points": str(len(found.errors)),
        "good": _percent(found.good, found.drafts),
        "drafts": str(found.drafts),
        "worst": f"{found.worst:.3f}",
    }
    return {prefix + name: value for name, value in named.items()}


@contextmanager
def _unpacked(record: Path) -> Iterator[Path]:
    """The files of a record, those that are kept compressed as they were."""
    with tempfile.TemporaryDirectory() as folder:
        for path in record.iterdir():
            content = path.read_bytes()
            if path.suffix == ".gz":
                (Path(folder) / path.stem).write_bytes(gzip.decompress(content))
            else:
                (Path(folder) / path.name).write_bytes(content)
        yield Path(folder)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}".replace(".0%", "%").replace("%", " %")


def draft_lengths(record: Path) -> Figures:
    """Every point of the ten recorded sets: at context 1024 those of ``short``."""
    rows = [
        row
        for path in sorted(record.rglob("points.jsonl"))
        for row in point_rows(path.parent)
        if path.parent.parent.name == "short" or row["context"] > 1024
    ]
    steady = [row for row in rows if row["spread"] <= STEADY]
    named = {"points": str(len(rows)), "steady": str(len(steady))}
    for policy in ("ours", "live", "documented"):
        named[policy] = str(sum(row[policy] >= GOOD for row in rows))
        named[f"steady_{policy}"] = str(sum(row[policy] >= GOOD for row in steady))
    named["steady_ours_worst"] = f"{min(row['ours'] for row in steady):.3f}"
    return named


def inter_token_latency(record: Path) -> Figures:
    """The median over that with hooks off, at 10 and 50 % load."""
    run = json.loads(record.read_text(encoding="utf-8"))
    with np.load(record.with_suffix(".npz")) as stored:
        itl_us = dict(stored)
    named = {}
    for share in (0.1, 0.5):
        _, _, rounds, intervals, _, median, *_ = cells(run["rounds"], itl_us, share, HOOKS)
        ratio, lower, upper = re.findall(r"[\d.]+", median)
        at = f"{share * 100:.0f}"
        named |= {f"ratio_{at}": f"{float(ratio):.3f}", "rounds": rounds, f"n_{at}": intervals}
        named |= {f"lower_{at}": f"{float(lower):.3f}", f"upper_{at}": f"{float(upper):.3f}"}
    return named


def boundaries(results: Path) -> Figures:
    """Predicted, and by the roofline rule, over measured NFP at the set-aside shapes."""
    found = [
        o for o in outcomes(all_cells(results, target_of("H100-SXM"))) if o.group == "set-aside"
    ]
    scores = summary(found)
    return {
        "boundaries": str(scores["cells"]),
        "within_step": f"{scores['within_step']:.0%}".replace("%", " %"),
        "idle": f"{scores['idle_over_prediction_median']:.1f}",
        "idle_p10": f"{scores['idle_over_prediction_p10']:.1f}",
        "idle_p90": f"{scores['idle_over_prediction_p90']:.0f}",
    }
