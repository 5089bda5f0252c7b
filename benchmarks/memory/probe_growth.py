"""Where the probe takes memory, of the host and of the GPU, stage by stage, at its defaults.

    python -m benchmarks.memory.probe_growth --shape qwen3-8b --layers 8 \\
        --engine-args '{"quantization": "fp8"}' --operators --out FILE.json

One engine in this process, with the probe, from its start to the end of its first scan. Stages
nest: what ``prepare`` grows by holds what its parts grow by. With ``--operators`` stages that run
no compiled code are split by operator, which slows them down. ``--history`` tells which code made
PyTorch reserve pieces of 16 MiB and more (:mod:`benchmarks.memory.large_reserves`), and slows the
start down. ``--captures`` tells what each first run and capture made it reserve, and the largest
piece of the graphs' pool that was free before and after. Prints a table of MiB, and writes it with
the probe's own account and the environment.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.memory import capture_growth, large_reserves
from benchmarks.overhead.resident import StageGrowth
from benchmarks.serving import shapes
from vllm_nfp.adapter.engines import DUMMY_WEIGHTS, start_engine
from vllm_nfp.config import ENV_VAR, config_from_mapping
from vllm_nfp.files import write_whole
from vllm_nfp.results.snapshot import read_snapshot

COLUMNS = ("GpuReserved", "GpuBeside", "RssAnon", "RssFile")


def growth(
    model: Path, arguments: Mapping[str, Any], operators: bool, history: bool, captures: bool
) -> dict[str, Any]:
    """Start an engine with the probe; growth by stage in MiB, and the probe's own account."""
    remembered: AbstractContextManager[list[dict[str, Any]]]
    remembered = large_reserves.recorded() if history else nullcontext([])
    noted: AbstractContextManager[list[dict[str, Any]]]
    noted = capture_growth.recorded() if captures else nullcontext([])
    # A process that is ended may still write into it.
    with tempfile.TemporaryDirectory(prefix="nfp-growth-", ignore_cleanup_errors=True) as folder:
        os.environ[ENV_VAR] = config_from_mapping({"run_dir": folder}).to_json()
        with StageGrowth(operators) as stages, remembered as reserves, noted as captured:
            engine = start_engine(model, {**DUMMY_WEIGHTS, **arguments})
        found = read_snapshot(Path(folder) / "engine-0.json")
        del engine  # not before: its session writes into the folder
    return {
        "stages": stages.summary(),
        "reserves": reserves,
        "captures": captured,
        "probe": {
            "reason": found.reason,
            "gpu_bytes": found.graph_bytes,
            "host_bytes": found.host_bytes,
            "startup_seconds": found.startup_seconds,
            "probes": dict(found.probes),
        },
    }


def table(stages: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each stage that grew, in the order of their first end."""
    rows = [f"{'stage':<40}{'calls':>7}" + "".join(f"{name:>13}" for name in COLUMNS)]
    for stage, total in stages.items():
        cells = "".join(f"{total.get(name, 0.0):>13.1f}" for name in COLUMNS)
        rows.append(f"{stage:<40}{total['calls']:>7.0f}{cells}")
    return "\n".join(rows)


@click.command()
@click.option("--shape", default="qwen3-8b", help="A name of benchmarks/serving/shapes.py.")
@click.option("--layers", type=int, default=None, help="Fewer layers than the shape has.")
@click.option("--engine-args", default="{}", help="Further arguments of vllm.LLM, as JSON.")
@click.option("--operators", is_flag=True, help="Split stages without compiled code by operator.")
@click.option("--history", is_flag=True, help="Tell who made PyTorch reserve large pieces.")
@click.option("--captures", is_flag=True, help="Tell what each capture made PyTorch reserve.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    shape: str, layers: int | None, engine_args: str, operators: bool, history: bool,
    captures: bool, out: Path,
) -> None:  # fmt: skip
    """Tell by how much each stage of the probe's start makes the process and its GPU grow."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-") as folder:
        model = shapes.write_model(Path(folder) / shape, shape, layers)
        result = growth(model, json.loads(engine_args), operators, history, captures)
    result |= {
        "shape": shape,
        "layers": layers,
        "engine_args": engine_args,
        "environment": environment.record(),
    }
    write_whole(out, json.dumps(result, indent=1))
    print(table(result["stages"]))
    for reserve in result["reserves"]:
        print(f"{reserve['mib']} MiB", *reserve["stack"], sep="\n  ")
    for captured in result["captures"]:
        print(json.dumps(captured))
    print(json.dumps(result["probe"]))


if __name__ == "__main__":
    main()
