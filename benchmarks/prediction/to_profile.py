"""Turns a folder of raw GPU results into a profile, for reports and comparisons of them.

    python -m benchmarks.prediction.to_profile benchmarks/results/2026-11-24-h100 dense -o P.json

The answers are made again from the raw pairs, by the same cost surface as in the server, which
is updated now and then as there. So are the predictions, with the predictor of today.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.serving import shapes
from vllm_nfp.config import ProbeConfig, config_from_mapping
from vllm_nfp.principle import (
    ModelShape,
    Serving,
    Target,
    default_calibration,
    match_device,
    predict_cells,
    shape_from_config,
)
from vllm_nfp.results.gather import Results
from vllm_nfp.results.profile import Profile, profile_of, save_profile
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import Table, always
from vllm_nfp.strict_json import parse_object
from vllm_nfp.surface import RECORDED, CostSurface, predicted_prior
from vllm_nfp.types import (
    Device,
    Environment,
    LayerTime,
    ModelDescription,
    Module,
    PairResult,
    Prediction,
    Shape,
    State,
    Timing,
)

UPDATE_SECONDS = 2.0
"""Seconds of probing between two updates of the surface, as with a server's scan at the start."""


def build(folder: Path, name: str, part: slice = slice(None)) -> Profile:
    """The profile of one model of a run.

    Args:
        folder: of benchmarks.prediction.h100_session's results.
        name: dense or moe.
        part: which of the pairs, in the order in which they were run.
    """
    table = json.loads((folder / f"{name}-table.json").read_text(encoding="utf-8"))
    config = config_from_mapping(table["probe"])
    pairs = list(read_pairs(folder / f"{name}-pairs.jsonl.gz"))[part]
    results = results_of(table, config, pairs)
    stored = parse_object(json.dumps({**table["snapshot"], "state": State.STEADY}), name).decode(
        Snapshot
    )
    snapshot = dataclasses.replace(
        stored,
        model_name=table["shape"],
        curves=results.findings.curves,
        boundaries=results.findings.boundaries,
        layer_times=results.layer_times(),
        predictions=tuple(_predictions(table, stored)),
    )
    return profile_of(snapshot, _environment(table["environment"]), _model(table), config)


def results_of(
    table: Mapping[str, Any], config: ProbeConfig, pairs: Sequence[PairResult]
) -> Results:
    """What the surface says after these pairs, of the cells and positions that they are of."""
    execution: dict[tuple[int, int], str] = {}
    for run in (run for pair in pairs for run in (pair.many, pair.one)):
        execution[run.shape.batch_size, run.shape.positions] = run.execution
    seen = {run.shape for pair in pairs for run in (pair.many, pair.one)}
    cells = {
        (b, c): tuple(n for n in config.grid if Shape(b, c, n) in seen)
        for b, c in sorted({(shape.batch_size, shape.context) for shape in seen})
    }
    reported = Table(
        cells, cells, config.grid, 1 << 22, 1 << 22, lambda b, n: execution[b, n], always
    )
    surface = CostSurface(
        predicted_prior(*model_on_device(table), Serving(), config.max_positions),
        RECORDED,
        pairs_kept=config.max_samples,
        min_samples=config.min_samples,
        shapes_kept=len(seen),
    )
    results, now, updated = Results(config, surface, reported), 0.0, 0.0
    for pair in pairs:
        now += pair.cost_seconds
        results.add(pair, now)
        if now - updated > UPDATE_SECONDS:
            surface.update(now)
            updated = now
    results.update(now)
    return results


def model_on_device(table: Mapping[str, Any]) -> tuple[ModelShape, Target]:
    """What the prediction needs of the recorded model and GPU."""
    config = {**shapes.SHAPES[table["shape"]], "num_hidden_layers": table["layers"]}
    hardware = match_device(table["environment"]["gpu"]["name"])
    assert hardware is not None
    return shape_from_config(config), Target(hardware, default_calibration(hardware.name))


def _predictions(table: Mapping[str, Any], stored: Snapshot) -> Iterator[Prediction]:
    rows = predict_cells(
        *model_on_device(table),
        sorted({row.batch_size for row in stored.curves}),
        sorted({row.context for row in stored.curves}),
        sorted({row.epsilon for row in stored.boundaries}),
    )
    for row in rows:
        yield Prediction(
            row.module,
            row.batch_size,
            row.context,
            row.epsilon,
            row.nfp,
            row.idle_compute_nfp,
            row.limited_by,
        )


def read_pairs(path: Path) -> Iterator[PairResult]:
    """The raw pairs of a probe's log, in the order in which they were run."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            yield PairResult(
                _timing(values["many"]),
                _timing(values["one"]),
                values["baseline_first"],
                values["cost_seconds"],
            )


def _timing(values: Mapping[str, Any]) -> Timing:
    return Timing(
        Shape(**values["shape"]),
        values["step_seconds"],
        values["lm_head_seconds"],
        {Module(module): seconds for module, seconds in values["modules"].items()},
        tuple(LayerTime(t["layer"], Module(t["module"]), t["seconds"]) for t in values["layers"]),
        values["execution"],
        values.get("waited", False),
        written=values.get("written", True),  # logs of earlier versions do not say
    )


def _environment(values: Mapping[str, Any]) -> Environment:
    gpu = values["gpu"]
    return Environment(
        date_unix_seconds=datetime.fromisoformat(values["date"]).timestamp(),
        device=Device("cuda", gpu["name"], gpu["driver_version"], None, None),
        vllm_nfp=values["vllm_nfp"],
        vllm=values["vllm"],
        torch=values["torch"],
        cuda=values["cuda"],
        python=values["python"],
        dtype="bfloat16",
    )


def _model(table: Mapping[str, Any]) -> ModelDescription:
    config = shapes.SHAPES[table["shape"]]
    whole = int(config["num_hidden_layers"])  # type: ignore[call-overload]
    names = {f.name for f in dataclasses.fields(ModelDescription)} & set(config)
    return ModelDescription(
        name=table["shape"],
        architecture=str(next(iter(config["architectures"]))),  # type: ignore[call-overload]
        **{
            **{name: config[name] for name in names},
            "num_layers": table["layers"],
            "whole_num_layers": whole if table["layers"] < whole else None,
            "experts_per_token": config.get("num_experts_per_tok"),
        },
    )


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name", type=click.Choice(["dense", "moe"]))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(folder: Path, name: str, output: Path) -> None:
    """Write the profile of NAME's results in FOLDER."""
    save_profile(output, build(folder, name))


if __name__ == "__main__":
    main()
