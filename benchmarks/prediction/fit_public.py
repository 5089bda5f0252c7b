"""Claim: constants of several devices follow from public kernels of some of the sets.

    python -m benchmarks.prediction.fit_public curves.json [--split]

Prints entries of ``kernels.toml`` that rest on public kernels, fitted to all sets, or with
``--split`` only to those that ``public_sets`` lists as seen. Each is fitted on log t(x) / t(first
x), of dense products over the median up to 4 tokens, and with less weight on log t.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.kernel_entries import as_toml
from benchmarks.prediction.public_seconds import KINDS, TYPES
from benchmarks.prediction.public_sets import is_seen, usable_points
from vllm_nfp.calibrate.fit_gemm import BASELINE_TOKENS
from vllm_nfp.calibrate.fit_tiles import fit_tiles
from vllm_nfp.principle import attention, collective, experts, gemm, target_of
from vllm_nfp.principle.calibration import Calibration
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.tiled import TiledConstants

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
EXPERTS = {"bandwidth": 0.1, "flops": 0.5, "kept_l2": 0.5, "activation_bandwidth": 0.7,
           "kernel_seconds": 0.5, "busy_bytes": 1.0, "tile_depth": 1.0,
           "busy_tiles": 1.0}  # fmt: skip
"""Fitted constants, and how far each logarithm may go at no great cost."""
DENSE = {"bandwidth": 0.1, "flops": 0.5, "output_traffic": 0.7, "input_traffic": 0.7,
         "kernel_seconds": 0.5, "one_token": 0.1}  # fmt: skip
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
        changes: dict[str, Any] = dict(values)
        if rest.endswith("tiles"):
            changes = {"tiles": TiledConstants(**values)}
        if rest.startswith("fp8"):
            changes = {"fp8": dataclasses.replace(part.fp8, **changes)}
        return dataclasses.replace(calibration, **{name: dataclasses.replace(part, **changes)})

    def start(self) -> dict[str, float]:
        """Where the search begins, whatever the device has now."""
        name, _, rest = self.part.partition(".")
        if rest.endswith("tiles"):
            return dataclasses.asdict(TiledConstants())
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
            part = gemm.GemmConstants()
        return {one: float(getattr(part, one)) for one in self.names}


def fitted(fit: Fit, sets: Sequence[Set]) -> dict[str, float]:
    """The constants with the least error at these sets."""
    from scipy.optimize import least_squares

    if fit.part.endswith(".tiles"):
        return _fit_tiles(fit, sets)
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
        tried = fit.with_values(target.calibration, values(logs))
        parts = [_errors(dataclasses.replace(target, calibration=tried), one) for one in chosen]
        prior = PRIOR_WEIGHT * np.sqrt(len(chosen)) * logs / deviations
        return np.concatenate([*parts, prior])

    bounds = np.log(least / centre) - 1e-6, np.log(most / centre) + 1e-6
    searches = [
        least_squares(
            errors, np.clip(start, *bounds), bounds=bounds, loss="soft_l1", f_scale=TOLERANCE
        )
        for start in _starts(fit.names)
    ]
    return values(np.asarray(min(searches, key=lambda found: found.cost).x))


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
    # One token alone is timed too roughly to be what all others are compared with.
    first = points <= (BASELINE_TOKENS if one["kind"] == "dense_products" else points[0])
    return np.concatenate([level[1:] - np.median(level[first]), LEVEL_WEIGHT * level])


def _fit_tiles(fit: Fit, sets: Sequence[Set]) -> dict[str, float]:
    target, chosen = target_of(fit.device), fit.scored(sets)
    gemms = dataclasses.replace(target.calibration.gemm, selection_loss=0.0)
    smooth = dataclasses.replace(target.calibration, gemm=gemms)

    def errors(constants: TiledConstants) -> Floats:
        tried = fit.with_values(smooth, dataclasses.asdict(constants))
        used = dataclasses.replace(target, calibration=tried)
        return np.concatenate([_errors(used, one) for one in chosen])

    return dataclasses.asdict(fit_tiles(errors, len(chosen)))


def fits() -> list[Fit]:
    """All that public sets decide."""
    found = []
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
    found.append(Fit("gemm", "L40S", dense, DENSE, gemm.BOUNDS, "bfloat16"))
    for device in ("A100-SXM4-80GB", "B200"):
        found.append(Fit("gemm.tiles", device, dense, {}, {}, "bfloat16"))
    found.append(Fit("gemm.fp8.tiles", "L40S", dense, {}, {}, "fp8"))
    for device in ("H100-SXM", "H200", "A100-SXM4-80GB", "B200", "L40S"):
        names = UNLINKED if device == "L40S" else LINKED
        found.append(Fit("link", device, "all_reduce", names, collective.BOUNDS))
    return found


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
