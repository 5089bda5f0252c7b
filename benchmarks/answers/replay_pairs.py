"""Whether the surface sees a change of the machine in recorded pairs, where there was none.

    python -m benchmarks.answers.replay_pairs benchmarks/results/2026-11-24-h100 --half 1

In order: pairs as they were run, all at once or with an update now and then, and shuffled. Served:
the surface chooses a shape and gets that shape's next recorded pair; shapes in doubt run again, as
in a server. The very first pair of each shape comes first, then every other one (the half), in
recorded or in random order; when they are used up, any of them but the first.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.answers.replay_methods import DECISIONS
from benchmarks.prediction.to_profile import UPDATE_SECONDS, model_on_device, read_pairs
from vllm_nfp.principle import Serving
from vllm_nfp.surface import RECORDED, Candidate, Concern, CostSurface, predicted_prior
from vllm_nfp.surface.prior import Prior
from vllm_nfp.types import PairResult, Shape

SERVED_PAIRS, SECONDS_APART = 400, 3.0
AT_A_TIME = 4
"""Cells that have traffic between two choices, and pairs that are chosen."""


def recorded(folder: Path, name: str) -> tuple[Prior, list[PairResult]]:
    """The prior of a recorded server, and its pairs in the order in which they were run."""
    table = json.loads((folder / f"{name}-table.json").read_text(encoding="utf-8"))
    prior = predicted_prior(*model_on_device(table), Serving(), table["probe"]["max_positions"])
    return prior, list(read_pairs(folder / f"{name}-pairs.jsonl.gz"))


def jumps_in_order(prior: Prior, pairs: Sequence[PairResult], every: float | None) -> int:
    """Jumps with an update after so many seconds of probing; None: never."""
    surface = CostSurface(prior, RECORDED, shapes_kept=len(pairs))
    now = updated = 0.0
    for pair in pairs:
        now += pair.cost_seconds
        surface.add_pair(pair, now)
        if every is not None and now - updated > every:
            surface.update(now)
            updated = now
    return surface.jumps


def jumps_served(
    prior: Prior, pairs: Sequence[PairResult], half: int, seed: int, most: int = SERVED_PAIRS
) -> int:
    """Jumps of a surface that chooses; seed 0: each shape's pairs in the recorded order."""
    draw = random.Random(seed)
    of: dict[Shape, list[PairResult]] = defaultdict(list)
    for pair in pairs:
        of[pair.many.shape].append(pair)
    left: dict[Shape, list[PairResult]] = {}
    for shape, mine in of.items():
        of[shape] = mine[1 + half :: 2]
        rest = draw.sample(of[shape], len(of[shape])) if seed else of[shape]
        left[shape] = [mine[0], *rest]
    surface, now, run = CostSurface(prior, RECORDED), 0.0, 0
    cells = sorted({(shape.batch_size, shape.context) for shape in of})
    while run < most:
        surface.update(now)
        busy = draw.sample(cells, min(AT_A_TIME, len(cells)))
        candidates = [Candidate(s, 0.05) for s in of if (s.batch_size, s.context) in busy]
        concerns = [Concern(*cell, 1.0 / len(busy)) for cell in busy]
        for shape in surface.choose(candidates, concerns, DECISIONS, AT_A_TIME):
            now, run = now + SECONDS_APART, run + 1
            pair = left[shape].pop(0) if left[shape] else draw.choice(of[shape])
            surface.add_pair(pair, now)
    return surface.jumps


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--half", type=click.IntRange(0, 1), default=1, help="1: the half for scores.")
@click.option("--seeds", default=20, help="Served replays, and shuffles in order.")
def main(folder: Path, half: int, seeds: int) -> None:
    """Print the jumps of each replay; any is a false alarm."""
    for name in ("dense", "moe"):
        prior, pairs = recorded(folder, name)
        mine = pairs[half::2]
        ordered = [jumps_in_order(prior, mine, every) for every in (None, UPDATE_SECONDS, 0.2)]
        shuffled = [
            jumps_in_order(prior, random.Random(seed).sample(mine, len(mine)), UPDATE_SECONDS)
            for seed in range(seeds)
        ]
        served = [jumps_served(prior, pairs, half, seed) for seed in range(seeds)]
        click.echo(f"{name}: in order {ordered}, shuffled {shuffled}, served {served}")


if __name__ == "__main__":
    main()
