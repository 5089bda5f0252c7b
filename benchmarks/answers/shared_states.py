"""Claim to test: layers of a probe may share recurrent states without being read faster.

    python -m benchmarks.answers.shared_states MODEL --out FILE.json

Times the same shapes with two probe engines on one runner, in turn. In one every layer has states
of its own, as in serving; in the other all layers work on one set. A ratio below 1 is what sharing
understates. MODEL is a directory with a config.json of a model with recurrent state; its weights
are random. More memory than a server's default may be needed: both engines' states are there at
once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.hosts import environment
from vllm_nfp.adapter.engines import runner_without_probe
from vllm_nfp.adapter.runners import view_of
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.probe.kv_check import wait_for
from vllm_nfp.session.start_probing import clock_of
from vllm_nfp.types import Module, Shape, Timing

CONTEXT = 512
MIB = 1 << 20


def apart_and_shared(view: Any, config: ProbeConfig) -> tuple[ProbeEngine, ProbeEngine]:
    """Two engines for one shape: each layer has states of its own; all work on the same ones."""
    limits = config.graph_limits()
    apart = ProbeEngine(view, clock_of(view), config, limits)
    states = apart.states
    if states is None:
        raise click.ClickException("the model has no layer with a recurrent state")
    one_layer = states.room.layer_bytes(config.batch_sizes[0], config.positions[-1])
    needed = states.room.layers * one_layer
    if states.held_bytes < needed:
        raise click.ClickException(
            f"states of all layers take {-(-needed // MIB)} MiB: raise --state-memory-mib"
        )
    shared = replace(config, state_memory_mib=max(1, -(-one_layer // MIB)))
    return apart, ProbeEngine(view, clock_of(view), shared, limits)


def time_in_turn(engines: Sequence[ProbeEngine], shape: Shape, runs: int) -> list[list[Timing]]:
    """Runs of one shape by each engine; all of them see the same clocks."""
    for engine in engines:
        while not engine.ready(shape):
            engine.make_ready([shape])
    found: list[list[Timing]] = [[] for _ in engines]
    for draw in range(runs):
        for engine, timings in zip(engines, found, strict=True):
            timings.append(wait_for(partial(engine.poll, engine.launch(shape, draw))))
    return found


def row_of(view: Any, config: ProbeConfig, shape: Shape, runs: int) -> dict[str, Any]:
    """Median times of one shape with states apart and shared, in microseconds."""
    counts = tuple(dict.fromkeys((1, shape.positions)))
    mine_alone = replace(config, batch_sizes=(shape.batch_size,), positions=counts)
    engines = apart_and_shared(view, mine_alone)
    for engine in engines:
        engine.prepare()
    timings = time_in_turn(engines, shape, runs)
    row: dict[str, Any] = {"batch_size": shape.batch_size, "positions": shape.positions}
    for name, engine, mine in zip(("apart", "shared"), engines, timings, strict=True):
        assert engine.states is not None
        row[name] = {
            "layers_apart": engine.states.layers_apart(shape.batch_size, shape.positions),
            "step_us": 1e6 * median(t.step_seconds for t in mine),
            "layer_us": 1e6 * median(t.modules[Module.LINEAR_ATTENTION] for t in mine),
            "execution": mine[0].execution,
        }
        engine.close()
    row["step_ratio"] = row["shared"]["step_us"] / row["apart"]["step_us"]
    return row


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--batch-sizes", default="1,8,32", show_default=True)
@click.option("--positions", default="1,4,8", show_default=True)
@click.option("--runs", default=50, show_default=True, help="Runs of each shape and engine.")
@click.option("--state-memory-mib", default=16384, show_default=True)
@click.option("--engine-args", default="{}", help="Arguments of vllm.LLM, as JSON.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(
    model: Path, batch_sizes: str, positions: str, runs: int, state_memory_mib: int,
    engine_args: str, out: Path,
) -> None:  # fmt: skip
    """Measure; see the module's text."""
    import torch

    batches, counts = ([int(n) for n in text.split(",")] for text in (batch_sizes, positions))
    config = ProbeConfig(
        batch_sizes=(1,), contexts=(CONTEXT,), max_positions=max(2, *counts),
        state_memory_mib=state_memory_mib, graph_memory_mib=2048, share_graph_pool=False,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    about, rows = environment.record(), []
    with runner_without_probe(model, json.loads(engine_args)) as runner, torch.inference_mode():
        for shape in (Shape(b, CONTEXT, n) for b in batches for n in counts):
            rows.append(row_of(view_of(runner), config, shape, runs))
            print(json.dumps(rows[-1]), flush=True)
            # What is known stays if the host's time ends here.
            out.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
