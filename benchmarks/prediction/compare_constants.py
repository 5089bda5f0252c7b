"""Claim: constants that were calibrated on a device predict it better than those that it has.

    python -m benchmarks.prediction.compare_constants curves.json h200.json PROFILE.json.gz...

Scores the built-in constants of a device and those of a hardware file, one part exchanged at a
time, on what neither was fitted to: public sets of the device, and profiles of ``vllm-nfp measure``
whose names begin with a shape of ``benchmarks.serving.shapes``. Prints the shares of points whose
t(x) / t(1) is within 5, 10 and 25 %.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.public_sets import is_seen
from benchmarks.prediction.score_public import TOLERANCES, scored_with
from benchmarks.prediction.validation_cells import whole_model_cells
from benchmarks.serving import shapes
from vllm_nfp.principle import target_of
from vllm_nfp.principle.calibration import Calibration
from vllm_nfp.principle.hardware_file import Target

Floats = NDArray[np.float64]
Found = Iterator[tuple[str, Floats]]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
LAYERS = "-layers"


def exchanged(old: Calibration, new: Calibration) -> Mapping[str, Calibration]:
    """The calibration as it is, with one part of the other, and with all of them."""
    return {
        "built-in": old,
        "gemm": replace(old, gemm=replace(new.gemm, fp8=old.gemm.fp8)),
        "gemm.fp8": replace(old, gemm=replace(old.gemm, fp8=new.gemm.fp8)),
        "attention": replace(old, attention=new.attention),
        "experts": replace(old, experts=new.experts),
        "all": replace(old, gemm=new.gemm, attention=new.attention, experts=new.experts),
    }


def public_errors(sets: Sequence[Mapping[str, Any]], target: Target) -> Found:
    """Errors of the public sets of the device by kind, type, and seen by the split."""
    for one in sets:
        if one["hardware"] == target.hardware.name:
            scored = scored_with(one, target)
            if scored is not None:
                dtype = one["essentials"].get("dtype", "")
                seen = "seen" if is_seen(one) else "unseen"
                yield f"public {one['kind']} {dtype} {seen}", scored.errors


def profile_errors(path: Path, target: Target) -> Found:
    """Errors of a profile by module."""
    profile = json.loads(gzip.decompress(path.read_bytes()))
    name, layers = profile["model"]["name"].removesuffix(LAYERS).rsplit("-", 1)
    config = {**shapes.SHAPES[name], "num_hidden_layers": int(layers)}
    if profile["environment"]["quantization"] is not None:
        config["quantization_config"] = {"quant_method": profile["environment"]["quantization"]}
    sizes = profile["environment"]["cudagraph_capture_sizes"]
    cells = whole_model_cells(name, config, profile, sizes, "set-aside", True, target)
    for cell in cells:
        errors = np.array(cell.predicted_ratio[1:]) / np.array(cell.measured_ratio[1:]) - 1.0
        yield f"{path.name.split('.')[0]} {cell.module}", errors


@click.command()
@click.argument("curves", type=FILE)
@click.argument("calibrated", type=FILE)
@click.argument("profiles", type=FILE, nargs=-1)
def main(curves: Path, calibrated: Path, profiles: Sequence[Path]) -> None:
    """Score the constants of a hardware file against the built-in ones of its device."""
    new = target_of(str(calibrated))
    old = target_of(new.hardware.name)
    sets = json.loads(curves.read_text(encoding="utf-8"))["sets"]
    for name, calibration in exchanged(old.calibration, new.calibration).items():
        target = replace(old, calibration=calibration)
        groups: dict[str, list[Floats]] = {}
        for found in (public_errors(sets, target), *(profile_errors(p, target) for p in profiles)):
            for key, errors in found:
                groups.setdefault(key, []).append(errors)
        for key, parts in sorted(groups.items()):
            every = np.abs(np.concatenate(parts))
            shares = " ".join(f"{np.mean(every <= t):5.0%}" for t in TOLERANCES)
            click.echo(f"{name:10s} {key:45s} {len(every):5d} {shares}")


if __name__ == "__main__":
    main()
