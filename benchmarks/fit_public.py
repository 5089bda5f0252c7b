"""Claim: constants of several devices follow from public kernels of some of the sets.

    python -m benchmarks.fit_public curves.json [--split]

Prints entries of ``kernels.toml`` that rest on public kernels, fitted to all sets, or with
``--split`` only to those that ``public_sets`` lists as seen, so that the others are left for the
score. Each is fitted on log t(x) / t(first x), and with less weight on log t. The row tiles of
A100's dense products are chosen from a grid. ``benchmarks.fit_folds`` says which are better.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.public_seconds import KINDS, TYPES
from benchmarks.public_sets import is_seen, usable_points
from vllm_nfp.principle import attention, collective, experts, gemm, target_of
from vllm_nfp.principle.calibration import Calibration
from vllm_nfp.principle.hardware_file import Target

Floats = NDArray[np.float64]
Set = Mapping[str, Any]
LEVEL_WEIGHT = 0.4
"""Of log t beside log t(x) / t(first x)."""
TOLERANCE = 0.06
"""Error from which the loss is linear."""
PRIOR_WEIGHT = 0.02
"""Of a constant's change, in logarithms, over its deviation below."""
MOST_ELEMENTS = 128 << 20
"""Largest all-reduce that is fitted: 256 MiB."""
SLOWDOWNS = tuple(np.arange(1.0, 1.41, 0.02))
FLOPS = tuple(np.arange(0.66, 0.9, 0.02))
EXPERTS = {"bandwidth": 0.1, "flops": 0.5, "kept_l2": 0.5, "activation_bandwidth": 0.7,
           "kernel_seconds": 0.5, "busy_bytes": 1.0, "tile_depth": 1.0,
           "busy_tiles": 1.0}  # fmt: skip
"""Fitted constants, and how far each logarithm may go at no great cost."""
DENSE = {"bandwidth": 0.1, "flops": 0.5, "output_traffic": 0.7, "input_traffic": 0.7,
         "kernel_seconds": 0.5, "one_token": 0.1}  # fmt: skip
DENSE_FP8 = {"bandwidth": 0.3}
ATTENTION = {"bandwidth": 0.1, "kernel_seconds": 0.5}
LINKED = {"bandwidth": 0.5, "collective_seconds": 0.5, "custom_bandwidth": 0.5,
          "custom_seconds": 0.5, "meeting_seconds": 1.0}  # fmt: skip
UNLINKED = {"bandwidth": 0.5, "collective_seconds": 0.5, "custom_bandwidth": 0.5,
            "custom_seconds": 0.5, "shared_bandwidth": 0.5, "shared_seconds": 0.5}  # fmt: skip
