"""Claim: a few pairs tell for all batch sizes how many experts a sequence's positions share.

    python -m benchmarks.answers.pairs_again \\
        benchmarks/results/2026-11-28-h200x4-at-defaults/moe-again

Gives a surface pairs drawn at random from the samples of a truth, one of each shape, and compares
its answers with that truth at 1024 tokens, at the batch sizes whose pairs read contexts of real
sequences. First come pairs that read none, of 4096 tokens and more, as a server has them at its
start. Then come pairs that read contexts: of 1, of 8 and of 16 sequences. The surface's figures for
what positions share were chosen with these samples in view: this is no test of them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.answers.steps_again import TRUTH, score, surface_for, unpacked
from benchmarks.prediction.to_profile import read_pairs
from vllm_nfp.draft.sources import from_profile
from vllm_nfp.surface import CostSurface
from vllm_nfp.types import PairResult

SAMPLES, CONTEXT = "truth-samples.jsonl.gz", 1024
BARE = ((2, 4096, 8), (4, 4096, 12), (8, 4096, 8), (16, 16384, 8))
ROUNDS = (
    ("no pair", ()),
    ("4 without contexts", BARE),
    ("3 of one sequence", ((1, 1024, 2), (1, 1024, 8), (1, 1024, 32))),
    ("2 of 8 sequences", ((8, 1024, 2), (8, 1024, 8))),
    ("2 of 16 sequences", ((16, 1024, 2), (16, 1024, 8))),
)
Key = tuple[int, int, int]


def samples_of(path: Path) -> Mapping[Key, Sequence[PairResult]]:
    """All pairs of a truth, by batch size, context and positions."""
    found: dict[Key, list[PairResult]] = defaultdict(list)
    for pair in read_pairs(path):
        shape = pair.many.shape
        found[shape.batch_size, shape.context, shape.positions].append(pair)
    return found


def answered(
    surface: CostSurface, samples: Mapping[Key, Sequence[PairResult]], draw: random.Random
) -> Iterator[str]:
    """The rounds' names, after each of which the surface has taken in its pairs."""
    for name, keys in ROUNDS:
        for key in keys:
            surface.add_pair(draw.choice(samples[key]), 0.0)
        surface.update(0.0)
        yield name


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hardware", default="H200", show_default=True, help="The run's GPU.")
@click.option("--draws", default=5, show_default=True, help="Of the pairs.")
def main(run: Path, hardware: str, draws: int) -> None:
    """Answer again; see the module's text."""
    truth, samples = unpacked(run / TRUTH), samples_of(run / SAMPLES)
    read = {
        batch_size for (batch_size, context, _), pairs in samples.items()
        if context == CONTEXT and all(pair.written for pair in pairs)
    }  # fmt: skip
    curves = {
        (curve.batch_size, curve.context): curve for curve in from_profile(truth).curves
        if curve.context == CONTEXT and curve.batch_size in read
    }  # fmt: skip
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for seed in range(draws):
        surface = surface_for(run, truth, hardware)
        for name in answered(surface, samples, random.Random(seed)):
            scored = score(surface, curves)
            rows[name].append((scored.median, scored.covered / len(scored.errors)))
    print("pairs added | median error | its range over draws | intervals hold")
    for name, found in rows.items():
        errors, held_of = np.array(found).T
        spread = f"{errors.min():.2%} to {errors.max():.2%}"
        held = f"{held_of.mean():.1%} of {len(scored.errors)}"
        print(f"{name} | {np.median(errors):.2%} | {spread} | {held}")


if __name__ == "__main__":
    main()
