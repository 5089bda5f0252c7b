"""Claim: what dense products miss is told by tokens, source and base, and by repeated products.

    python -m benchmarks.prediction.dense_products curves.json benchmarks/results \\
        [--page docs/validation.md]

Two tables of the public sets of dense products. *By tokens*: points within 10 % up to so many
tokens, by device, type and source, of t(x) over two bases: t(1), and the median of t up to 4
tokens, as calibrate takes it. Beside them the most that a prediction of t(x)/t(1) can reach that
does not fall with x: a point that takes less than t(1)/1.1 is out of its reach. *Repeated*: a
product that was timed twice on one device, by whom, and how many of the common points agree within
10 %. Own runs are the recorded kernels of H100.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.public_sets import usable_points
from benchmarks.prediction.score_public import Scored, score
from benchmarks.prediction.validation_page import put_between
from vllm_nfp.calibrate.curves import gemm_curves
from vllm_nfp.calibrate.fit_gemm import BASELINE_TOKENS
from vllm_nfp.calibrate.points import read_samples
from vllm_nfp.principle import target_of

Floats = NDArray[np.float64]
Set = Mapping[str, Any]
NEAR = 0.1
LIMITS = (64, 128, 256, 512)
KERNELS = "2026-11-24-h100-kernels"
OWN_DEVICE = "H100-SXM"
SOURCES = {"aiconfigurator": "aiconfigurator", "vidur": "vidur", "LLMServingSim": "LLMServingSim"}
"""Words of a set's source, and the name of it."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One timing of a gate-up and down product.

    Attributes:
        product: device, type, hidden size, and columns of one rank.
        tokens, seconds: ascending in tokens.
    """

    product: tuple[str, str, int, int]
    source: str
    tokens: Floats
    seconds: Floats


def source_of(one: Set) -> str:
    """Who published the set."""
    return next((name for word, name in SOURCES.items() if word in one["source"]), "other")


def ratios(tokens: Floats, seconds: Floats, median: bool) -> Floats:
    """t(x) over t(first x), or over the median of t up to 4 tokens."""
    base = np.median(seconds[tokens <= BASELINE_TOKENS]) if median else seconds[0]
    found: Floats = seconds / base
    return found


def by_tokens(sets: Sequence[Set]) -> str:
    """The first table, in Markdown."""
    groups: dict[tuple[str, ...], list[Scored]] = {}
    for one in sets:
        for found in score([one]):
            key = (one["hardware"], one["essentials"]["dtype"], source_of(one))
            groups.setdefault(key, []).append(found)
    ends = " / ".join(map(str, LIMITS))
    head = ("device", "type", "source", "sets", "points", f"over t(1), up to {ends} tokens",
            "can be reached", "over the median up to 4 tokens")  # fmt: skip
    rows = [(*key, *_shares(found)) for key, found in sorted(groups.items())]
    return _table(head, rows)


def _shares(found: Sequence[Scored]) -> tuple[str, ...]:
    first = [_within(found, limit, False) for limit in LIMITS]
    median = [_within(found, limit, True) for limit in LIMITS]
    measured = np.concatenate([one.measured[1:] for one in found])
    most = float(np.mean(measured >= 1.0 / (1.0 + NEAR)))
    return str(len(found)), str(len(measured)), _all(first), f"{most:.0%}", _all(median)


def _within(found: Sequence[Scored], limit: int, median: bool) -> float:
    errors = [
        (ratios(one.points, one.predicted, median) / ratios(one.points, one.measured, median))[
            1 : int(np.sum(one.points <= limit))
        ]
        for one in found
    ]
    return float(np.mean(np.abs(np.concatenate(errors) - 1.0) <= NEAR))


def _all(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in shares) + " %"


def repeated(timed: Sequence[Timed]) -> str:
    """The second table, in Markdown."""
    groups: dict[tuple[str, ...], list[tuple[Floats, Floats]]] = {}
    for one, other in itertools.combinations(timed, 2):
        if one.product == other.product:
            names = " and ".join(sorted((one.source, other.source)))
            found = _apart(one, other, False), _apart(one, other, True)
            groups.setdefault((*one.product[:2], names), []).append(found)
    head = ("device", "type", "timed by", "pairs", "common points", "agree over t(1)",
            "over the median up to 4 tokens")  # fmt: skip
    return _table(head, [(*key, *_agreement(found)) for key, found in sorted(groups.items())])


def _apart(one: Timed, other: Timed, median: bool) -> Floats:
    """By what share the ratios differ at common tokens, but the first."""
    tokens, here, there = np.intersect1d(one.tokens, other.tokens, return_indices=True)
    first = ratios(tokens, one.seconds[here], median)
    found: Floats = first[1:] / ratios(tokens, other.seconds[there], median)[1:] - 1.0
    return found


def _agreement(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[str, ...]:
    bases = [np.concatenate(each) for each in zip(*pairs, strict=True)]
    shares = [f"{float(np.mean(np.abs(errors) <= NEAR)):.0%}" for errors in bases]
    return str(len(pairs)), str(len(bases[0])), *shares


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return (
        "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
        .replace("%", " %")
        .replace("  %", " %")
    )


def public_timings(sets: Sequence[Set]) -> Iterator[Timed]:
    """Every set with two usable points or more."""
    for one in sets:
        if any(one["usable"]):
            tokens, times = usable_points(one, target_of(one["hardware"]).hardware)
            sizes = one["essentials"]
            product = (one["hardware"], sizes["dtype"], sizes["hidden"],
                       sizes["inter"] // sizes["tp"])  # fmt: skip
            yield Timed(product, source_of(one), tokens, times * 1e-6)


def own_timings(results: Path) -> Iterator[Timed]:
    """Dense blocks of the recorded kernels, without their activation."""
    hardware = target_of(OWN_DEVICE).hardware
    for path in sorted((results / KERNELS).glob("*/*.jsonl.gz")):
        for curve in gemm_curves(hardware, [read_samples(path)]):
            if len(curve.gemms) == 2:
                dtype = "fp8" if curve.fp8 else "bfloat16"
                product = (OWN_DEVICE, dtype, curve.gemms[0].inputs, curve.gemms[1].inputs)
                yield Timed(product, "own", curve.tokens, curve.seconds - curve.extra_seconds)


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None)
def main(curves: Path, results: Path, page: Path | None) -> None:
    """Print both tables for the public measurements in CURVES and own runs in RESULTS."""
    sets = json.loads(curves.read_text(encoding="utf-8"))["sets"]
    dense = [one for one in sets if one["kind"] == "dense_products"]
    tables = {
        "tokens": by_tokens(dense),
        "repeated": repeated([*public_timings(dense), *own_timings(results)]),
    }
    for mark, table in tables.items():
        click.echo(f"{table}\n")
        if page is not None:
            put_between(page, mark, "benchmarks.prediction.dense_products", table)


if __name__ == "__main__":
    main()
