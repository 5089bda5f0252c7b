"""Claim: the probe costs no throughput, no inter-token latency, little memory and little start-up.

    python -m benchmarks.overhead.overhead --shape qwen3-8b:24:6 \\
        --shape qwen3-30b-a3b:12:4 --out DIR

Each shape has a GPU of its own, a half of the CPU cores, and three servers that differ only in
the probe: ``off`` (no flag), ``passive`` (real steps are timed, nothing is injected) and ``active``
(the probe as ``--nfp-probe`` alone sets it up). They take turns, in random order, with the same
requests at the same moments; while one has its turn the others' processes are stopped, so that
neither their idle work nor their clocks matter.

Requests arrive by a Poisson process at 10, 50 and 90 % of the rate at which the plain server was
seen to be saturated. Reported are ratios over ``off`` with bootstrap 95 % intervals over rounds:
tokens/s, and the median and 99th percentile of all inter-token intervals of all rounds.

At the end: start-up time, resident memory of the processes, and GPU memory, which is what becomes
free as each server ends. Everything is written after each round; ``--summarize DIR`` prints it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.hosts import environment
from benchmarks.hosts.flag_text import split_flags
from benchmarks.overhead.overhead_servers import (
    ENDING_SECONDS,
    Settings,
    awake,
    gpu_used_mib,
    specs,
    wait_for_all,
)
from benchmarks.overhead.overhead_summary import (
    BASELINE,
    VARIANTS,
    Row,
    Turn,
    compare,
    print_result,
)
from benchmarks.overhead.probe_account import probe_state, require_probe, resident_mib
from benchmarks.serving import load, server, shapes
from benchmarks.serving.saturation import GIB, a_load, saturation
from benchmarks.serving.traffic import Arrivals
from vllm_nfp.start.process import STOP_SECONDS
from vllm_nfp.start.server import Server

SHARES = (0.1, 0.5, 0.9)
SETTLE_SECONDS = 0.2
"""Between two turns: aborted requests leave the server."""


def plan(shares: Sequence[float], rounds: int, seed: int = 0) -> Iterator[list[Turn]]:
    """Groups of turns, each variant once; loads go round and round, so that an early end costs all
    of them alike."""
    rng = random.Random(seed)
    for index in range(rounds):
        for share in shares:
            yield [Turn(share, index, v) for v in rng.sample(list(VARIANTS), len(VARIANTS))]


class Output:
    """The two files, written anew after each round: a run that is cut short keeps its rounds."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._settings = settings
        self._environment = environment.record()
        self.rows: list[Row] = []
        self.itl_us: dict[str, NDArray[np.uint32]] = {}
        self.servers: dict[str, dict[str, Any]] = {variant: {} for variant in VARIANTS}
        """Start-up time and memory by variant."""
        self.saturation: dict[str, Any] = {}

    def add(self, turn: Turn, row: Row, itl_us: NDArray[np.uint32]) -> None:
        """Keep one turn."""
        self.rows.append(row)
        self.itl_us[turn.key] = itl_us

    def write(self, complete: bool) -> None:
        """Write all that is there; ``complete`` adds the comparisons."""
        settings = self._settings
        result = {
            "schema": 2,
            "shape": settings.shape,
            "layers": settings.layers or shapes.layer_count(settings.shape),
            "settings": dataclasses.asdict(settings),
            "variants": VARIANTS,
            "environment": self._environment,
            "after": environment.gpu_state(),
            "complete": complete,
            "saturation": self.saturation,
            "servers": self.servers,
            "summary": [dataclasses.asdict(c) for c in compare(self.rows, self.itl_us)]
            if complete
            else [],
            "rounds": self.rows,
        }
        _replace(self.folder / f"{settings.name}.json", json.dumps(result).encode())
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".npz", delete=False) as file:
            np.savez_compressed(file, **self.itl_us)  # type: ignore[arg-type]
        Path(file.name).replace(self.folder / f"{settings.name}.npz")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def measure_turn(
    settings: Settings, model: str, url: str, turn: Turn, requests_per_second: float
) -> tuple[Row, NDArray[np.uint32]]:
    """Send one variant's load."""
    gpu, began = environment.gpu_state(), time.monotonic()
    seed = turn.round * 10 + round(10 * turn.share)
    work = a_load(settings, model, url, seed, settings.seconds)
    arrivals = Arrivals(work, requests_per_second * turn.share)
    result = load.run_open(arrivals, settings.warmup_seconds)
    row = {
        **dataclasses.asdict(turn),
        **result.summary(),
        "turn_seconds": time.monotonic() - began,
        "gpu_before": gpu,
    }
    if turn.variant != BASELINE:
        row["probe_after"] = probe_state(url)
    time.sleep(SETTLE_SECONDS)
    return row, result.itl_us


