"""What each part of the live controller of draft lengths is worth, on recorded step times.

    python -m benchmarks.draft_ablation benchmarks/results/2026-11-26-h100-draft-lengths --seeds 4

Simulated, without a GPU: steps last the recorded medians of a run of benchmarks.draft_lengths, with
noise and slow spells, and drafts are thrown at a set acceptance (:mod:`benchmarks.draft_replay`).
In each scenario the controller runs whole, and without one of its parts, with the same seeds. What
is printed is the change of goodput in percent, trials included, with the standard error over runs
and seeds: below zero, the part earns something.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click

from benchmarks import environment
from benchmarks.draft_plan import LENGTHS, step_times
from benchmarks.draft_replay import Host, Server, recorded
from benchmarks.draft_times import Cell, read_rows
from vllm_nfp.draft import StepCurve, expected_tokens
from vllm_nfp.draft.inputs import source_of
from vllm_nfp.draft.live import cells, controller, counted, credit, knowledge, proposals, record
from vllm_nfp.draft.live.forecast import Forecast, StepModel
from vllm_nfp.draft.live.trial import Basis, Trial

RUNS = ("dense", "moe", "eagle3-dense", "eagle3-moe")
STEPS = 1500
VISIT = 150
"""Steps of a short stay at a load."""
QUIET = Host()
NOISY = Host(noise=0.08, slow_steps=25, slow_share=0.35, slow_factor=1.6)

Times = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Stay:
    """Steps at one load and acceptance."""

    cell: Cell
    acceptance: float
    steps: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a server meets: a path over the cells of a run."""

    path: Callable[[Sequence[Cell]], list[Stay]]
    host: Host = QUIET


def _steady(at: Sequence[Cell], acceptance: float = 0.7) -> list[Stay]:
    return [Stay(cell, acceptance, STEPS) for cell in at]


def _changing(at: Sequence[Cell]) -> list[Stay]:
    chances = (0.9, 0.4, 0.8, 0.2, 0.9)
    return [Stay(cell, a, STEPS) for cell in at[1:4:2] for a in chances]


def _loads(at: Sequence[Cell]) -> list[Stay]:
    short = [cell for cell in at if cell[0] == at[0][0]]
    path = [*short, *short[::-1]] * 4
    return [Stay(cell, 0.7, VISIT) for cell in path]


def _alternating(at: Sequence[Cell]) -> list[Stay]:
    return [Stay(cell, 0.7, 8) for cell in [at[0], at[3]] * 300]


def _never(at: Sequence[Cell]) -> list[Stay]:
    return [Stay(cell, 0.05, STEPS) for cell in at[:4]]


SCENARIOS: Mapping[str, Scenario] = {
    "steady": Scenario(_steady),
    "acceptance": Scenario(_changing),
    "load": Scenario(_loads),
    "alternating": Scenario(_alternating),
    "never": Scenario(_never),
    "noisy": Scenario(_steady, NOISY),
}

Patch = tuple[Any, str, Any]


def _unpaired(trial: Trial) -> list[float]:
    of = {length: [s for k, times in trial._turns if k == length for s in times]
          for length in (trial.length, trial.reference)}  # fmt: skip
    return [statistics.median(of[trial.length]) / statistics.median(of[trial.reference])]


def _pinned(original: Callable[[Any], Any]) -> property:
    """Acceptance as it was first counted."""

    def first(self: Any) -> Any:
        found = original(self)
        if found is not None and _FIRST.get(id(self)) is None:
            _FIRST[id(self)] = found
        return _FIRST.get(id(self))

    return property(first)


_FIRST: dict[int, Any] = {}
_COUNTED = counted.CountedAcceptance
PARTS: Mapping[str, Sequence[Patch]] = {
    "counted acceptance": [
        (_COUNTED, "acceptance", _pinned(_COUNTED.acceptance.fget)),  # type: ignore[attr-defined]
        (_COUNTED, "changed", False),
    ],
    "change of acceptance": [(_COUNTED, "changed", False)],
    "paired turns": [(Trial, "_ratios", _unpaired), (Trial, "error", 0.0)],
    "early end of clear trials": [(Trial, "is_clear", False)],
    "longer trials where steps scatter": [(Trial, "_is_certain", True)],
    "cap on what a length can give": [(proposals, "_most", lambda *_: math.inf)],
    "forecast": [(StepModel, "forecast", lambda *_: Forecast(None, Basis.FAR))],
    "record of forecast errors": [(record.Record, "spread", lambda self, of: record.SPREAD[of])],
    "credit": [
        (credit.Credit, "covers", lambda self, loss: True),
        (credit.Credit, "is_wide", True),
    ],
    "unlikely lengths with credit to spare": [(credit.Credit, "is_wide", False)],
    "neighbour's choice": [(cells, "NEIGHBOUR_OCTAVES", -1.0)],
    "neighbour's comparison": [
        (knowledge.Knowledge, "compared_near", lambda self, key, of: iter(()))
    ],
    "blind looks": [(proposals.Proposals, "_may_look", lambda *_: False)],
    "hopeful looks": [(_COUNTED, "is_better_beyond", lambda *_: False)],
    "stale comparisons again": [(proposals, "STALE_SECONDS", math.inf)],
    "all compared anew": [(cells, "ANEW_AT_MOST", 1 << 60), (cells.Cell, "refresh", None)],
    "settled steps before a trial": [(controller, "SETTLED_STEPS", 1)],
}