ATTENTION_BOUNDS = {"bandwidth": (0.05, 1.0), "kernel_seconds": (1e-6, 1e-4)}
LATENT = {"latent_seconds": 1.0, "latent_passes": 1.0}
LATENT_BOUNDS = {"latent_seconds": (1e-6, 1e-4), "latent_passes": (0.1, 12.0)}
LATENT_START = {"latent_seconds": 2e-5, "latent_passes": 5.0}
Bounds = Mapping[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Constants of one part on one device, and the sets that decide them.

    Attributes:
        part: name of the entry.
        names: the constants, and their deviations.
        kind, dtype: which sets; without a type all of the kind.
    """

    part: str
    device: str
    kind: str
    names: Mapping[str, float]
    bounds: Bounds
    dtype: str | None = None

    def scored(self, sets: Sequence[Set]) -> list[Set]:
        """Sets of the device that the constants predict and are fitted to."""
        return [
            one
            for one in sets
            if one["kind"] == self.kind
            and one["hardware"] == self.device
            and (self.dtype is None or one["essentials"].get("dtype") == self.dtype)
        ]

    def with_values(self, calibration: Calibration, values: Mapping[str, float]) -> Calibration:
        """The calibration with these constants of the part."""
        name, _, rest = self.part.partition(".")
        if name == "experts" and rest:
            found = dataclasses.replace(calibration.experts_of(rest), **values)
            return dataclasses.replace(
                calibration, quantized_experts={**calibration.quantized_experts, rest: found}
            )
        part = getattr(calibration, name)
        if rest == "fp8":
            values = {rest: dataclasses.replace(getattr(part, rest), **values)}
        return dataclasses.replace(calibration, **{name: dataclasses.replace(part, **values)})

    def start(self) -> dict[str, float]:
        """Where the search begins, whatever the device has now."""
        name, _, rest = self.part.partition(".")
        if self.names is LATENT:
            return LATENT_START
        if name == "link":
            shared = 0.5 if "shared_seconds" in self.names else 1.0
            part: object = collective.LinkConstants(
                collective_seconds=30e-6, shared_bandwidth=shared, shared_seconds=3e-6
            )
        elif name == "experts":
            part = experts.ExpertConstants(busy_bytes=12e3, tile_depth=30.0, busy_tiles=0.5)
        elif name == "attention":
            part = attention.AttentionConstants()
        else:
            part = gemm.GemmConstants().fp8 if rest else gemm.GemmConstants()
        return {one: float(getattr(part, one)) for one in self.names}


def fitted(fit: Fit, sets: Sequence[Set]) -> dict[str, float]:
    """The constants with the least error at these sets, within their bounds."""
    from scipy.optimize import least_squares

    if fit is AMPERE:
        return fit_ampere(sets)
    target, chosen = target_of(fit.device), fit.scored(sets)
    first = fit.start() | _shared(fit, sets)
    centre = np.array(list(first.values()))
    ends = np.array([fit.bounds[name] for name in fit.names])
    if fit.kind == "attention_vs_batch":
        # No kernel is started and ended in more than the shortest time of all, out of L2.
        shortest = min(time for one in chosen for _, time in one["points"])
        ends[list(fit.names).index("kernel_seconds"), 1] = 1e-6 * shortest
    least, most = np.maximum(ends[:, 0], 1e-9 * centre), ends[:, 1]
    deviations = np.array(list(fit.names.values()))

    def values(logs: Floats) -> dict[str, float]:
        found = np.clip(centre * np.exp(logs), least, most)
        return dict(zip(fit.names, found.tolist(), strict=True))

    def errors(logs: Floats) -> Floats:
        calibration = fit.with_values(target.calibration, values(logs))
        parts = [
            _errors(dataclasses.replace(target, calibration=calibration), one) for one in chosen
        ]
        prior = PRIOR_WEIGHT * np.sqrt(len(chosen)) * logs / deviations
        return np.concatenate([*parts, prior])

    bounds = np.log(least / centre) - 1e-6, np.log(most / centre) + 1e-6
    tried = [
        least_squares(
            errors, np.clip(start, *bounds), bounds=bounds, loss="soft_l1", f_scale=TOLERANCE
        )
        for start in _starts(fit.names)
    ]
    return values(np.asarray(min(tried, key=lambda found: found.cost).x))


def _shared(fit: Fit, sets: Sequence[Set]) -> dict[str, float]:
    """What quantized experts start from: L2 keeps as much as it does for 16-bit weights, whose
    larger matrices show it."""
    plain = dataclasses.replace(fit, part="experts", dtype="bfloat16")
    if not fit.part.startswith("experts.") or not plain.scored(sets):
        return {}
    key = (fit.device, *(one["id"] for one in plain.scored(sets)))
    if key not in _KEPT:
        _KEPT[key] = fitted(plain, sets)["kept_l2"]
    return {"kept_l2": _KEPT[key]}


_KEPT: dict[tuple[str, ...], float] = {}


def _starts(names: Mapping[str, float]) -> list[Floats]:
    """Where searches begin, in logarithms: experts may be bound by arithmetic or by memory."""
    first = np.zeros(len(names))
    if "busy_tiles" not in names:
        return [first]
    slow = first.copy()
    slow[list(names).index("flops")] = np.log(0.1)
    return [first, slow]


def _errors(target: Target, one: Set) -> Floats:
    points, times = usable_points(one, target.hardware)
    if one["kind"] == "all_reduce":
        points, times = points[points <= MOST_ELEMENTS], times[points <= MOST_ELEMENTS]
    if len(points) < 2:
        return np.zeros(0)
    seconds = KINDS[one["kind"]](target, one, points)
    if seconds is None:
        return np.zeros(0)
    level: Floats = np.log(seconds / (times * 1e-6))
    return np.concatenate([level[1:] - level[0], LEVEL_WEIGHT * level])


def fit_ampere(sets: Sequence[Set]) -> dict[str, float]:
    """The slowdown of wide tiles and the share of FLOP/s; tiles of 128 rows, padded in full."""
    errors = [_ampere_errors(one) for one in AMPERE.scored(sets)]
    best = int(np.argmin(np.sum([found for found in errors if found is not None], axis=0)))
    return _ampere_grid()[best]


def _ampere_grid() -> list[dict[str, float]]:
    fixed = {"row_tile": 128, "padding_paid": 1.0, "narrow_tokens": 64}
    return [
        {"flops": float(flops), **fixed, "wide_slowdown": float(slow)}
        for slow, flops in itertools.product(SLOWDOWNS, FLOPS)
    ]


def _ampere_errors(one: Set) -> Floats | None:
    """Mean error of log t(x) / t(first x) at each point of the grid, kept for other folds."""
    if one["id"] not in _AMPERE_ERRORS:
        target = target_of(AMPERE.device)
        found = []
        for values in _ampere_grid():
            calibration = AMPERE.with_values(target.calibration, values)
            part = _errors(dataclasses.replace(target, calibration=calibration), one)
            found.append(float(np.mean(np.abs(part[: len(part) // 2]))) if len(part) else np.nan)
        _AMPERE_ERRORS[one["id"]] = None if np.isnan(found[0]) else np.array(found)
    return _AMPERE_ERRORS[one["id"]]


_AMPERE_ERRORS: dict[str, Floats | None] = {}
AMPERE = Fit("gemm", "A100-SXM4-80GB", "dense_products", {}, {}, "bfloat16")


def fits() -> list[Fit]:
    """All that public sets decide."""
    found = [AMPERE]
    for device in ("H100-SXM", "H200", "A100-SXM4-80GB", "B200", "L40S"):
        for dtype, (quantization, _) in TYPES.items():
            part = "experts" if quantization == "none" else f"experts.{quantization}"
            if not (part == "experts" and device in ("H100-SXM", "H200")):
                found.append(Fit(part, device, "routed_experts", EXPERTS, experts.BOUNDS, dtype))
    for device in ("H200", "A100-SXM4-80GB", "B200", "L40S"):
        found.append(Fit("attention", device, "attention_vs_batch", ATTENTION, ATTENTION_BOUNDS))
    for device in ("H100-SXM", "B200"):
        found.append(Fit("attention.latent", device, "mla_module_vs_batch", LATENT, LATENT_BOUNDS))
    dense = "dense_products"
    for device in ("L40S", "B200"):
        found.append(Fit("gemm", device, dense, DENSE, gemm.BOUNDS, "bfloat16"))
    found.append(Fit("gemm.fp8", "L40S", dense, DENSE_FP8, gemm.FP8_BOUNDS, "fp8"))
    for device in ("H100-SXM", "H200", "A100-SXM4-80GB", "B200", "L40S"):
        names = UNLINKED if device == "L40S" else LINKED
        found.append(Fit("link", device, "all_reduce", names, collective.BOUNDS))
    return found


def as_toml(part: str, device: str, values: Mapping[str, float]) -> str:
    """An entry, without what people add by hand."""
    constants = "".join(f"{name} = {value:.4g}\n" for name, value in values.items())
    return (
        f'\n[[kernels]]\npart = "{part}"\ndevice = "{device}"\nbasis = "public kernels"\n'
        f"\n[kernels.constants]\n{constants}"
    )


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
@click.option("--split", is_flag=True, help="Fit to the seen sets only.")
def main(curves: Path, split: bool) -> None:
    """Fit constants to the public measurements in CURVES."""
    every = json.loads(curves.read_text(encoding="utf-8"))["sets"]
    sets = [one for one in every if is_seen(one)] if split else every
    for fit in fits():
        if fit.scored(sets):
            click.echo(as_toml(fit.part, fit.device, fitted(fit, sets)))


if __name__ == "__main__":
    main()