def measure(
    settings: Settings,
    model: str,
    servers: Mapping[str, Server],
    output: Output,
    deadline: float,
) -> None:
    """Find the saturation, then all rounds that fit before the deadline."""
    for variant, one in servers.items():
        if variant == "active":
            require_probe(one.url)
    for one in servers.values():
        one.child.pause()
    with awake(servers[BASELINE]) as one:
        output.saturation = saturation(settings, model, one.url)
    rate = output.saturation["requests_per_second"]
    print(f"{settings.name}: saturated at {rate:.1f} requests/s", flush=True)
    for one in servers.values():  # first requests of a kind are slower
        with awake(one):
            measure_turn(settings, model, one.url, Turn(0.5, settings.rounds, BASELINE), rate)
    longest = 0.0
    for turns in plan(settings.shares, settings.rounds):
        began = time.monotonic()
        if began + longest > deadline:
            break
        for turn in turns:
            with awake(servers[turn.variant]) as one:
                output.add(turn, *measure_turn(settings, model, one.url, turn, rate))
        if turns[0].share == settings.shares[-1]:
            output.write(complete=False)
        longest = max(longest, time.monotonic() - began)
    for one in servers.values():
        one.child.resume()


def end_one_by_one(servers: Mapping[str, Server], output: Output) -> None:
    """Stop the servers, and note the memory that each of them frees."""
    for variant, one in servers.items():
        figures = output.servers[variant]
        figures["resident_mib"] = resident_mib(one.child.pid)
        if variant != BASELINE:
            figures["probe"] = probe_state(one.url)
    for variant, one in servers.items():
        before = gpu_used_mib()
        one.child.stop()
        after = gpu_used_mib()
        if before is not None and after is not None:
            output.servers[variant]["gpu_mib"] = before - after


def run_shape(settings: Settings, out: Path, began: float) -> None:
    """Everything of one shape, on the GPU and the cores that this process may use."""
    output = Output(out, settings)
    deadline = began + settings.limit_seconds
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nfp-")))
        model = shapes.write_model(folder / settings.shape, settings.shape, settings.layers)
        servers = {
            variant: stack.enter_context(spec.start())
            for variant, spec in specs(settings, model, out).items()
        }
        for variant, seconds in wait_for_all(servers, deadline).items():
            output.servers[variant]["start_seconds"] = seconds
        print(f"{settings.name}: servers up after {time.monotonic() - began:.0f} s", flush=True)
        try:
            measure(settings, str(model), servers, output, deadline - ENDING_SECONDS)
            end_one_by_one(servers, output)
        finally:
            output.write(complete=True)
    print_result(out / f"{settings.name}.json")


@dataclass(frozen=True, slots=True)
class ShapeArgument:
    """One ``--shape NAME:LAYERS:KV_GIB``."""

    name: str
    layers: int | None
    kv_gib: float


