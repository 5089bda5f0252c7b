"""Claim: a predicted curve comes with the error that its module had against measurements.

    python -m benchmarks.prediction.curve_errors curves.json > vllm_nfp/principle/curve_errors.toml

Takes the sets of ``benchmarks.prediction.score_public``. The error of t(x) / t(1) is its absolute
relative error that 80 % of the points do not exceed, by the generation of the device, the type of
the weights and, of feed-forward blocks, the number of tokens. Sets that constants were fitted to
are left out where there are others. Routed experts are predicted with uniform routing, as
``predict`` does: the error contains what is not known of a router.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.prediction.score_public import Scored, score
from vllm_nfp.principle import hardware_by_name

QUANTILE = 0.8
MODULES: Mapping[str, str] = {
    "dense_products": "dense_ffn",
    "routed_experts": "moe_ffn",
    "attention_vs_batch": "attention",
    "all_reduce": "communication",
}
UP_TO = (16, 128, 8192)
"""Tokens of a step, by which errors are told apart."""
FEWEST = 20
"""Points that an error is taken from at least."""


def key_of(one: Scored) -> tuple[str, str, str]:
    """Module, generation of the device, and type of the weights: bf16, fp8 or any."""
    kind, device, what = one.group
    first = what.split()[0] if what else ""
    stored = "fp8" if first.startswith("fp8") else "bf16"
    typed = kind in ("dense_products", "routed_experts")
    return MODULES[kind], hardware_by_name(device).generation, stored if typed else "any"


def errors_of(ones: Sequence[Scored]) -> list[tuple[int, float, int]]:
    """The largest number of tokens, the error up to there, and the number of points; ascending."""
    used = [one for one in ones if not one.seen] or list(ones)
    errors = np.abs(np.concatenate([one.errors for one in used]))
    tokens = np.concatenate([one.points[1:] for one in used])
    by_tokens = used[0].group[0] in ("dense_products", "routed_experts")
    found, least = [], 0
    for most in UP_TO if by_tokens else UP_TO[-1:]:
        inside = (tokens > least) & (tokens <= most) if by_tokens else np.ones_like(tokens, bool)
        if inside.sum() >= FEWEST:
            found.append((most, float(np.quantile(errors[inside], QUANTILE)), int(inside.sum())))
        least = most
    return found


def _four_bits(one: Mapping[str, Any]) -> bool:
    return str(one["essentials"].get("dtype", "")).startswith("w4")


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
def main(curves: Path) -> None:
    """Print the errors by module, generation and type as TOML."""
    groups: dict[tuple[str, str, str], list[Scored]] = defaultdict(list)
    sets = json.loads(curves.read_text(encoding="utf-8"))["sets"]
    told = [one for one in sets if one["kind"] in MODULES and not _four_bits(one)]
    for one in score(told, skew=0.0):
        groups[key_of(one)].append(one)
    click.echo(
        "# Relative error of a predicted t(N) / t(1) that 80 % of public points do not exceed.\n"
        "# Written by benchmarks/prediction/curve_errors.py; docs/validation.md has the scores."
    )
    for key, ones in sorted(groups.items()):
        module, generation, stored = key
        for most, error, points in errors_of(ones):
            click.echo(
                f'\n[[error]]\nmodule = "{module}"\ngeneration = "{generation}"\n'
                f'stored = "{stored}"\nup_to = {most}\nerror = {error:.3f}\npoints = {points}'
            )


if __name__ == "__main__":
    main()
