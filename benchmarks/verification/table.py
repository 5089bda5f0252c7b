"""The table of :mod:`benchmarks.verification.compare`'s records, in Markdown."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

OWN, MEASURED, NONE = "vllm", "measured", "none"
STEPS_MEASURED = "vllm_nfp_verification_steps_total:measured"
STEPS_OWN = "vllm_nfp_verification_steps_total:vllm"
CONTEXTS = ("1k", "8k", "mixed")
GOOD = 0.98
"""Of the best fixed length."""
FEW = 8
"""Requests at which adaptive verification was to gain most."""

Load = tuple[str, int]
"""Context and requests."""


def read_record(path: Path) -> Any:
    """What a comparison has written, compressed or not."""
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of drafting under one load."""

    tokens_per_second: float
    """Of the last pass, since ways that learn have learned by then; of servers that were measured
    in turn the median of all passes."""
    n: int
    spread: float | None
    """Half the difference between the passes over their mean; None of one pass."""
    measured_steps: float | None
    """Share of the last pass's steps that were chosen by measured costs; None where none was."""


def cells(rows: Sequence[Mapping[str, Any]], in_turn: bool = False) -> dict[Load, dict[str, Cell]]:
    """By load (context, requests), then by contender; loads that were not held are left out."""
    held: dict[Load, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["whole"]:
            load = held.setdefault((row["context"], row["requests"]), {})
            load.setdefault(row["contender"], []).append(row)
    return {
        load: {contender: _cell(found, in_turn) for contender, found in by_contender.items()}
        for load, by_contender in held.items()
    }


def _cell(rows: Sequence[Mapping[str, Any]], in_turn: bool) -> Cell:
    speeds = [float(row["tokens_per_second"]) for row in rows]
    between = (max(speeds) - min(speeds)) / (max(speeds) + min(speeds))
    spread = between if len(speeds) > 1 else None
    said = median(speeds) if in_turn else speeds[-1]
    return Cell(said, len(speeds), spread, steps_measured(rows[-1]))


def steps_measured(row: Mapping[str, Any]) -> float | None:
    """Share of a pass's steps that measured costs chose; None where the counters stood still."""
    measured = row["counted"].get(STEPS_MEASURED, 0.0)
    steps = measured + row["counted"].get(STEPS_OWN, 0.0)
    return measured / steps if steps else None


def best_fixed(load: Mapping[str, Cell]) -> tuple[str, float] | None:
    """The best draft length, none among them, and its tokens/s; None if none was measured."""
    speeds = {
        name: cell.tokens_per_second
        for name, cell in load.items()
        if name == NONE or name.startswith("fixed-")
    }
    return max(speeds.items(), key=lambda item: item[1]) if speeds else None


def table(record: Mapping[str, Any]) -> str:
    """A row for each load."""
    found = cells(record["rows"], record.get("in_turn", False))
    lines = [
        f"{record['shape']}, {record['layers']} layers",
        "",
        "| context | requests | none | K=1 | K=3 | K=5 | K=7 | vLLM's tables | measured costs "
        "| measured / best fixed | vLLM's / best fixed | measured / vLLM's | fed steps | n "
        "| spread |",
        "| --- " * 15 + "|",
    ]
    for context in CONTEXTS:
        for load in sorted(load for load in found if load[0] == context):
            lines.append(_row(load, found[load]))
    return "\n".join([*lines, "", *summary(found), ""])


def _row(load: Load, held: Mapping[str, Cell]) -> str:
    names = (NONE, "fixed-1", "fixed-3", "fixed-5", "fixed-7", OWN, MEASURED)
    speeds = [f"{held[n].tokens_per_second:.0f}" if n in held else "" for n in names]
    best = best_fixed(held)
    shares = [_share(held, MEASURED, best), _share(held, OWN, best), _ratio(held)]
    fed = held[MEASURED].measured_steps if MEASURED in held else None
    ns = sorted({cell.n for cell in held.values()})
    spread = max((c.spread for c in held.values() if c.spread is not None), default=None)
    return "| " + " | ".join([
        load[0], str(load[1]), *speeds, *("" if s is None else f"{s:.3f}" for s in shares),
        "" if fed is None else f"{fed:.0%}",
        "-".join(map(str, (ns[0], ns[-1]) if len(ns) > 1 else ns)),
        "" if spread is None else f"{spread:.1%}",
    ]) + " |"  # fmt: skip


def _share(
    held: Mapping[str, Cell], contender: str, best: tuple[str, float] | None
) -> float | None:
    if contender not in held or best is None:
        return None
    return held[contender].tokens_per_second / best[1]


def _ratio(held: Mapping[str, Cell]) -> float | None:
    if MEASURED not in held or OWN not in held:
        return None
    return held[MEASURED].tokens_per_second / held[OWN].tokens_per_second


def over_best(found: Mapping[Load, Mapping[str, Cell]], contender: str) -> dict[Load, float]:
    """Speeds over those of the best fixed lengths, where both were measured."""
    shares = {load: _share(held, contender, best_fixed(held)) for load, held in found.items()}
    return {load: share for load, share in shares.items() if share is not None}


def over_own(found: Mapping[Load, Mapping[str, Cell]]) -> dict[Load, float]:
    """Speeds with measured costs over those with vLLM's own, where both were measured."""
    ratios = {load: _ratio(held) for load, held in found.items()}
    return {load: ratio for load, ratio in ratios.items() if ratio is not None}


def of_few(ratios: Mapping[Load, float]) -> list[float]:
    """Those of FEW requests and fewer."""
    return [ratio for (_, requests), ratio in ratios.items() if requests <= FEW]


def summary(found: Mapping[Load, Mapping[str, Cell]]) -> list[str]:
    """The goals: under the best fixed length, and over vLLM's tables."""
    lines = []
    for contender in (MEASURED, OWN):
        shares = over_best(found, contender)
        if shares:
            worst = min(shares, key=lambda load: shares[load])
            lines.append(
                f"{contender}: {sum(s >= GOOD for s in shares.values())} of {len(shares)} loads "
                f"within 2 % of the best fixed length; worst {shares[worst]:.3f} "
                f"({worst[0]}, {worst[1]} requests)"
            )
    ratios = over_own(found)
    if ratios:
        few = of_few(ratios)
        lines.append(
            f"measured / vllm: {min(ratios.values()):.3f} at the worst, "
            f"{sum(few) / max(1, len(few)):.3f} on average at {FEW} requests and fewer"
        )
    return lines
