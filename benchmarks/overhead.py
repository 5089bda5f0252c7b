"""Claim: the probe stays within its budget and leaves inter-token latency alone.

    python -m benchmarks.overhead --shape qwen3-8b:36:14 --out DIR

Two servers share one GPU, one plain and one with the probe. In each round and for each level of
concurrency, the same load goes to one and then to the other, in random order, so that both see
the same clocks; the idle one uses no GPU time. ``--control`` leaves the probe out of both and so
shows the noise. Writes overhead-<shape>[-control].json with every turn and the summary, and .npz
with every inter-token time; prints medians over rounds and the paired ratio on/off with a
bootstrap 95 % interval.

With several ``--shape NAME:LAYERS:KV_GIB`` the servers of all shapes start together, and the shapes
are measured one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import environment, load, server, shapes
from vllm_nfp import scrape

SIDES = ("off", "on")
FIGURES = (
    "tokens_per_second",
    "itl_mean_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "itl_p99_ms",
    "itl_p999_ms",
    "ttft_p50_ms",
)
BOOTSTRAP_DRAWS = 4000
GIB = 1 << 30

Row = dict[str, Any]
"""One turn, JSON-serializable: level, round, side, the load's summary, the probe before and after.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared, and how long."""

    shape: str
    layers: int | None
    levels: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    rounds: int
    seconds: float
    warmup_seconds: float
    probe: Mapping[str, object] | None
    """None in a control run."""
    flags: tuple[str, ...]
    together: bool
    """Start both servers at once."""
    limit_seconds: float

    @property
    def name(self) -> str:
        """Stem of the output files."""
        return f"overhead-{self.shape}{'-control' if self.probe is None else ''}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's part of a round at one level."""

    level: int
    round: int
    side: str

    @property
    def key(self) -> str:
        """Name of its inter-token times in the .npz."""
        return f"B{self.level}-round{self.round}-{self.side}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure at one level, over rounds."""

    level: int
    figure: str
    rounds: int
    off: float
    on: float
    ratio: float
    """Median of the rounds' ratios on/off."""
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class ProbeCounters:
    """What the probe says of its own cost; it publishes every two seconds or so."""

    overhead_ratio: float | None
    gpu_seconds_total: float | None
    probes_total: Mapping[str, float]
    states: tuple[str, ...]


def plan(levels: tuple[int, ...], rounds: int, seed: int = 0) -> Iterator[tuple[Turn, Turn]]:
    """Pairs of turns; levels go round and round, so that an early end costs all of them alike."""
    rng = random.Random(seed)
    for index in range(rounds):
        for level in levels:
            first, second = rng.sample(SIDES, 2)
            yield Turn(level, index, first), Turn(level, index, second)


