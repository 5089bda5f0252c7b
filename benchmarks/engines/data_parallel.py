"""Claim: the probe works on engines that take their steps together (data parallelism with experts).

    python -m benchmarks.engines.data_parallel --out DIR

On a machine with two GPUs, or four with ``--engines 4``; with ``--tensor 2`` each engine takes two.
Two servers start side by side, eight layers of a Qwen3-30B-A3B shape on each engine and the experts
spread over all: ``dp-ep`` with the probe, ``off`` without it.

1. ``dp-ep`` under load on all engines: NFP and time of every module, one column for each engine;
   every pair is kept.
2. The same greedy prompts to both servers, one after the other: one engine serves, and the others
   run dummy batches. Token ids and log-probabilities must be equal.

``pairs.json`` has how many pairs each engine has measured after each part, in serving
(``measured``) and while it had no request (``idle``), and whether all engines have measured the
same ones in the same order.

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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.engines.tensor_parallel import (
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
from benchmarks.hosts.packing import pack
from benchmarks.serving import server
from benchmarks.serving.table_servers import Plan, Session

SHAPE, LAYERS = "qwen3-30b-a3b", 8
PHASES = ((16, 900), (64, 900), (2, 900))
"""(streams, prompt tokens) of the load on two engines."""
TRIAL_EXTENSION = "wave_extension.WaveExtension"
ONE_API_SERVER = ("--api-server-count", "1")
"""By default vLLM starts one for each engine. On two cores each takes 10 s to import vLLM."""
TRIAL_PHASES = ((4, 50), (2, 50))
KV_GIB = 1.2


def plans(
    engines: int, trial: bool = False, at_defaults: bool = False, tensor: int = 1
) -> tuple[Plan, Plan]:
    """With the probe, and without it.

    Args:
        engines: that share the experts.
        trial: a tiny model on CPUs.
        at_defaults: without any setting of the probe.
        tensor: ranks of each engine.
    """
    settings = {} if at_defaults else TRIAL_TABLE if trial else TABLE
    spread = ("--data-parallel-size", str(engines))

    def plan(name: str, probe: Mapping[str, object] | None) -> Plan:
        if trial:
            around = {**HOST_ENVIRONMENT, **TRIAL_ENVIRONMENT}
            extension = ("--worker-extension-cls", TRIAL_EXTENSION)
            tried = (*TRIAL_FLAGS, *ONE_API_SERVER, *extension, *spread)
            return Plan(name, "tiny-moe", 2, 0.05, probe, tensor, True, tried, around)
        flags = (*FLAGS, *spread)
        return Plan(name, SHAPE, LAYERS, KV_GIB, probe, tensor, True, flags, HOST_ENVIRONMENT)

    return plan("dp-ep", settings), plan("off", None)


def same_pairs(samples: Sequence[Path]) -> dict[str, Any]:
    """Whether engines have measured the same pairs in the same order.

    Args:
        samples: the file of each engine. One may have been written a little later than another, so
            that the last pairs of the longer ones are left out.
    """
    orders = []
    for path in samples:
        rows = map(json.loads, path.read_text().splitlines())
        orders.append([(row["many"]["shape"], row["baseline_first"]) for row in rows])
    shared = min(map(len, orders))
    alike = all(order[:shared] == orders[0][:shared] for order in orders)
    return {"compared": shared, "alike": alike}


def keep_engines(
    session: Session, plan: Plan, engines: int, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write each engine's snapshot and pairs; print their tables side by side.

    Args:
        before: what this has returned after the load, if these follow other prompts.

    Returns:
        What ``pairs.json`` has now: state, reason and counted pairs of each engine.
    """
    snapshots: dict[str, Any] = {}
    folder = session.work / f"probe-{plan.name}"
    for engine in range(engines):
        snapshots[f"moe-engine-{engine}"] = json.loads(
            (folder / f"engine-{engine}.json").read_text()
        )
        pack(folder / f"samples-{engine}.jsonl", session.out / f"engine-{engine}-pairs.jsonl.gz")
    session.write("engines", {"environment": session.environment, "snapshots": snapshots})
    found = {name: (one["state"], one["reason"], one["probes"]) for name, one in snapshots.items()}
    kept = {"load": found} if before is None else {**before, "outputs": found}
    kept["order"] = same_pairs([folder / f"samples-{engine}.jsonl" for engine in range(engines)])
    session.write("pairs", kept)
    session.say(f"order of pairs: {kept['order']}")
    for name, what in found.items():
        session.say(f"{name}: {what}")
    print_side_by_side(snapshots, session.out / "side-by-side.txt")
    return kept


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--engines", type=click.IntRange(2, 8), default=2, help="That share the experts.")
@click.option("--tensor", type=click.IntRange(1, 4), default=1, help="GPUs of each engine.")
@click.option("--table-seconds", type=float, default=45.0, help="Load on the probed server.")
@click.option("--limit-seconds", type=float, default=400.0, help="Of everything.")
@click.option("--at-defaults", is_flag=True, help="Without any setting of the probe.")
@click.option("--trial", is_flag=True, help="A tiny model on CPUs.")
def main(
    out: Path,
    engines: int,
    tensor: int,
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
        probed, plain = plans(engines, trial, at_defaults, tensor)
        session.start(stack, (probed, plain))
        if probed.name not in session.urls:
            raise SystemExit("the probed server has not started: see its log")
        try:
            session.measure(probed, TRIAL_PHASES if trial else PHASES, table_seconds)
            after_load = keep_engines(session, probed, engines)
        finally:
            session.keep_log(probed)
        if plain.name in session.urls:
            compare_outputs(session, plain, probed, 50 if trial else PROMPT_TOKENS)
            keep_engines(session, probed, engines, after_load)


if __name__ == "__main__":
    main()
