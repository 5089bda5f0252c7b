"""Claim: predictions agree with measurements that others published.

    python -m benchmarks.prediction.score_public curves.json [--sets]

Reads a file of public measurements: sets of [x, time] points of one kernel on one device, whose
points that were timed out of L2 are marked. Compares t(x) over the set's first usable time with the
same ratio as predicted, and counts the points within 5, 10 and 25 %, by kind, device and type.
Routed experts are predicted with the rows that the benchmark dealt to them (``--routing`` names
another routing, as ``predict`` takes it: what not knowing them costs). Constants are those of the
split (``benchmarks.prediction.split_constants``): ``seen`` are the sets that they were fitted to,
see ``benchmarks.prediction.public_sets``; ``unseen`` all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.prediction.public_models import whole_seconds
from benchmarks.prediction.public_seconds import KINDS, expert_seconds
from benchmarks.prediction.public_sets import is_seen, usable_points
from benchmarks.prediction.split_constants import split_target
from vllm_nfp.principle import HardwareError
from vllm_nfp.principle.arguments import routing_skew
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.routing import Routing, skewed_shares

Floats = NDArray[np.float64]
TOLERANCES = (0.05, 0.1, 0.25)


@dataclass(frozen=True)
class Scored:
    """One set: ratios to its first usable point, measured and predicted."""

    name: str
    group: tuple[str, str, str]
    seen: bool
    points: Floats
    measured: Floats
    predicted: Floats

    @property
    def errors(self) -> Floats:
        """Of the predicted ratio, relative, one for each point but the first."""
        found: Floats = self.predicted[1:] / self.measured[1:] - 1.0
        return found


def score(sets: Iterable[Mapping[str, Any]], skew: float | None = None) -> list[Scored]:
    """Every set whose kind, type and device can be predicted, with the constants of the split.

    Args:
        skew: exponent of the experts' shares, where the rows that were dealt are not to be known.
    """
    return [found for one in sets if (found := _scored(one, skew)) is not None]


def _scored(one: Mapping[str, Any], skew: float | None) -> Scored | None:
    try:
        target = split_target(one["hardware"])
    except HardwareError:
        return None
    return scored_with(one, target, skew)


def scored_with(one: Mapping[str, Any], target: Target, skew: float | None = None) -> Scored | None:
    """One set with constants of the caller's; None if it cannot be predicted."""
    if one["kind"] not in (*KINDS, "whole_model"):
        return None
    points, times = usable_points(one, target.hardware)
    if len(points) < 2:
        return None
    seconds = _seconds(target, one, points, skew)
    if seconds is None:
        return None
    essentials = one["essentials"]
    detail = " ".join(str(essentials[k]) for k in ("dtype", "routing") if k in essentials)
    group = (one["kind"], one["hardware"], detail or str(essentials.get("kernel", "")))
    return Scored(one["id"], group, is_seen(one), points, times / times[0], seconds / seconds[0])


def _seconds(
    target: Target, one: Mapping[str, Any], points: Floats, skew: float | None
) -> Floats | None:
    if one["kind"] == "routed_experts" and skew is not None:
        sizes = one["essentials"]
        experts, chosen = sizes["experts"], sizes["topk"]
        routing = Routing(experts, chosen, skewed_shares(experts, chosen, skew))
        return expert_seconds(target, one, points, routing)
    if one["kind"] == "whole_model":
        return whole_seconds(target, one, points)
    return KINDS[one["kind"]](target, one, points)


def within(scored: Sequence[Scored]) -> list[float]:
    """Fractions of the points within each tolerance."""
    errors = np.abs(np.concatenate([one.errors for one in scored]))
    return [float(np.mean(errors <= tolerance)) for tolerance in TOLERANCES]


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
@click.option("--sets", "by_set", is_flag=True, help="A row for each set.")
@click.option("--routing", help="uniform, typical or an exponent, instead of what was dealt.")
def main(curves: Path, by_set: bool, routing: str | None) -> None:
    """Score the constants of the split on the public measurements in CURVES."""
    skew = None if routing is None else routing_skew(routing)
    scored = score(json.loads(curves.read_text(encoding="utf-8"))["sets"], skew)
    table = Table()
    for name in ("kind", "device", "what", "sets", "points", "5 %", "10 %", "25 %", "median"):
        table.add_column(name)
    groups: dict[tuple[str, str, str], list[Scored]] = {}
    for one in scored:
        seen = "seen" if one.seen else "unseen"
        kind, device, what = one.group
        key = (kind, device, one.name if by_set else f"{what} {seen}")
        groups.setdefault(key, []).append(one)
    for key, ones in sorted(groups.items()):
        errors = np.concatenate([one.errors for one in ones])
        table.add_row(
            *key,
            str(len(ones)),
            str(len(errors)),
            *(f"{share:.0%}" for share in within(ones)),
            f"{float(np.median(errors)):+.1%}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
