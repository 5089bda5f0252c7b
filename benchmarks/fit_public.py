"""Claim: constants of A100, B200 and L40S follow from public kernels of some of the sets.

    python -m benchmarks.fit_public curves.json

Fits to the sets that ``score_public`` lists as seen, and prints the constants: the dense products'
row tiles on A100, on log t(T) / t(1); and the all-reduces, on log t of up to 256 MiB. The others
are left for the score.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.score_public import dense_seconds, is_seen
from vllm_nfp.principle import target_of
from vllm_nfp.principle.collective import LinkConstants, all_reduce_seconds
from vllm_nfp.principle.gemm import GemmConstants

MOST_BYTES = 256 << 20
SLOWDOWNS = tuple(np.arange(1.0, 1.41, 0.02))
FLOPS = tuple(np.arange(0.66, 0.9, 0.02))
STEPS = (1.3, 1.1, 1.03, 1.01)
"""Factors by which a link's constant is changed, one after the other, while the fit improves."""
Set = Mapping[str, Any]


def fit_ampere(sets: Sequence[Set]) -> GemmConstants:
    """The slowdown of wide tiles and the share of FLOP/s; tiles of 128 rows, padded in full."""
    target = target_of("A100-SXM4-80GB")
    curves = [(one["essentials"], np.array(one["points"]).T) for one in sets]

    def error(constants: GemmConstants) -> float:
        total = 0.0
        for sizes, (tokens, times) in curves:
            seconds = dense_seconds(target.hardware, constants, sizes, tokens)
            ratio = np.log(seconds / seconds[0] / (times / times[0]))
            total += float(np.mean(np.abs(ratio)))
        return total

    base = GemmConstants(row_tile=128, padding_paid=1.0, narrow_tokens=64)
    tried = (
        dataclasses.replace(base, wide_slowdown=float(slow), flops=float(flops))
        for slow, flops in itertools.product(SLOWDOWNS, FLOPS)
    )
    return min(tried, key=error)


def fit_link(device: str, sets: Sequence[Set], names: Sequence[str]) -> LinkConstants:
    """The named constants, each changed in turn until none improves the median error."""
    link = target_of(device).hardware.link_bytes_per_second

    def error(constants: LinkConstants) -> float:
        total = 0.0
        for one in sets:
            elements, times = np.array(one["points"]).T
            few = 2 * elements <= MOST_BYTES
            ranks = one["essentials"]["ranks"]
            seconds = all_reduce_seconds(constants, link, ranks, 2.0 * elements[few])
            total += float(np.mean(np.abs(np.log(seconds * 1e6 / times[few]))))
        return total

    shared = 3e-6 if "shared_seconds" in names else 0.0
    first = LinkConstants(collective_seconds=30e-6, shared_bandwidth=0.5, shared_seconds=shared)
    return _descend(first, names, error)


def _descend(
    constants: LinkConstants, names: Sequence[str], error: Callable[[LinkConstants], float]
) -> LinkConstants:
    for step in STEPS:
        better = True
        while better:
            better = False
            for name, factor in itertools.product(names, (step, 1 / step)):
                value = getattr(constants, name) * factor
                if "bandwidth" in name:
                    value = min(1.0, value)
                changed = dataclasses.replace(constants, **{name: value})
                if error(changed) < error(constants) - 1e-9:
                    constants, better = changed, True
    return constants


def _of(sets: Sequence[Set], kind: str, device: str) -> list[Set]:
    return [
        one for one in sets if one["kind"] == kind and one["hardware"] == device and is_seen(one)
    ]


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
def main(curves: Path) -> None:
    """Fit constants to the public measurements in CURVES."""
    sets = json.loads(curves.read_text(encoding="utf-8"))["sets"]
    click.echo(fit_ampere(_of(sets, "dense_products", "A100-SXM4-80GB")))
    linked = ("bandwidth", "collective_seconds", "custom_bandwidth", "custom_seconds",
              "meeting_seconds")  # fmt: skip
    for device, names in (
        ("A100-SXM4-80GB", linked),
        ("B200", linked),
        ("L40S", ("custom_bandwidth", "custom_seconds", "shared_bandwidth", "shared_seconds",
                  "bandwidth", "collective_seconds")),
    ):  # fmt: skip
        click.echo(f"{device}: {fit_link(device, _of(sets, 'all_reduce', device), names)}")


if __name__ == "__main__":
    main()
