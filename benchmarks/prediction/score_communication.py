"""Claim: the predictor knows the time of all-reduces.

    python -m benchmarks.prediction.score_communication benchmarks/results/DATE-tensor-parallel
    python -m benchmarks.prediction.score_communication FOLDER --fit [--write hardware.json]

Reads what ``benchmarks.engines.tensor_parallel`` has written: for each server the snapshot with its
curves. Scores the predicted time of ``communication`` against the measured median at every B, L and
N, and predicted NFP against measured NFP of every module. ``--fit`` fits the constants of vLLM's
own all-reduce and of NCCL to all measured times and prints them; a model is scored by constants
that were fitted to the other models, if there are any, as well as by those fitted to all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.serving import shapes
from vllm_nfp.cli.common import Refusal
from vllm_nfp.principle import (
    CATALOGUE,
    Hardware,
    HardwareError,
    ModelShape,
    Serving,
    Target,
    match_device,
    predict_cell,
    shape_from_config,
    target_of,
)
from vllm_nfp.principle.collective import CUSTOM_BYTES, LinkConstants, all_reduce_seconds
from vllm_nfp.principle.hardware_file import write_hardware_file
from vllm_nfp.principle.terms import ACTIVATION_BYTES

Floats = NDArray[np.float64]
ALL_REDUCES = 2
"""Of a layer: after attention and after the FFN."""
EPSILON = 0.1


class ScoreError(RuntimeError):
    """There is nothing to score; the message says what is missing."""


@dataclass(frozen=True)
class Server:
    """One server's results."""

    name: str
    shape: ModelShape
    device: str
    snapshot: dict[str, Any]

    @property
    def sizes(self) -> Floats:
        """Bytes of each measured all-reduce, shape [n]."""
        tokens = np.array([row["batch_size"] * row["positions"] for row in self._rows], dtype=float)
        return tokens * self.shape.hidden_size * ACTIVATION_BYTES

    @property
    def seconds(self) -> Floats:
        """Median time of each, half of a layer's two; shape [n]."""
        return np.array([row["median_seconds"] for row in self._rows]) / ALL_REDUCES

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in self.snapshot["curves"] if row["module"] == "communication"]


