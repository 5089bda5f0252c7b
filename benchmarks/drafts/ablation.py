"""What each part of the live controller of draft lengths is worth, on recorded step times.

    python -m benchmarks.drafts.ablation benchmarks/results/2026-11-26-h100-draft-lengths --seeds 4

Simulated, without a GPU: steps last the recorded medians of a run of benchmarks.drafts.lengths,
with noise and slow spells, and drafts are thrown at a set acceptance
(:mod:`benchmarks.drafts.replay`). In each scenario (:mod:`benchmarks.drafts.scenarios`) the
controller runs whole, and without one of its parts, with the same seeds. What is printed is the
change of goodput in percent, trials included, with the standard error over runs and seeds: below
zero, the part earns something.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click

from benchmarks.drafts.scenarios import SCENARIOS, Recording, goodput, read_recording
from benchmarks.hosts import environment
from vllm_nfp.draft.live import cells, counted, credit, promise, proposals
from vllm_nfp.draft.live.forecast import Forecast, StepModel
from vllm_nfp.draft.live.trial import Basis, Trial

RUNS = ("dense", "moe", "eagle3-dense", "eagle3-moe")

Patch = tuple[Any, str, Any]

ONE_BAR = 0.95
"""What every forecast must promise without the part that tells them by what they rest on."""


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
    "credit": [
        (credit.Credit, "covers", lambda self, loss: True),
        (credit.Credit, "is_wide", True),
    ],
    "unlikely lengths with credit to spare": [(credit.Credit, "is_wide", False)],
    "blind looks": [(proposals.Proposals, "_may_look", lambda *_: False)],
    "hopeful looks": [(_COUNTED, "is_better_beyond", lambda *_: False)],
    "stale comparisons again": [(proposals, "STALE_SECONDS", math.inf)],
    "all compared anew": [(cells, "ANEW_AT_MOST", 1 << 60), (cells.Cell, "refresh", None)],
    "room for doubt by basis": [(promise, "LEAST_PROMISE", dict.fromkeys(Basis, ONE_BAR))],
    "learned cost of drafts": [(StepModel, "learn_draft_seconds", lambda *_: None)],
    "host's time without a graph": [(StepModel, "saw", lambda *_: None)],
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


_RUNS: dict[str, Recording] = {}
"""By name; set before the processes that use them are forked."""
Key = tuple[str | None, str, str, int]
"""(part left out, scenario, run, seed)."""
Values = dict[str, dict[str, list[float]]]
"""Goodput by part left out and scenario."""


def _one(key: Key) -> float:
    part, scenario, run, seed = key
    with without(part):
        return goodput(SCENARIOS[scenario], _RUNS[run], seed)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=4, show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)))
@click.option("--scenario", "only", multiple=True, type=click.Choice(list(SCENARIOS)))
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--out", type=click.Path(path_type=Path), help="Write every value as JSON.")
def main(
    folder: Path,
    seeds: int,
    parts: tuple[str, ...],
    only: tuple[str, ...],
    jobs: int,
    out: Path | None,
) -> None:
    """Print what each part is worth; see the module's text."""
    _RUNS.update({name: read_recording(folder / name) for name in RUNS})
    scenarios = only or tuple(SCENARIOS)
    each = list(itertools.product(scenarios, RUNS, range(seeds)))
    values: Values = {}
    about = environment.record()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for part in (None, *(parts or PARTS)):
            of = values[part or "whole"] = {scenario: [] for scenario in scenarios}
            found = pool.map(_one, [(part, *key) for key in each])
            for (scenario, *_), value in zip(each, found, strict=True):
                of[scenario].append(value)
            click.echo(_line(part or "whole", of, values["whole"]))
            if out is not None:
                _write(out, {"environment": about, "runs": RUNS, "seeds": seeds}, values)


def _write(out: Path, about: Mapping[str, Any], values: Values) -> None:
    rows = {name: {s: [round(v, 5) for v in of[s]] for s in of} for name, of in values.items()}
    out.write_text(json.dumps({**about, "goodput": rows}, indent=1), encoding="utf-8")


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