def _refresh(cell: cells.Cell, current: int) -> None:
    if current not in cell.relative:
        cell.begin_anew(current)


@contextmanager
def without(part: str | None) -> Iterator[None]:
    """The controller without one of its parts; None: the whole."""
    with ExitStack() as stack:
        _FIRST.clear()
        for owner, name, value in PARTS[part] if part else ():
            new = _refresh if (owner, name) == (cells.Cell, "refresh") else value
            if isinstance(owner, type) and isinstance(owner.__dict__[name], property):
                new = value if isinstance(value, property) else property(_always(value))
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda self: value


def goodput(
    scenario: Scenario,
    run: Mapping[Cell, Times],
    curves: Sequence[StepCurve],
    seed: int,
) -> float:
    """Goodput over that of the best length of each stay; stays weigh by their steps."""
    server = Server(curves, 0.7, scenario.host, seed)
    shares, weights = [], []
    stays = scenario.path(list(run))
    # Stays at one load and acceptance are judged together.
    for _, group in itertools.groupby(stays, key=lambda stay: (stay.cell, stay.acceptance)):
        tokens = taken = 0.0
        steps = 0
        for stay in group:
            server.acceptance = stay.acceptance
            times = run[stay.cell]
            for _ in range(stay.steps):
                length = server.step(stay.cell, times)
                tokens += expected_tokens(length, stay.acceptance)
                taken += times[length]
            steps += stay.steps
        best = max(expected_tokens(k, stay.acceptance) / times[k] for k in LENGTHS)
        shares.append(tokens / taken / best)
        weights.append(steps)
    return math.fsum(s * w for s, w in zip(shares, weights, strict=True)) / sum(weights)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=4, show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)))
@click.option("--out", type=click.Path(path_type=Path), help="Write every value as JSON.")
def main(folder: Path, seeds: int, parts: tuple[str, ...], out: Path | None) -> None:
    """Print what each part is worth; see the module's text."""
    runs = {}
    for name in RUNS:
        curves = source_of(step_times(folder / name / "spec")).curves
        runs[name] = recorded(read_rows(folder / name / "points.jsonl")), curves
    keys = list(itertools.product(SCENARIOS, runs, range(seeds)))
    values: dict[str, dict[str, list[float]]] = {}
    for part in (None, *(parts or PARTS)):
        with without(part):
            found = [goodput(SCENARIOS[s], *runs[r], seed) for s, r, seed in keys]
        of = values[part or "whole"] = {}
        for (scenario, *_), value in zip(keys, found, strict=True):
            of.setdefault(scenario, []).append(value)
        click.echo(_line(part or "whole", of, values["whole"]))
    if out is not None:
        rows = {name: {s: [round(v, 5) for v in of[s]] for s in of} for name, of in values.items()}
        whole_record = {
            "environment": environment.record(),
            "runs": RUNS,
            "seeds": seeds,
            "goodput": rows,
        }
        out.write_text(json.dumps(whole_record, indent=1), encoding="utf-8")


def _line(name: str, of: Mapping[str, list[float]], whole: Mapping[str, list[float]]) -> str:
    cells_ = []
    for scenario, values in of.items():
        if of is whole:
            cells_.append(f"{scenario} {statistics.mean(values):.4f}")
            continue
        change = [100.0 * (v / w - 1.0) for v, w in zip(values, whole[scenario], strict=True)]
        error = statistics.stdev(change) / math.sqrt(len(change)) if len(change) > 1 else 0.0
        cells_.append(f"{scenario} {statistics.mean(change):+.2f}({error:.2f})")
    return f"{name:38s} " + "  ".join(cells_)


if __name__ == "__main__":
    main()
