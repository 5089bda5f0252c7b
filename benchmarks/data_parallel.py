"""Claim: the probe works on engines that take their steps together (data parallelism with experts).

    python -m benchmarks.data_parallel --out DIR

On a machine with two GPUs, or four with ``--engines 4``. Two servers start side by side, eight
layers of a Qwen3-30B-A3B shape on each engine and the experts spread over all: ``dp-ep`` with the
probe, ``off`` without it.

1. ``dp-ep`` under load on all engines: NFP and time of every module, one column for each engine;
   every pair is kept. ``pairs.json`` has how many pairs each engine has measured, in serving and
   while it had no request.
2. The same greedy prompts to both servers, one after the other: one engine serves, and the others
   run dummy batches. Token ids and log-probabilities must be equal.

The probe of ``dp-ep`` may take up to half of the time, so that its table is full soon;
``--at-defaults`` leaves all its settings as they are.

Every part is written as soon as it is there. ``--trial`` runs a tiny model on CPUs, to try the
script; vLLM lacks what that needs there, and takes it from ``tests/engine``, which must be on
``PYTHONPATH``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks import server
from benchmarks.packing import pack
from benchmarks.table_servers import Plan, Session
from benchmarks.tensor_parallel import (
    FLAGS,
    HOST_ENVIRONMENT,
    PROMPT_TOKENS,
    TABLE,
    TRIAL_ENVIRONMENT,
    TRIAL_FLAGS,
    TRIAL_TABLE,
    compare_outputs,
    print_side_by_side,
)

SHAPE, LAYERS = "qwen3-30b-a3b", 8
PHASES = ((16, 900), (64, 900), (2, 900))
"""(streams, prompt tokens) of the load on two engines."""
TRIAL_EXTENSION = "wave_extension.WaveExtension"
TRIAL_PHASES = ((4, 50), (2, 50))
KV_GIB = 1.2


def plans(engines: int, trial: bool = False, at_defaults: bool = False) -> tuple[Plan, Plan]:
    """With the probe, and without it."""
    settings = {} if at_defaults else TRIAL_TABLE if trial else TABLE
    spread = ("--data-parallel-size", str(engines))

    def plan(name: str, probe: Mapping[str, object] | None) -> Plan:
        if trial:
            around = {**HOST_ENVIRONMENT, **TRIAL_ENVIRONMENT}
            tried = (*TRIAL_FLAGS, *spread, "--worker-extension-cls", TRIAL_EXTENSION)
            return Plan(name, "tiny-moe", 2, 0.05, probe, 1, True, tried, around)
        flags = (*FLAGS, *spread)
        return Plan(name, SHAPE, LAYERS, KV_GIB, probe, 1, True, flags, HOST_ENVIRONMENT)

    return plan("dp-ep", settings), plan("off", None)


def keep_engines(session: Session, plan: Plan, engines: int) -> None:
    """Write each engine's snapshot and pairs; print their tables side by side."""
    snapshots: dict[str, Any] = {}
    for engine in range(engines):
        folder = session.work / f"probe-{plan.name}"
        snapshots[f"moe-engine-{engine}"] = json.loads(
            (folder / f"engine-{engine}.json").read_text()
        )
        pack(folder / f"samples-{engine}.jsonl", session.out / f"engine-{engine}-pairs.jsonl.gz")
    session.write("engines", {"environment": session.environment, "snapshots": snapshots})
    found = {name: (one["state"], one["reason"], one["probes"]) for name, one in snapshots.items()}
    session.write("pairs", found)
    for name, what in found.items():
        session.say(f"{name}: {what}")
    print_side_by_side(snapshots, session.out / "side-by-side.txt")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--engines", type=click.IntRange(2, 8), default=2, help="GPUs, one for each engine.")
@click.option("--table-seconds", type=float, default=45.0, help="Load on the probed server.")
@click.option("--limit-seconds", type=float, default=400.0, help="Of everything.")
@click.option("--at-defaults", is_flag=True, help="Without any setting of the probe.")
@click.option("--trial", is_flag=True, help="A tiny model on CPUs.")
def main(
    out: Path,
    engines: int,
    table_seconds: float,
    limit_seconds: float,
    at_defaults: bool,
    trial: bool,
) -> None:
    """Measure on several GPUs; see the module's text."""
    os.environ.update(HOST_ENVIRONMENT)
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-dp-") as work, ExitStack() as stack:
        session = Session(out, Path(work), limit_seconds)
        probed, plain = plans(engines, trial, at_defaults)
        session.start(stack, (probed, plain))
        if probed.name not in session.urls:
            raise SystemExit("the probed server has not started: see its log")
        try:
            session.measure(probed, TRIAL_PHASES if trial else PHASES, table_seconds)
            keep_engines(session, probed, engines)
        finally:
            session.keep_log(probed)
        if plain.name in session.urls:
            compare_outputs(session, plain, probed, 50 if trial else PROMPT_TOKENS)
            keep_engines(session, probed, engines)


if __name__ == "__main__":
    main()
