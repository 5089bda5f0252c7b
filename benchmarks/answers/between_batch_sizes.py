"""Claim: between two batch sizes, steps of as many tokens choose better draft lengths.

    python -m benchmarks.answers.between_batch_sizes benchmarks/results

Each recorded batch size is left out in turn. Its curve is made of the next smaller and larger one,
at most a factor of four apart: by :func:`vllm_nfp.draft.between.between`, and as the slower of the
two. The draft length that each chooses is scored by the recorded curve. No draft costs time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.answers.replay_recorded import Server, all_servers
from vllm_nfp.draft import Demand, StepCurve, constant
from vllm_nfp.draft.between import between, slower
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.types import Module

ACCEPTANCES = (0.5, 0.7, 0.9)
FARTHEST = 4


def triples(server: Server) -> Iterator[tuple[StepCurve, StepCurve, StepCurve]]:
    """Curves of three neighbouring batch sizes, at each context."""
    for context in sorted({c for _, c in server.cells}):
        sizes = sorted(b for b, c in server.cells if c == context)
        curves = [_curve(server, batch_size, context) for batch_size in sizes]
        for low, middle, high in zip(curves, curves[1:], curves[2:], strict=False):
            if low is None or middle is None or high is None:
                continue
            if high.batch_size <= FARTHEST * low.batch_size:
                yield low, middle, high


def _curve(server: Server, batch_size: int, context: int) -> StepCurve | None:
    """None where a time is missing."""
    counts = server.positions[batch_size, context]
    seconds = server.seconds.get((Module.MODEL, batch_size, context), (math.nan,))
    if not np.isfinite(seconds).all():
        return None
    points = tuple((n, t / seconds[0]) for n, t in zip(counts, seconds, strict=True))
    return StepCurve(batch_size, context, seconds[0], points)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(results: Path) -> None:
    """Score both rules; see the module's text."""
    shares: dict[str, list[float]] = {"tokens": [], "slower": [], "its own curve": []}
    for server in all_servers(results):
        if server.composed:
            continue
        for low, own, high in triples(server):
            made = {
                "tokens": between(low, high, own.batch_size),
                "slower": slower(low, high),
                "its own curve": own,
            }
            for acceptance in ACCEPTANCES:
                demand = Demand(constant(acceptance))
                best = max(demand.gain(own, k) for k in demand.lengths(own))
                for rule, curve in made.items():
                    chosen = min(best_length(curve, demand), demand.longest(own))
                    shares[rule].append(demand.gain(own, chosen) / best)
    for rule, each in shares.items():
        found = np.array(each)
        click.echo(
            f"{rule:14} {len(found)} choices: within 2 % of the best {np.mean(found >= 0.98):.1%}, "
            f"mean {found.mean():.3f}, 5th percentile {np.quantile(found, 0.05):.3f}, "
            f"worst {found.min():.3f}"
        )


if __name__ == "__main__":
    main()