def ratio_interval(off: list[float], on: list[float]) -> tuple[float, float, float]:
    """Median of the paired ratios on/off and its bootstrap 95 % interval over rounds."""
    ratios = np.array(on) / np.array(off)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (BOOTSTRAP_DRAWS, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def compare(rows: list[Row]) -> list[Comparison]:
    """Every figure at every level; rounds that lack one side or the figure are left out."""
    return [
        comparison
        for level in sorted({row["level"] for row in rows})
        for figure in FIGURES
        if (comparison := _compare(rows, level, figure)) is not None
    ]


def client_was_late(row: Row) -> bool:
    """Whether this client, not the server, may have shaped the turn's intervals."""
    lag, interval = row["client_lag_p99_ms"], row["itl_p50_ms"]
    return lag is None or interval is None or lag > interval / 2


def _compare(rows: list[Row], level: int, figure: str) -> Comparison | None:
    values = {
        (row["round"], row["side"]): row[figure]
        for row in rows
        if row["level"] == level and row[figure] is not None
    }
    paired = sorted({r for r, _ in values if all((r, side) in values for side in SIDES)})
    if not paired:
        return None
    off, on = ([float(values[r, side]) for r in paired] for side in SIDES)
    ratio, lower, upper = ratio_interval(off, on)
    return Comparison(
        level, figure, len(paired), float(np.median(off)), float(np.median(on)), ratio, lower, upper
    )


def require_probe(url: str) -> None:
    """Refuse to measure a probe that has disabled itself: both sides would be plain servers.

    Raises:
        ServerError: if the server's probe is off.
    """
    if "disabled" in probe_state(url)["states"]:
        raise server.ServerError(f"the probe of {url} is disabled: its log says why")


def probe_state(url: str) -> dict[str, Any]:
    """The probe's own account, from a server's /metrics."""
    return dataclasses.asdict(probe_counters(scrape.fetch(url)))


def probe_counters(metrics: str) -> ProbeCounters:
    """The probe's own account, from a scrape's text; fields are None or empty where it is off."""
    ratio = server.samples(metrics, "vllm_nfp_overhead_ratio")
    seconds = server.samples(metrics, "vllm_nfp_probe_gpu_seconds_total")
    return ProbeCounters(
        overhead_ratio=ratio[0][1] if ratio else None,
        gpu_seconds_total=seconds[0][1] if seconds else None,
        probes_total={
            labels["outcome"]: value
            for labels, value in server.samples(metrics, "vllm_nfp_probes_total")
        },
        states=tuple(
            labels["state"]
            for labels, value in server.samples(metrics, "vllm_nfp_state")
            if value == 1.0
        ),
    )


class Output:
    """The two files, written anew after each round: a run that is cut short keeps its rounds."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._settings = settings
        self._environment = environment.record()
        self.rows: list[Row] = []
        self._itl_us: dict[str, NDArray[np.uint32]] = {}

    def add(self, turn: Turn, row: Row, itl_us: NDArray[np.uint32]) -> None:
        """Keep one turn."""
        self.rows.append(row)
        self._itl_us[turn.key] = itl_us

    def write(self, ended_early: bool) -> None:
        """Write all that is there."""
        settings = self._settings
        result = {
            "schema": 1,
            "shape": settings.shape,
            "layers": settings.layers or shapes.layer_count(settings.shape),
            "settings": dataclasses.asdict(settings),
            "environment": self._environment,
            "after": environment.gpu_state(),
            "probe": settings.probe,
            "ended_early": ended_early,
            "summary": [dataclasses.asdict(comparison) for comparison in compare(self.rows)],
            "rounds": self.rows,
        }
        (self.folder / f"{settings.name}.json").write_text(json.dumps(result), encoding="utf-8")
        np.savez_compressed(self.folder / f"{settings.name}.npz", **self._itl_us)  # type: ignore[arg-type]


def measure_turn(
    settings: Settings, model: str, url: str, turn: Turn
) -> tuple[Row, NDArray[np.uint32]]:
    """Send one side's load; both sides of a round get the same prompts."""
    before, gpu = probe_state(url), environment.gpu_state()
    began = time.monotonic()
    result = load.run(
        load.Load(
            url,
            model,
            shapes.vocab_size(settings.shape),
            turn.level,
            settings.prompt_tokens,
            settings.output_tokens,
            settings.seconds,
            seed=turn.round * 10_007 + turn.level,
        ),
        settings.warmup_seconds,
    )
    row = {
        **dataclasses.asdict(turn),
        **result.summary(),
        "turn_seconds": time.monotonic() - began,
        "gpu_before": gpu,
        "probe_before": before,
        "probe_after": probe_state(url),
    }
    return row, result.itl_us


def measure(
    settings: Settings, model: Path, servers: Mapping[str, server.Server], output: Output
) -> None:
    """Warm both sides up, then all rounds that fit into the limit."""
    if settings.probe is not None:
        require_probe(servers["on"].url)
    deadline = time.monotonic() + settings.limit_seconds
    for target in servers.values():
        for level in settings.levels:
            warm = dataclasses.replace(settings, seconds=1.0, warmup_seconds=0.5)
            measure_turn(warm, str(model), target.url, Turn(level, settings.rounds, "warm-up"))
    longest_pair = 0.0
    for pair in plan(settings.levels, settings.rounds):
        began = time.monotonic()
        if began + longest_pair > deadline:
            output.write(ended_early=True)
            return
        for turn in pair:
            output.add(turn, *measure_turn(settings, str(model), servers[turn.side].url, turn))
        output.write(ended_early=False)
        longest_pair = max(longest_pair, time.monotonic() - began)


def specs(settings: Settings, model: Path, out: Path) -> list[server.Spec]:
    """The two servers, alike but for the probe."""
    return [
        server.Spec(
            model,
            out / f"{settings.name}-{side}.log",
            port,
            settings.flags,
            settings.probe if side == "on" else None,
            # Side by side, they must not write the same compile cache.
            extra={"VLLM_CACHE_ROOT": str(model.parent / f"cache-{model.name}-{side}")}
            if settings.together
            else {},
        )
        for side, port in zip(SIDES, server.free_ports(len(SIDES)), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class ShapeArgument:
    """One ``--shape NAME[:LAYERS[:KV_GIB]]``."""

    name: str
    layers: int | None
    kv_gib: float | None


def parse_shape(text: str) -> ShapeArgument:
    """Read one ``--shape``.

    Raises:
        click.BadParameter: for an unknown shape, or numbers that are none.
    """
    name, *rest = text.split(":")
    if name not in shapes.SHAPES:
        raise click.BadParameter(f"unknown shape {name!r}: known are {', '.join(shapes.SHAPES)}")
    try:
        layers, kv_gib, *more = [*rest, "", ""] if len(rest) < 2 else rest
        if any(more):
            raise ValueError
        return ShapeArgument(
            name, int(layers) if layers else None, float(kv_gib) if kv_gib else None
        )
    except ValueError:
        raise click.BadParameter(f"{text!r} must be NAME[:LAYERS[:KV_GIB]]") from None


@click.command()
@click.option("--shape", "shape_texts", multiple=True, required=True, help="NAME[:LAYERS[:KV_GIB]]")
@click.option("--concurrency", default="1,8,32", help="Levels, separated by commas.")
@click.option("--prompt-tokens", type=int, default=900)
@click.option("--output-tokens", type=int, default=256)
@click.option("--rounds", type=int, default=6)
@click.option("--seconds", type=float, default=6.0, help="Of measured load, per side and round.")
@click.option("--warmup-seconds", type=float, default=2.0, help="Before each measured window.")
@click.option("--probe", "probe_json", default="{}", help="Settings of the probe, JSON.")
@click.option("--control", is_flag=True, help="No probe in either server.")
@click.option(
    "--flags",
    default="--max-model-len 20480 --max-num-seqs 256",
    help="Further flags of vllm serve, for all.",
)
@click.option(
    "--memory",
    type=float,
    default=0.45,
    help="GPU memory share of each server, unless KV_GIB lets all start at once.",
)
@click.option(
    "--limit-seconds",
    type=float,
    default=560.0,
    help="Ends the run, start of the servers included, after the last pair that fits.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shape_texts: tuple[str, ...],
    concurrency: str,
    prompt_tokens: int,
    output_tokens: int,
    rounds: int,
    seconds: float,
    warmup_seconds: float,
    probe_json: str,
    control: bool,
    flags: str,
    memory: float,
    limit_seconds: float,
    out: Path,
) -> None:
    """Measure the probe's cost, its servers on and off interleaved."""
    began = time.monotonic()
    server.end_servers_on_sigterm()
    chosen = [parse_shape(text) for text in shape_texts]
    together = all(shape.kv_gib is not None for shape in chosen)
    if len(chosen) > 1 and not together:
        raise click.BadParameter("several shapes need a KV_GIB each: NAME:LAYERS:KV_GIB")

    def settings_of(shape: ShapeArgument) -> Settings:
        fixed = ("--kv-cache-memory-bytes", str(int((shape.kv_gib or 0) * GIB)))
        share = ("--gpu-memory-utilization", "0.05" if together else str(memory))
        return Settings(
            shape.name,
            shape.layers,
            tuple(int(part) for part in concurrency.split(",")),
            prompt_tokens,
            output_tokens,
            rounds,
            seconds,
            warmup_seconds,
            None if control else json.loads(probe_json),
            (*shlex.split(flags), *share, *(fixed if together else ())),
            together,
            limit_seconds,
        )

    with tempfile.TemporaryDirectory(prefix="nfp-overhead-") as folder:
        _run([settings_of(shape) for shape in chosen], Path(folder), out, began)


def _run(all_settings: list[Settings], folder: Path, out: Path, began: float) -> None:
    """Start every server, then give each shape an equal part of the time that is left."""
    outputs = [Output(out, settings) for settings in all_settings]
    models = [shapes.write_model(folder / s.shape, s.shape, s.layers) for s in all_settings]
    wanted = [
        spec
        for settings, model in zip(all_settings, models, strict=True)
        for spec in specs(settings, model, out)
    ]
    with server.running(wanted, all_settings[0].together) as servers:
        print(f"servers up after {time.monotonic() - began:.0f} s", flush=True)
        for index, (settings, model) in enumerate(zip(all_settings, models, strict=True)):
            left = settings.limit_seconds - (time.monotonic() - began)
            share = left / (len(all_settings) - index)
            measure(
                dataclasses.replace(settings, limit_seconds=share),
                model,
                dict(zip(SIDES, servers[2 * index : 2 * index + 2], strict=True)),
                outputs[index],
            )
            print(f"{settings.name}:", flush=True)
            print_rounds(outputs[index].rows)


def print_rounds(rows: list[Row]) -> None:
    """Print the comparisons, a warning if the client was late, and the probe's own account."""
    console = Console(width=120)
    table = Table(title="probe off and on: medians over rounds")
    for name in ("concurrency", "figure", "rounds", "off", "on", "on/off [95 %]"):
        table.add_column(name)
    for line in compare(rows):
        table.add_row(
            str(line.level),
            line.figure,
            str(line.rounds),
            f"{line.off:.3f}",
            f"{line.on:.3f}",
            f"{line.ratio:.4f} [{line.lower:.4f}, {line.upper:.4f}]",
        )
    console.print(table)
    late = sum(client_was_late(row) for row in rows)
    if late:
        console.print(f"WARNING: client late in {late} of {len(rows)} turns: use more free cores")
    accounts = [row["probe_after"] for row in rows if row["side"] == "on" and "probe_after" in row]
    if accounts:
        console.print("probe:", accounts[-1])


if __name__ == "__main__":
    main()
