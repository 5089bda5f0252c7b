"""Claim: the probe costs a server no inter-token latency and no throughput, at any load.

    python -m benchmarks.switched --shape qwen3-8b --layers 24 --kv-gib 30 --out DIR
    python -m benchmarks.switched --shape llama-3.1-70b --layers 4 --kv-gib 2 \\
        --flags "--tensor-parallel-size 2 --max-model-len 8192 --max-num-seqs 128" --out DIR

One server serves all variants: its hooks are installed and removed
(:mod:`benchmarks.worker_extension`) every half second or so, in random order, while the load goes
on. So what differs from server to server and from minute to minute cancels, which it does not
between servers side by side (:mod:`benchmarks.overhead`, which has what this lacks: start-up, and a
server without the plugin).

Loads are random arrivals at 10, 50 and 90 % of the rate that saturates the server without hooks,
the same in each turn of a block, and as many streams as saturate it. An inter-token interval counts
if it is entirely within one turn. Reported are ratios over ``off`` with bootstrap 95 %
intervals over rounds of turns, and for the saturated server tokens/s. ``--summarize`` prints
the results in ``--out``.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import environment, load, server, shapes
from benchmarks.hooks import OFF, require_active
from benchmarks.kernel_sweep import wait_for
from benchmarks.load_result import Result, Window
from benchmarks.overhead_summary import Row, Turn
from benchmarks.probe_account import resident_mib
from benchmarks.saturation import GIB, SATURATION_SECONDS, Traffic, a_load, saturation
from benchmarks.switched_summary import SATURATED, SHARES, print_summary
from benchmarks.traffic import Arrivals, Load
from vllm_nfp.start.ports import free_port

EXTENSION = "benchmarks.worker_extension.SwitchedHooks"
VARIANTS = (OFF, "passive", "active")
GUARD_SECONDS = 0.03
"""After a switch: a step that was in flight when it came has left by then."""
ROUNDS_OF_BLOCK = 5
"""Rounds of all variants while one load goes on."""


@dataclass(frozen=True, slots=True)
class Settings(Traffic):
    """What is measured."""

    turn_seconds: float
    warmup_turns: int
    variants: tuple[str, ...]
    probe: Mapping[str, object]
    flags: tuple[str, ...]
    limit_seconds: float
    measure_seconds: float
    awaited: Path | None = None
    attach_only: bool = False


class Remote:
    """The server's workers, asked over HTTP; answers are those of all ranks."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/collective_rpc"

    def call(self, method: str, *arguments: str, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Ask while nothing else goes on."""
        request = urllib.request.Request(
            self._url,
            json.dumps({"method": method, "args": arguments}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return _results(json.load(answer))

    async def switch(self, session: aiohttp.ClientSession, variant: str) -> list[dict[str, Any]]:
        """Switch between two steps of the load."""
        body = {"method": "nfp_switch", "args": [variant]}
        async with session.post(self._url, json=body) as answer:
            answer.raise_for_status()
            return _results(await answer.json())


def _results(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(result) for result in answer["results"]]


class Output:
    """The two files, written anew after each block."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = str(folder / f"switched-{settings.shape}")
        self._fixed = {"settings": {**dataclasses.asdict(settings), "awaited": None}}
        self._environment = environment.record()
        self.rows: list[Row] = []
        self.itl_us: dict[str, NDArray[np.uint32]] = {}
        self.about: dict[str, Any] = {}
        """Saturation, start-up and memory."""

    def add(self, turn: Turn, result: Result, cost: Mapping[str, Any]) -> None:
        """Keep one turn."""
        self.itl_us[turn.key] = result.itl_us
        self.rows.append({**dataclasses.asdict(turn), **result.summary(), **cost})

    def write(self) -> None:
        """Write all that is there."""
        record = {
            **self._fixed,
            "environment": self._environment,
            "after": environment.gpu_state(),
            **self.about,
            "rounds": self.rows,
        }
        Path(f"{self._stem}.json").write_text(json.dumps(record), encoding="utf-8")
        np.savez_compressed(f"{self._stem}.npz", **self.itl_us)  # type: ignore[arg-type]


def measure_block(
    settings: Settings,
    work: Load | Arrivals,
    remote: Remote,
    share: float,
    first: int,
    output: Output,
) -> None:
    """One load that goes on while the variants take turns."""
    turns: list[tuple[Turn, list[dict[str, Any]]]] = []

    async def take_turns(session: aiohttp.ClientSession) -> list[Window]:
        windows, ends = [], time.perf_counter()
        for turn in plan(share, first, settings.variants):
            spent = await remote.switch(session, turn.variant)
            turns.append((turn, spent))
            await load.watch(GUARD_SECONDS)
            # In step with the arrivals, however long the switch took.
            ends += settings.turn_seconds
            windows.append(await load.watch(max(GUARD_SECONDS, ends - time.perf_counter())))
        turns.append((turns[-1][0], await remote.switch(session, OFF)))
        return windows

    longest = (ROUNDS_OF_BLOCK * len(settings.variants) + 2) * settings.turn_seconds
    warmup = settings.warmup_turns * settings.turn_seconds
    results = load.run_windows(work, warmup, take_turns, longest)
    for (turn, _), (_, spent), result in zip(turns, turns[1:], results, strict=False):
        hooks = spent[0]["hooks"].get(turn.variant, {"seconds": 0.0, "steps": 0, "median_us": {}})
        cost = {f"hook_{name}": value for name, value in hooks.items()}
        output.add(turn, result, {**cost, "resident_mib": spent[0]["resident_mib"]})


def plan(share: float, first: int, variants: Sequence[str] = VARIANTS) -> Iterator[Turn]:
    """Each variant once in every round."""
    rng = random.Random(first)
    for number in range(first, first + ROUNDS_OF_BLOCK):
        for variant in rng.sample(variants, len(variants)):
            yield Turn(share, number, variant)


def measure(settings: Settings, model: str, url: str, output: Output, deadline: float) -> None:
    """Attach, find the saturation, then blocks of all loads as long as there is time."""
    remote = Remote(url)
    run_dir = {name: str(Path(model).parent / name) for name in VARIANTS}
    probe = {
        name: {**settings.probe, "passive": name == "passive", "run_dir": run_dir[name]}
        for name in settings.variants
        if name != OFF
    }
    answers = remote.call("nfp_attach", json.dumps(probe))
    require_active(answers)
    output.about["attached"] = answers
    output.about["account"] = remote.call("nfp_account")
    output.write()
    if settings.attach_only:
        return
    if settings.awaited is not None:
        wait_for(settings.awaited)
    deadline = min(deadline, time.monotonic() + settings.measure_seconds)
    found = output.about["saturation"] = saturation(settings, model, url, warmup_seconds=1.5)
    rate = found["requests_per_second"]
    print(f"attached; saturated at {rate:.1f} requests/s", flush=True)
    number, longest = 0, 0.0
    while time.monotonic() + longest < deadline:
        began = time.monotonic()
        for share in SHARES:
            work: Load | Arrivals
            work = streams = a_load(settings, model, url, number + 1, SATURATION_SECONDS)
            if share != SATURATED:
                work = Arrivals(streams, rate * share, settings.turn_seconds)
            measure_block(settings, work, remote, share, number, output)
            time.sleep(0.3)  # aborted requests leave
        number += ROUNDS_OF_BLOCK
        output.about["account"] = remote.call("nfp_account")
        output.write()
        longest = max(longest, time.monotonic() - began)


def run(settings: Settings, out: Path) -> None:
    """Everything, server and load."""
    began = time.monotonic()
    output = Output(out, settings)
    with tempfile.TemporaryDirectory(prefix="nfp-") as folder:
        model = shapes.write_model(Path(folder) / "model", settings.shape, settings.layers)
        for name in VARIANTS[1:]:
            (Path(folder) / name).mkdir()
        spec = server.Spec(
            model,
            out / f"switched-{settings.shape}.log",
            free_port(),
            (*settings.flags, "--worker-extension-cls", EXTENSION),
            extra={"VLLM_SERVER_DEV_MODE": "1", "VLLM_CACHE_ROOT": str(Path(folder) / "cache")},
        )
        with spec.start() as one:
            one.wait_until_healthy(settings.limit_seconds)
            output.about["start_seconds"] = time.monotonic() - began
            print(f"server up after {time.monotonic() - began:.0f} s", flush=True)
            output.about["resident_mib_before"] = resident_mib(one.child.pid)
            measure(settings, str(model), one.url, output, began + settings.limit_seconds)
            output.about["resident_mib_after"] = resident_mib(one.child.pid)
            output.write()


@click.command()
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=None)
@click.option("--kv-gib", type=float, default=20.0)
@click.option("--prompt-tokens", type=int, default=512)
@click.option("--output-tokens", type=int, default=128)
@click.option("--saturating", type=int, default=128, help="Streams that saturate the server.")
@click.option("--turn-seconds", type=float, default=0.5)
@click.option("--warmup-turns", type=int, default=2, help="Of load before each block.")
@click.option("--no-passive", is_flag=True, help="Compare the active probe alone.")
@click.option(
    "--wait-for", "awaited", type=click.Path(path_type=Path), help="Attach, and wait for this file."
)
@click.option("--measure-seconds", type=float, default=240.0, help="At most, after attaching.")
@click.option("--probe", "probe_json", default="{}", help="Further settings of the probe, JSON.")
@click.option(
    "--flags",
    default="--max-model-len 8192 --max-num-seqs 128 --gpu-memory-utilization 0.05",
    help="Further flags of vllm serve.",
)
@click.option("--limit-seconds", type=float, default=400.0, help="Ends by then, start included.")
@click.option("--attach-only", is_flag=True, help="Attach, record memory, and end.")
@click.option("--summarize", is_flag=True, help="Print the results in --out; measure nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    out: Path, summarize: bool, probe_json: str, flags: str, no_passive: bool, **values: Any
) -> None:
    """Measure the probe's cost by switching one server's hooks on and off."""
    if not summarize:
        server.end_servers_on_sigterm()
        kv_bytes = str(int(values["kv_gib"] * GIB))
        settings = Settings(
            probe=json.loads(probe_json),
            variants=(OFF, "active") if no_passive else VARIANTS,
            flags=(*shlex.split(flags), "--kv-cache-memory-bytes", kv_bytes),
            **values,
        )
        run(settings, out)
    for path in sorted(out.glob("switched-*.json")):
        print_summary(path)


if __name__ == "__main__":
    main()
