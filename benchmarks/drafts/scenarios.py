"""What a server meets in the ablation of the live controller: loads, acceptance, hosts, curves.

Each scenario is a path over loads whose step times were recorded by benchmarks.drafts.lengths. What
was not recorded is said at the scenario.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.drafts.plan import (
    LENGTHS,
    LEVELS,
    LONGEST,
    PROBED_CONTEXTS,
    WIDEST_GRAPH,
    step_times,
)
from benchmarks.drafts.replay import Host, Server, recorded, with_no_drafts
from benchmarks.drafts.times import Cell, length_seconds, read_rows
from benchmarks.serving import shapes
from vllm_nfp import predict
from vllm_nfp.draft import StepCurve, expected_tokens
from vllm_nfp.draft.inputs import source_of

STEPS = 1500
VISIT = 150
"""Steps of a short stay at a load."""
LEVEL_STEPS = 40
"""Steps of a level of the ramp: 0.25 s, as in benchmarks.drafts.lengths."""
WALK_STAYS, WALK_STEPS = 250, (4, 40)
"""Stays of a load that wanders, and the fewest and most steps of one."""
MOVES, MOVE_STEPS, MOVE_BY = 1500, (2, 6), 3
"""Moves of a load whose batch size changes by up to so many sequences, every few steps."""
TILE_TOKENS, TILE_SHARE = 64, 0.5
"""A GPU whose dense products are compute-bound beyond one tile of so many tokens: each further tile
adds this fraction of a step of one tile. H100s with recorded runs are far from it below 512
tokens; devices with less compute for their bandwidth are not (docs/devices.md)."""
DRAFT_SHARE = 0.02
"""Of a drafted token, over a step of one tile."""
TILED_SIZES = (6, 16, 33, 48, 100)
LONG_STEPS = 5000
"""Steps after which everything has been compared anew, twice."""
THROTTLED = 2.0
"""How much more the work of further positions takes at half the clock of the GPU's cores. Reading
weights and cache, which a step without drafts mostly does, takes as long as before."""
SLOW = 8.0
"""A model whose steps take so many times as long as the recorded ones: 50 ms and more. Minutes then
pass before everything is compared anew."""
QUIET = Host()
NOISY = Host(noise=0.08, slow_steps=25, slow_share=0.35, slow_factor=1.6)

Times = Mapping[int, float]
"""Seconds of a step by draft length."""


class Curves(StrEnum):
    """What the probe tells the controller."""

    PROBED = "probed"
    PREDICTED = "predicted"
    """Nothing was measured yet."""
    NONE = "none"
    """The probe is passive, and the model is not predicted."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run."""

    points: Mapping[Cell, Times]
    levels: Mapping[Cell, Times]
    """Of the ramp: batch sizes an octave apart, at context 1024."""
    curves: Mapping[Curves, Sequence[StepCurve]]


@dataclass(frozen=True, slots=True)
class Stay:
    """Steps at one load and acceptance."""

    cell: Cell
    acceptance: float
    steps: int
    growth: float = 1.0
    """Factor on what a length takes beyond a step without drafts."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a server meets."""

    path: Callable[[Sequence[Cell], random.Random], list[Stay]]
    host: Host = QUIET
    curves: Curves = Curves.PROBED
    on_levels: bool = False
    """The path is over the levels of the ramp, not over the points."""
    tiled: bool = False
    """Steps take what they take in tiles, at :data:`TILED_SIZES`."""
    slower: float = 1.0
    """Factor on the time of every step: a larger model."""
    between: bool = False
    """It is over all batch sizes between the levels, whose times are interpolated."""