def parse_shape(text: str) -> ShapeArgument:
    """Read one ``--shape``.

    Raises:
        click.BadParameter: for an unknown shape, or numbers that are none.
    """
    name, *rest = text.split(":")
    if name not in shapes.SHAPES:
        raise click.BadParameter(f"unknown shape {name!r}: known are {', '.join(shapes.SHAPES)}")
    try:
        layers, kv_gib = rest
        return ShapeArgument(name, int(layers) if layers else None, float(kv_gib))
    except ValueError:
        raise click.BadParameter(f"{text!r} must be NAME:LAYERS:KV_GIB") from None


def side_by_side(texts: Sequence[str], arguments: Sequence[str], limit_seconds: float) -> int:
    """One process for each shape, each with a GPU and its part of the cores; the worst exit code.

    All are ended when the time is up, or when this process is.
    """
    cores = sorted(os.sched_getaffinity(0))
    part = max(1, len(cores) // len(texts))
    children: list[subprocess.Popen[bytes]] = []
    try:
        for index, text in enumerate(texts):
            # A child inherits the cores of the moment.
            os.sched_setaffinity(0, cores[index * part : (index + 1) * part] or cores)
            children.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "benchmarks.overhead.overhead",
                        "--shape",
                        text,
                        *arguments,
                    ],
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": str(index)},
                )
            )
        os.sched_setaffinity(0, cores)
        deadline = time.monotonic() + limit_seconds
        return max(c.wait(max(1.0, deadline - time.monotonic())) for c in children)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        for child in children:
            child.terminate()
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2 * STOP_SECONDS)


@click.command()
@click.option("--shape", "shape_texts", multiple=True, help="NAME:LAYERS:KV_GIB")
@click.option("--prompt-tokens", type=int, default=512)
@click.option("--output-tokens", type=int, default=64)
@click.option("--saturating", type=int, default=192, help="Streams that saturate a server.")
@click.option("--rounds", type=int, default=20)
@click.option("--seconds", type=float, default=1.6, help="Of measured load, per turn.")
@click.option("--warmup-seconds", type=float, default=0.9, help="Of load before each.")
@click.option("--probe", "probe_json", default="{}", help="Further settings of the probes, JSON.")
@click.option(
    "--flags",
    default="--max-model-len 8192 --max-num-seqs 256 --gpu-memory-utilization 0.05",
    help="Further flags of vllm serve, for all.",
)
@click.option(
    "--limit-seconds", type=float, default=515.0, help="Ends the run, start and end included."
)
@click.option("--summarize", is_flag=True, help="Print the results in --out; measure nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(shape_texts: tuple[str, ...], out: Path, summarize: bool, **values: Any) -> None:
    """Measure the probe's cost, servers with and without it taking turns."""
    if summarize:
        for path in sorted(out.glob("overhead-*.json")):
            print_result(path)
        return
    began = time.monotonic()
    server.end_servers_on_sigterm()
    chosen = [parse_shape(text) for text in shape_texts]
    if not chosen:
        raise click.BadParameter("give at least one --shape NAME:LAYERS:KV_GIB")
    if len(chosen) > 1:
        arguments = ["--out", str(out)]
        for name, value in values.items():
            flag = {"probe_json": "probe"}.get(name, name.replace("_", "-"))
            arguments.append(f"--{flag}={value}")
        raise SystemExit(side_by_side(shape_texts, arguments, values["limit_seconds"] + 15.0))
    (shape,) = chosen
    settings = Settings(
        shape=shape.name,
        layers=shape.layers,
        kv_gib=shape.kv_gib,
        prompt_tokens=values["prompt_tokens"],
        output_tokens=values["output_tokens"],
        saturating=values["saturating"],
        shares=SHARES,
        rounds=values["rounds"],
        seconds=values["seconds"],
        warmup_seconds=values["warmup_seconds"],
        probe=json.loads(values["probe_json"]),
        flags=(
            *split_flags(values["flags"]),
            "--kv-cache-memory-bytes",
            str(int(shape.kv_gib * GIB)),
        ),
        limit_seconds=values["limit_seconds"],
    )
    run_shape(settings, out, began)


if __name__ == "__main__":
    main()
