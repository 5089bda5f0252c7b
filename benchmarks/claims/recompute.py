"""Figures from their records, by the programs that scored them first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers.at_defaults_score import Score, scores_of
from benchmarks.answers.replay_score import all_shares, read_scores
from benchmarks.claims.claim import Figures
from benchmarks.drafts.rates import STEADY, point_rows
from benchmarks.drafts.servers_score import LEFT_OUT, read_rows, stalls
from benchmarks.hosts.records import unpacked
from benchmarks.verification.table import (
    GOOD,
    MEASURED,
    Cell,
    Load,
    best_fixed,
    cells,
    of_few,
    over_best,
    over_own,
    read_record,
    steps_measured,
)

SHORT_US = 1000.0
"""Times below this are printed with a tenth of a microsecond."""


def at_defaults(record: Path) -> Figures:
    """A run of ``at_defaults``: right after the start, and after all of its traffic."""
    with unpacked(record) as folder:
        scores = list(scores_of(folder))
    return {**_of_score("start_", scores[0]), **_of_score("", scores[-1])}


def _of_score(prefix: str, found: Score) -> Figures:
    steps = found.steps
    named = {
        "pairs": str(sum(found.pairs.values())),
        "near": _percent(found.near, found.boundaries),
        "boundaries": str(found.boundaries),
        "held": _percent(found.held, found.boundaries),
        "error": f"{steps.median:.2%}".replace("%", " %"),
        "error_p90": f"{steps.p90:.2%}".replace("%", " %"),
        "covered": _percent(steps.covered, len(steps.errors)),
        "points": str(len(steps.errors)),
        "good": _percent(steps.good, steps.drafts),
        "drafts": str(steps.drafts),
        "worst": f"{steps.worst:.3f}" if steps.drafts else "-",
    }
    return {prefix + name: value for name, value in named.items()}


def _percent(part: int, whole: int) -> str:
    if whole == 0:
        return "none"
    return "100 %" if part == whole else f"{100.0 * part / whole:.1f} %"


REPLAYED = {
    "all": "",
    "recorded steps": "recorded_",
    "composed, prior fitted on them": "fitted_",
    "composed, others": "others_",
}
"""How figures of a group of simulated servers begin."""


def replay(record: Path) -> Figures:
    """A run of benchmarks.answers.replay: all scores of each group of servers at each moment.

    Those of the surface carry no name of a method, and those of all servers none of a group.
    """
    with unpacked(record, "replay.json*") as folder:
        scores = read_scores(folder / "replay.json")
    named = {"servers": str(len({score.server for score in scores}))}
    for method, group, moment, found in all_shares(scores):
        begin = ("" if method == "surface" else f"{method}_") + REPLAYED[group]
        for name, value in found.items():
            named[f"{begin}{name}_{moment:.0f}"] = value.replace("%", " %")
            named[f"{begin}{name}_{moment:.0f}_bare"] = value.removesuffix("%")
    return named


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


def verification(record: Path) -> Figures:
    """A run of benchmarks.verification.turns: both adaptive ways and the best fixed lengths."""
    (path,) = record.glob("verification-*.json.gz")
    held = cells(read_record(path)["rows"], in_turn=True)
    ratios, best = over_own(held), [*over_best(held, MEASURED).values()]
    assert len(ratios) == len(best) == len(held), "each load ran with all"
    own, few = [*ratios.values()], of_few(ratios)
    more = [f"{100 * (ratio - 1):.1f}" for ratio in (min(own), max(own))]
    return {
        "loads": str(len(held)),
        "ahead": str(sum(ratio > 1.0 for ratio in own)),
        "least": more[0],
        "most": more[1],
        "behind": f"{100 * (1 - min(own)):.1f}",
        "mean": f"{100 * (np.mean(own) - 1):.1f}",
        "mean_few": f"{100 * (np.mean(few) - 1):.1f}",
        "near_best": str(sum(ratio >= GOOD for ratio in best)),
        "worst": f"{min(best):.2f}",
    }


def verification_earlier(record: Path) -> Figures:
    """Two runs of benchmarks.verification.turns: the host's time added, and priced apart."""
    named: dict[str, str] = {}
    for folder, suffix in (("vllm-0.33", "_added"), ("vllm-0.32", "")):
        rows = read_record(record / folder / "verification-qwen3-30b-a3b.json.gz")["rows"]
        held = cells(rows, in_turn=True)
        best = over_best(held, MEASURED)
        named |= {
            f"loads{suffix}": str(len(best)),
            f"near_best{suffix}": str(sum(ratio >= GOOD for ratio in best.values())),
            f"worst{suffix}": f"{min(best.values()):.2f}",
            f"own{suffix}": f"{np.mean([*over_own(held).values()]):.2f}",
            **{f"{name}{suffix}": value for name, value in _in_force(rows, held).items()},
        }
    passes = [_passes(record / folder) for folder in ("vllm-0.33", "vllm-0.32")]
    assert len({str(one) for one in passes}) == 1, "both releases drafted alike"
    return {**named, **passes[0]}