def _steady(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    return [Stay(cell, 0.7, STEPS) for cell in at]


def _changing(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    chances = (0.9, 0.4, 0.8, 0.2, 0.9)
    return [Stay(cell, a, STEPS) for cell in at[1:4:2] for a in chances]


def _loads(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    short = [cell for cell in at if cell[0] == at[0][0]]
    path = [*short, *short[::-1]] * 4
    return [Stay(cell, 0.7, VISIT) for cell in path]


def _alternating(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    return [Stay(cell, 0.7, 8) for cell in [at[0], at[3]] * 300]


def _never(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    return [Stay(cell, 0.05, STEPS) for cell in at[:4]]


def _ramp(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    return [Stay(cell, 0.7, LEVEL_STEPS) for cell in [*at, *at[::-1]] * 4]


def _walk(at: Sequence[Cell], rng: random.Random) -> list[Stay]:
    place, stays = rng.randrange(len(at)), []
    for _ in range(WALK_STAYS):
        stays.append(Stay(at[place], 0.7, rng.randint(*WALK_STEPS)))
        place = min(len(at) - 1, max(0, place + rng.choice((-1, 1))))
    return stays


def _moving(at: Sequence[Cell], rng: random.Random) -> list[Stay]:
    context, largest = at[-1]
    batch_size, stays = largest // 4, []
    for _ in range(MOVES):
        stays.append(Stay((context, batch_size), 0.7, rng.randint(*MOVE_STEPS)))
        batch_size = min(largest, max(1, batch_size + rng.randint(-MOVE_BY, MOVE_BY)))
    return stays


def _tiled(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    return [Stay(cell, a, STEPS) for cell in at for a in (0.7, 0.3, 0.9)]


def _throttled(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    growths = (1.0, THROTTLED, 1.0)
    return [Stay(cell, 0.7, LONG_STEPS, g) for cell in at[3:6:2] for g in growths]


def _long(at: Sequence[Cell], _: random.Random) -> list[Stay]:
    return [Stay(cell, 0.7, LONG_STEPS) for cell in at[:6:2]]


SCENARIOS: Mapping[str, Scenario] = {
    "steady": Scenario(_steady),
    "acceptance": Scenario(_changing),
    "load": Scenario(_loads),
    "alternating": Scenario(_alternating),
    "never": Scenario(_never),
    "noisy": Scenario(_steady, NOISY),
    "ramp": Scenario(_ramp, on_levels=True),
    "walk": Scenario(_walk, on_levels=True),
    "moving": Scenario(_moving, on_levels=True, between=True),
    "throttled": Scenario(_throttled),
    "throttled, slow": Scenario(_throttled, slower=SLOW),
    "tiles": Scenario(_tiled, curves=Curves.NONE, tiled=True),
    "tiles, noisy": Scenario(_tiled, NOISY, Curves.NONE, tiled=True),
    "noisy for long": Scenario(_long, NOISY),
    "no curves": Scenario(_steady, curves=Curves.NONE),
    "predicted": Scenario(_steady, curves=Curves.PREDICTED),
    "predicted, noisy": Scenario(_steady, NOISY, Curves.PREDICTED),
}
"""A server that first sees its loads (steady); whose text changes (acceptance); whose load changes
every second (load, ramp) or every few steps (walk, alternating, moving); whose drafts never pay
(never); on a host that others use as well (noisy, and for long); whose GPU is throttled for a
minute (throttled), or for minutes with a model of slow steps, or computes in tiles (tiles); whose
probe has measured nothing (predicted) or never will (no curves)."""


def read_recording(folder: Path) -> Recording:
    """A folder that benchmarks.drafts.lengths has written."""
    points = recorded(read_rows(folder / "points.jsonl"))
    levels = with_no_drafts(length_seconds(read_rows(folder / "ramps.jsonl")), points)
    about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as model:
        predicted = predict(
            shapes.write_model(Path(model), about["shape"], about["layers"]),
            hardware="H100-SXM",
            batch_sizes=LEVELS,
            contexts=PROBED_CONTEXTS,
            max_positions=LONGEST + 1,
        )
    return Recording(points, levels, {
        Curves.PROBED: source_of(step_times(folder / "spec")).curves,
        Curves.PREDICTED: source_of(predicted).curves,
        Curves.NONE: (),
    })  # fmt: skip


def goodput(scenario: Scenario, run: Recording, seed: int) -> float:
    """Goodput over that of the best length of each stay; stays weigh by their steps."""
    server = Server(run.curves[scenario.curves], 0.7, scenario.host, seed)
    times = run.levels if scenario.on_levels else run.points
    if scenario.between:
        times = between(times)
    if scenario.tiled:
        times = tiled(times)
    times = {cell: {k: scenario.slower * t for k, t in of.items()} for cell, of in times.items()}
    stays = scenario.path(list(times), random.Random(seed))
    shares, weights = [], []
    # Stays at one load and acceptance are judged together.
    for _, group in itertools.groupby(stays, lambda one: (one.cell, one.acceptance, one.growth)):
        together = list(group)
        shares.append(_share(server, together, _grown(times[together[0].cell], together[0].growth)))
        weights.append(sum(stay.steps for stay in together))
    return math.fsum(s * w for s, w in zip(shares, weights, strict=True)) / sum(weights)


def between(levels: Mapping[Cell, Times]) -> dict[Cell, Times]:
    """Times at every batch size between levels of one context.

    The logarithm of a step's time is linear in that of the batch size. A step with a CUDA graph
    whose next level has none grows like the longest draft that has one there. A step without a
    graph waits for the host, and takes what it takes at the next level.
    """
    found: dict[Cell, Times] = {}
    for (context, low), (_, high) in itertools.pairwise(levels):
        one, other = levels[context, low], levels[context, high]
        for batch_size in range(low, high + 1):
            part = math.log(batch_size / low) / math.log(high / low)
            found[context, batch_size] = {
                k: other[k] if not _has_graph(batch_size, k)
                else one[k] * (other[like] / one[like]) ** part
                for k in LENGTHS
                for like in [max(j for j in LENGTHS if j <= k and _has_graph(high, j))]
            }  # fmt: skip
    return found


def tiled(points: Mapping[Cell, Times]) -> dict[Cell, Times]:
    """Times in tiles, from the recorded step of one sequence without drafts."""
    (context, _), first = next(iter(points.items()))
    return {
        (context, b): {
            k: first[0] * (1.0 + TILE_SHARE * (math.ceil(b * (k + 1) / TILE_TOKENS) - 1))
            + k * DRAFT_SHARE * first[0]
            for k in LENGTHS
        }
        for b in TILED_SIZES
    }


def _has_graph(batch_size: int, length: int) -> bool:
    return batch_size * (length + 1) <= WIDEST_GRAPH


def _share(server: Server, stays: Sequence[Stay], times: Times) -> float:
    """Goodput of stays at one load over that of its best length."""
    server.acceptance = acceptance = stays[0].acceptance
    lengths = [server.step(stay.cell, times) for stay in stays for _ in range(stay.steps)]
    tokens = math.fsum(expected_tokens(k, acceptance) for k in lengths)
    best = max(expected_tokens(k, acceptance) / times[k] for k in LENGTHS)
    return tokens / math.fsum(times[k] for k in lengths) / best


def _grown(times: Times, growth: float) -> Times:
    return {k: times[0] + growth * (t - times[0]) for k, t in times.items()}