def read(folder: Path) -> list[Server]:
    """The servers of a run that had several ranks.

    Raises:
        ScoreError: if there is none.
    """
    servers = []
    for path in sorted(folder.glob("*-table.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["tensor_parallel"] < 2 or not values["snapshot"]["curves"]:
            continue
        config = {**shapes.SHAPES[values["shape"]], "num_hidden_layers": values["layers"]}
        shape = shape_from_config(
            config,
            tensor_parallel_size=values["tensor_parallel"],
            expert_parallel=values["expert_parallel"],
        )
        gpu = values["environment"]["gpu"] or {}
        servers.append(
            Server(path.name.removesuffix("-table.json"), shape, gpu.get("name", ""),
                   values["snapshot"])
        )  # fmt: skip
    if not servers:
        raise ScoreError(f"{folder} holds no *-table.json of a server with several ranks")
    return servers


def fit(servers: Sequence[Server], hardware: Hardware, start: LinkConstants) -> LinkConstants:
    """Constants that make the relative error smallest, for each of the two kinds apart.

    Two ranks never synchronise a second time, so the constant of that keeps its value. Collectives
    of a server contain the wait for the slowest rank.
    """
    sizes = np.concatenate([server.sizes for server in servers])
    seconds = np.concatenate([server.seconds for server in servers])
    link = hardware.link_bytes_per_second
    custom = sizes < CUSTOM_BYTES
    found = dataclasses.replace(start, fitted=True, skew_seconds=0.0)
    # For two ranks both ways send S bytes.
    line = _line(sizes[custom], seconds[custom])
    if line is not None:
        found = dataclasses.replace(
            found, custom_seconds=line[0], custom_bandwidth=_share(line[1], link)
        )
    line = _line(sizes[~custom], seconds[~custom])
    if line is not None:
        found = dataclasses.replace(
            found, collective_seconds=line[0], bandwidth=_share(line[1], link)
        )
    return found


def _line(sizes: Floats, seconds: Floats) -> tuple[float, float] | None:
    """Latency and seconds per byte by least squares of relative errors, none below 0."""
    if len(np.unique(sizes)) < 3:
        return None
    from scipy.optimize import nnls

    weights = 1.0 / seconds
    scale = float(sizes.max())
    matrix = np.stack([weights, weights * sizes / scale], axis=1)
    (latency, slope), _ = nnls(matrix, np.ones_like(seconds))
    return float(latency), float(slope) / scale


def _share(seconds_per_byte: float, link: float) -> float:
    return min(1.0, max(0.01, 1.0 / (seconds_per_byte * link))) if seconds_per_byte else 1.0


def errors(server: Server, hardware: Hardware, constants: LinkConstants) -> Floats:
    """Relative errors of the predicted times, shape [n]."""
    ranks = server.shape.tensor_parallel_size
    link = hardware.link_bytes_per_second
    predicted = constants.skew_seconds + all_reduce_seconds(constants, link, ranks, server.sizes)
    return predicted / server.seconds - 1.0


def nfp_rows(server: Server, target: Target, serving: Serving) -> list[tuple[str, int, int, int]]:
    """Module, cells, hits within the measured interval, and hits on the measured grid's point."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    grid = sorted({row["positions"] for row in server.snapshot["curves"]})
    for row in server.snapshot["boundaries"]:
        if row["epsilon"] != EPSILON:
            continue
        cell = predict_cell(
            server.shape, target, row["module"], row["batch_size"], row["context"],
            (EPSILON,), serving, max_positions=max(grid),
        )  # fmt: skip
        ratio = np.array(cell.seconds) / cell.seconds[0]
        # Read at the measured counts only, so that both have the same grid.
        nfp = 1
        for n in grid:
            if ratio[n - 1] > 1 + EPSILON:
                break
            nfp = n
        within = row["lower"] <= nfp <= row["upper"]
        found.setdefault(row["module"], []).append((within, nfp == row["positions"]))
    return [
        (module, len(hits), sum(w for w, _ in hits), sum(e for _, e in hits))
        for module, hits in found.items()
    ]


def _hardware(servers: Sequence[Server], name: str | None) -> Target:
    if name is not None:
        return target_of(name)
    hardware = match_device(servers[0].device)
    if hardware is None:
        known = ", ".join(one.name for one in CATALOGUE)
        raise ScoreError(
            f"{servers[0].device!r} is not in the catalogue: give --hardware ({known})"
        )
    return target_of(hardware.name)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--fit", "fits", is_flag=True, help="Fit the constants to the folder.")
@click.option("--hardware", default=None, help="Name or file [default: the device of the run].")
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), default=None,
              help="Hardware file for the fitted constants.")  # fmt: skip
def main(folder: Path, fits: bool, hardware: str | None, write: Path | None) -> None:
    """Score, and fit if asked for; see the module's text."""
    try:
        servers = read(folder)
        target = _hardware(servers, hardware)
    except HardwareError as error:
        raise Refusal(str(error)) from None
    except ScoreError as error:
        raise click.ClickException(str(error)) from None
    constants = target.calibration.link
    columns: dict[str, Callable[[Server], LinkConstants]] = {"as shipped": lambda _: constants}
    if fits:
        fitted = fit(servers, target.hardware, constants)
        columns["fitted to all"] = lambda _: fitted
        if len({server.shape.hidden_size for server in servers}) > 1:
            columns["fitted to other widths"] = lambda one: fit(
                [s for s in servers if s.shape.hidden_size != one.shape.hidden_size],
                target.hardware,
                constants,
            )
        click.echo(json.dumps(dataclasses.asdict(fitted), indent=1))
        calibration = dataclasses.replace(target.calibration, link=fitted)
        target = dataclasses.replace(target, calibration=calibration)
        if write is not None:
            write_hardware_file(write, target)
    console = Console(width=140)
    table = Table(title="Relative error of communication: median, 90th percentile of its size")
    for name in ("server", "points", *columns):
        table.add_column(name)
    for server in servers:
        told = []
        for constants_for in columns.values():
            found = errors(server, target.hardware, constants_for(server))
            told.append(f"{np.median(found):+.0%}, {np.percentile(np.abs(found), 90):.0%}")
        table.add_row(server.name, str(len(server.sizes)), *told)
    console.print(table)
    table = Table(title=f"NFP at epsilon {EPSILON:g}: predicted against measured")
    for name in ("server", "module", "cells", "within the interval", "the same point"):
        table.add_column(name)
    for server in servers:
        for row in nfp_rows(server, target, Serving()):
            table.add_row(server.name, *map(str, row))
    console.print(table)


if __name__ == "__main__":
    main()
