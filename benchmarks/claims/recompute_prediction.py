"""Scores of today's predictor against recorded measurements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.claims.claim import Figures
from benchmarks.prediction.score_public import Scored, score
from benchmarks.prediction.validation_cells import Cell, all_cells
from benchmarks.prediction.validation_outcomes import Outcome, can_miss, outcomes, summary
from benchmarks.prediction.validation_page import errors_of, own_table, public_table
from vllm_nfp.principle import target_of
from vllm_nfp.types import Module

SEEN_EARLY = ("phi-3-mini", "llama-3.2-1b", "olmoe-1b-7b")
"""Set-aside models whose FFN curves an earlier sweep had shown before the forms were chosen."""


@cache
def _cells(results: Path) -> Sequence[Cell]:
    return all_cells(results, target_of("H100-SXM"))


def boundaries(results: Path) -> Figures:
    """NFP by the roofline rule over measured NFP, at the set-aside shapes."""
    scores = summary([one for one in outcomes(_cells(results)) if one.group == "set-aside"])
    return {
        "boundaries": str(scores["cells"]),
        "idle": f"{scores['idle_over_prediction_median']:.1f}",
        "idle_p10": f"{scores['idle_over_prediction_p10']:.1f}",
        "idle_p90": f"{scores['idle_over_prediction_p90']:.0f}",
    }


def own(results: Path) -> Figures:
    """Own runs: ratios at all points of set-aside shapes, and the boundaries that can miss."""
    cells = [cell for cell in _cells(results) if cell.group == "set-aside"]
    errors = np.abs(np.concatenate([errors_of(cell) for cell in cells]))
    missable = [one for one in outcomes(cells) if can_miss(one)]
    unseen = [one for one in missable if not _seen_early(one)]
    return {
        "points": str(len(errors)),
        "five": _share(float(np.mean(errors <= 0.05))),
        "ten": _share(float(np.mean(errors <= 0.1))),
        **_of("", missable),
        **_of("unseen_", unseen),
        "table": own_table(_cells(results)),
    }


def _of(prefix: str, found: Sequence[Outcome]) -> dict[str, str]:
    scores = summary(found)
    return {
        f"{prefix}boundaries": str(scores["cells"]),
        f"{prefix}step": _share(scores["within_step"]),
        f"{prefix}near": _share(scores["within_10_percent"]),
        f"{prefix}error": f"{100 * scores['median_error']:.1f} %",
    }


def _seen_early(one: Outcome) -> bool:
    ffn = one.module in (Module.DENSE_FFN, Module.MOE_FFN)
    return ffn and one.source == "kernel" and one.model in SEEN_EARLY


def public(curves: Path) -> Figures:
    """Public measurements, with the constants of the split."""
    found = score(json.loads(curves.read_text(encoding="utf-8"))["sets"])
    return {"table": public_table(found), **_unseen(found)}


def _unseen(found: Sequence[Scored]) -> dict[str, str]:
    errors = np.abs(np.concatenate([one.errors for one in found if not one.seen]))
    return {
        "points": str(len(errors)),
        "five": _share(float(np.mean(errors <= 0.05))),
        "ten": _share(float(np.mean(errors <= 0.1))),
    }


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