def _in_force(
    rows: Sequence[Mapping[str, Any]], held: Mapping[Load, Mapping[str, Cell]]
) -> Figures:
    """Loads and passes whose steps were chosen by measured costs, nine of ten or more; others."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        chosen = steps_measured(row)
        best = best_fixed(held[row["context"], row["requests"]])
        if row["contender"] == MEASURED and chosen is not None and best is not None:
            shares[chosen >= 0.9].append(row["tokens_per_second"] / best[1])
    fed = shares[True]
    return {
        "fed": str(len(fed)),
        "fed_mean": f"{np.mean(fed):.2f}",
        "fed_worst": f"{min(fed):.2f}",
        "fed_near": str(sum(share >= GOOD for share in fed)),
        "unfed": str(len(shares[False])),
        "unfed_mean": f"{np.mean(shares[False]):.2f}",
    }


def _passes(record: Path) -> Figures:
    """What tests/gpu/drafter_passes.py has seen.

    Raises:
        AssertionError: if a step of decodes had no graph.
    """
    seen = read_record(record / "passes.json.gz")
    assert all(one["graph"] for one in seen)
    return {
        "passes": str(len(seen)),
        "cut": str(sum(one["tokens"] % one["requests"] > 0 for one in seen)),
        "drafts": str(sum(one["requests"] for one in seen)),
        "equal": str(sum(one["equal"] for one in seen)),
    }


def table_graphs(record: Path) -> Figures:
    """Two runs of benchmarks.drafts.servers: with vLLM's own choice of CUDA graphs, and mended."""
    runs = {
        name: [row for row in read_rows(record / name) if not row.get(LEFT_OUT)]
        for name in ("as-is", "mended")
    }
    named = {}
    for run, suffix in (("as-is", ""), ("mended", "_mended")):
        named[f"loads{suffix}"] = str(len(runs[run]))
        named[f"stalled{suffix}"] = str(sum(map(stalls, runs[run])))
    for length, word in ((2, "two"), (3, "three"), (4, "four")):
        for batch_size in (16, 64):
            speeds = [
                np.median(
                    [
                        row["tokens_per_second"]
                        for row in runs[name]
                        if (row["policy"], row["batch_size"]) == (f"fixed:{length}", batch_size)
                    ]
                )
                for name in runs
            ]
            named[f"{word}_{batch_size}"] = f"{speeds[0] / speeds[1]:.2f}"
    return named


def shared_states(record: Path) -> Figures:
    """A run of benchmarks.answers.shared_states: states of each layer's own, and one set for all.

    Raises:
        ValueError: if layers shared states that were to be apart, or the reverse, or a step was no
            FULL graph: what differs would not be the sharing alone.
    """
    rows = json.loads((record / "shared-states.json").read_text(encoding="utf-8"))["rows"]
    layers = rows[0]["apart"]["layers_apart"]
    named = {"shapes": str(len(rows)), "layers": str(layers)}
    ratios: dict[str, list[float]] = {"step": [], "layer": []}
    for row in rows:
        apart, shared = row["apart"], row["shared"]
        sets = (apart["layers_apart"], shared["layers_apart"])
        if layers < 2 or sets != (layers, 1):
            raise ValueError(f"{record}: {sets} sets of states for {layers} layers")
        if {apart["execution"], shared["execution"]} != {"full"}:
            raise ValueError(f"{record}: a step was no FULL graph")
        shape = f"{row['batch_size']}_{row['positions']}"
        for part, found in ratios.items():
            before, after = apart[f"{part}_us"], shared[f"{part}_us"]
            found.append(after / before)
            named[f"{part}_apart_{shape}"] = _microseconds(before)
            named[f"{part}_shared_{shape}"] = _microseconds(after)
            named[f"{part}_ratio_{shape}"] = f"{after / before:.3f}"
    for part, prefix in (("step", ""), ("layer", "layer_")):
        least = min(ratios[part])
        named[f"{prefix}least"], named[f"{prefix}most"] = f"{least:.3f}", f"{max(ratios[part]):.3f}"
        named[f"{prefix}understated"] = f"{100 * max(0.0, 1 - least):.1f}"
    return named


def _microseconds(value: float) -> str:
    """A step's to the microsecond, a layer's to a tenth."""
    return f"{value:.0f}" if value >= SHORT_US else f"{value:.1f}"
