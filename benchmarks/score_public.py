"""Claim: predictions agree with measurements that others published.

    python -m benchmarks.score_public curves.json [--sets]

Reads a file of public measurements: sets of [x, time] points of one kernel on one device, whose
points that were timed out of L2 are marked. Compares t(x) over the set's first usable time with
the same ratio as predicted, and counts the points within 5, 10 and 25 %, by kind, device and type.
Routed experts under a power-law router are predicted with ``typical`` routing.
``seen`` are the sets that constants were fitted to, see :data:`SEEN`; ``unseen`` all others.
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

from vllm_nfp.principle import HardwareError, target_of
from vllm_nfp.principle.attention import (
    attention_terms,
    backend_by_name,
    fixed_seconds,
)
from vllm_nfp.principle.collective import all_reduce_seconds
from vllm_nfp.principle.expert_tiles import default_config
from vllm_nfp.principle.experts import ROUTED_KERNELS, expert_terms
from vllm_nfp.principle.gemm import GemmConstants, gemm_seconds
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.routing import TYPICAL_SKEW, Routing, skewed_shares
from vllm_nfp.principle.shape import AttentionHeads, Gemm, Quantization
from vllm_nfp.principle.terms import sum_terms

Floats = NDArray[np.float64]
TOLERANCES = (0.05, 0.1, 0.25)
SEEN: Mapping[str, tuple[tuple[str, str], ...]] = {
    "dense_products": (
        ("/A100-SXM4-80GB/", "Llama-2-70b"),
        ("/A100-SXM4-80GB/", "CodeLlama-34b"),
    ),
    "all_reduce": tuple(
        (device, ranks)
        for device in ("/A100-SXM4-80GB/", "/B200/", "/L40S/")
        for ranks in ("/R2/", "/R8/")
    ),
    "routed_experts": (("/H100-SXM/", "bfloat16/power"), ("/H200/", "bfloat16/power")),
}
"""Pairs of parts of the names of the sets that built-in constants were fitted to, by kind."""
TYPES: Mapping[str, tuple[Quantization, float]] = {
    "bfloat16": ("none", 2.0),
    "fp8": ("fp8", 1.0),
    "fp8_block": ("fp8_block", 1.0),
}
"""How the types of the file are stored; others are left out."""


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


def score(sets: Iterable[Mapping[str, Any]]) -> list[Scored]:
    """Every set whose kind, type and device can be predicted."""
    return [found for one in sets if (found := _scored(one)) is not None]


def is_seen(one: Mapping[str, Any]) -> bool:
    """Whether built-in constants were fitted to the set."""
    return any(all(part in one["id"] for part in pair) for pair in SEEN.get(one["kind"], ()))


def _scored(one: Mapping[str, Any]) -> Scored | None:
    usable = [point for point, use in zip(one["points"], one["usable"], strict=True) if use]
    if len(usable) < 2 or one["kind"] not in KINDS:
        return None
    points, times = np.array(usable, dtype=np.float64).T
    try:
        target = target_of(one["hardware"])
    except HardwareError:
        return None
    seconds = KINDS[one["kind"]](target, one["essentials"], points)
    if seconds is None:
        return None
    essentials = one["essentials"]
    detail = " ".join(str(essentials[k]) for k in ("dtype", "routing") if k in essentials)
    group = (one["kind"], one["hardware"], detail or str(essentials.get("kernel", "")))
    return Scored(one["id"], group, is_seen(one), points, times / times[0], seconds / seconds[0])


def _dense(target: Target, sizes: Mapping[str, Any], tokens: Floats) -> Floats | None:
    if sizes["dtype"] not in TYPES:
        return None
    return dense_seconds(target.hardware, target.calibration.gemm, sizes, tokens)


def dense_seconds(
    hardware: Hardware, constants: GemmConstants, sizes: Mapping[str, Any], tokens: Floats
) -> Floats:
    """Gate-up and down product of a set."""
    quantization, weight_bytes = TYPES[sizes["dtype"]]
    width, fp8 = sizes["inter"] // sizes["tp"], quantization != "none"
    gemms = (
        Gemm(sizes["hidden"], 2 * width, weight_bytes, fp8),
        Gemm(width, sizes["hidden"], weight_bytes, fp8),
    )
    found: Floats = np.sum(
        [gemm_seconds(hardware, constants, gemm, tokens) for gemm in gemms], axis=0
    )
    return found


def _experts(target: Target, sizes: Mapping[str, Any], tokens: Floats) -> Floats | None:
    if sizes["dtype"] not in TYPES:
        return None
    quantization, weight_bytes = TYPES[sizes["dtype"]]
    width, fp8 = sizes["inter"] // sizes["tp"], quantization != "none"
    gemms = (
        Gemm(sizes["hidden"], 2 * width, weight_bytes, fp8),
        Gemm(width, sizes["hidden"], weight_bytes, fp8),
    )
    constants = target.calibration.experts
    experts, chosen = sizes["experts"], sizes["topk"]
    skew = 0.0 if sizes["routing"] == "balanced" else TYPICAL_SKEW
    routing = Routing(experts, chosen, skewed_shares(experts, chosen, skew))
    terms = expert_terms(
        target.hardware,
        constants,
        gemms,
        tokens,
        routing,
        hidden_size=sizes["hidden"],
        config=default_config(tokens, quantization, sizes["experts"]),
    )
    return ROUTED_KERNELS * constants.kernel_seconds + sum_terms(terms)


def _attention(target: Target, sizes: Mapping[str, Any], batch_sizes: Floats) -> Floats | None:
    kv_heads, head_dim = sizes["kv_heads"], sizes["head_dim"]
    heads = AttentionHeads(
        kv_heads, sizes["heads"] // kv_heads, head_dim, head_dim, 4.0 * head_dim, False
    )
    backend = backend_by_name(sizes["predicted_backend"], target.hardware)
    one = np.ones(1)

    def seconds(batch_size: float) -> float:
        terms = attention_terms(
            target.hardware,
            heads,
            batch_size=int(batch_size),
            cached_tokens=sizes["context"] + one,
            positions=one,
            constants=target.calibration.attention,
            backend=backend,
        )
        return float(sum_terms(terms)[0])

    fixed = fixed_seconds(heads, target.calibration.attention)
    return np.array([fixed + seconds(batch_size) for batch_size in batch_sizes])


def _all_reduce(target: Target, sizes: Mapping[str, Any], elements: Floats) -> Floats | None:
    link = target.hardware.link_bytes_per_second
    return all_reduce_seconds(target.calibration.link, link, sizes["ranks"], 2.0 * elements)


KINDS = {
    "dense_products": _dense,
    "routed_experts": _experts,
    "attention_vs_batch": _attention,
    "all_reduce": _all_reduce,
}
"""Seconds at the x of a set, by its kind; None where the set cannot be predicted."""


def within(scored: Sequence[Scored]) -> list[float]:
    """Fractions of the points within each tolerance."""
    errors = np.abs(np.concatenate([one.errors for one in scored]))
    return [float(np.mean(errors <= tolerance)) for tolerance in TOLERANCES]


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
@click.option("--sets", "by_set", is_flag=True, help="A row for each set.")
def main(curves: Path, by_set: bool) -> None:
    """Score the built-in constants on the public measurements in CURVES."""
    scored = score(json.loads(curves.read_text(encoding="utf-8"))["sets"])
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
