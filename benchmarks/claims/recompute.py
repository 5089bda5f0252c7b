"""Figures from their records, by the programs that scored them first."""

from __future__ import annotations

import gzip
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.at_defaults_score import Score, scores_of
from benchmarks.claims.claim import Figures
from benchmarks.draft_rates import STEADY, point_rows
from benchmarks.switched_summary import all_loads
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
    return "100 %" if part == whole else f"{100.0 * part / whole:.1f} %"


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
    named: dict[str, str] = {}
    for found in all_loads(record):
        if found.variant != HOOKS:
            continue
        at, ratio = f"{found.share * 100:.0f}", found.ratios["itl_p50"]
        named |= {f"ratio_{at}": f"{ratio.ratio:.3f}", "rounds": str(found.rounds)}
        named |= {f"lower_{at}": f"{ratio.lower:.3f}", f"upper_{at}": f"{ratio.upper:.3f}"}
        named[f"n_{at}"] = str(found.intervals)
    return named


def boundaries(results: Path) -> Figures:
    """NFP by the roofline rule over measured NFP, at the set-aside shapes."""
    found = [
        o for o in outcomes(all_cells(results, target_of("H100-SXM"))) if o.group == "set-aside"
    ]
    scores = summary(found)
    return {
        "boundaries": str(scores["cells"]),
        "idle": f"{scores['idle_over_prediction_median']:.1f}",
        "idle_p10": f"{scores['idle_over_prediction_p10']:.1f}",
        "idle_p90": f"{scores['idle_over_prediction_p90']:.0f}",
    }
