"""Claim: the probe stays within its budget and leaves inter-token latency alone.

    python benchmarks/overhead.py --shape qwen3-8b --out DIR

Two servers share one GPU, one plain and one with the probe. The same load goes to one at a time,
for some seconds each, in rounds of random order, so that both see the same clocks; the idle one
uses no GPU time. Writes DIR/overhead-<shape>.json with every round; prints the medians over rounds
and the paired ratio on/off with a bootstrap 95 % interval. ``--control`` leaves the probe out of
both servers and so shows the noise.
"""

from __future__ import annotations

import json
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environment, load, serving, shapes
from vllm_nfp import scrape

SIDES = ("off", "on")
FIGURES = (
    "tokens_per_second",
    "itl_mean_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "itl_p99_ms",
    "itl_p999_ms",
)


@click.command()
@click.option("--shape", type=click.Choice(list(shapes.SHAPES)), required=True)
@click.option("--layers", type=int, default=None)
@click.option("--concurrency", default="1,8,32")
@click.option("--prompt-tokens", type=int, default=900)
@click.option("--output-tokens", type=int, default=256)
@click.option("--rounds", type=int, default=6)
@click.option("--seconds", type=float, default=6.0, help="Of measured load, per side and round.")
@click.option("--probe", "probe_json", default="{}", help="Settings of the probe, JSON.")
@click.option("--control", is_flag=True, help="No probe in either server.")
@click.option(
    "--flags",
    default="--max-model-len 20480 --max-num-seqs 256",
    help="Further flags of vllm serve, for both.",
)
@click.option("--memory", type=float, default=0.45, help="GPU memory share of each server.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shape: str,
    layers: int | None,
    concurrency: str,
    prompt_tokens: int,
    output_tokens: int,
    rounds: int,
    seconds: float,
    probe_json: str,
    control: bool,
    flags: str,
    memory: float,
    out: Path,
) -> None:
    """Measure both sides, interleaved."""
    out.mkdir(parents=True, exist_ok=True)
    model = shapes.write_model(Path(tempfile.mkdtemp(prefix="nfp-overhead-")), shape, layers)
    probe = None if control else json.loads(probe_json)
    all_flags = [*flags.split(), "--gpu-memory-utilization", str(memory)]
    rows = []
    with ExitStack() as stack:
        # One after the other: each sizes its KV cache by the memory that it finds free.
        urls = {
            side: stack.enter_context(
                serving.server(
                    model,
                    out / f"overhead-{shape}-{side}.log",
                    all_flags,
                    probe if side == "on" else None,
                )
            )
            for side in SIDES
        }
        started = environment.record()
        rng = random.Random(0)
        for level in (int(part) for part in concurrency.split(",")):
            for index in range(rounds):
                for side in rng.sample(SIDES, 2):
                    work = load.Load(
                        urls[side],
                        str(model),
                        shapes.vocab_size(shape),
                        level,
                        prompt_tokens,
                        output_tokens,
                        seconds,
                        seed=index,
                    )
                    rows.append(
                        {
                            "level": level,
                            "round": index,
                            "side": side,
                            **load.run(work).summary(),
                            "probe": None if control else probe_state(urls["on"]),
                        }
                    )
                    _write(out, shape, layers, probe, started, rows)
    print_rounds(rows)


def _write(
    out: Path,
    shape: str,
    layers: int | None,
    probe: object,
    started: object,
    rows: list[dict[str, object]],
) -> None:
    result = {
        "shape": shape,
        "layers": layers or shapes.SHAPES[shape]["num_hidden_layers"],
        "environment": started,
        "after": environment.gpu_state(),
        "probe": probe,
        "rounds": rows,
    }
    name = f"overhead-{shape}{'' if probe is not None else '-control'}.json"
    (out / name).write_text(json.dumps(result))


def probe_state(url: str) -> dict[str, object]:
    """What the probe of a server says of itself."""
    status = scrape.parse(scrape.fetch(url)).statuses[0]
    return {
        "state": status.state,
        "overhead_ratio": status.overhead_ratio,
        "probes": dict(status.probes),
    }


def ratio_interval(off: list[float], on: list[float], draws: int = 4000) -> tuple[float, ...]:
    """Median of the paired ratios on/off and its bootstrap 95 % interval over rounds."""
    ratios = np.array(on) / np.array(off)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def print_rounds(rows: list[dict[str, object]]) -> None:
    """Print medians over rounds and paired ratios."""
    table = Table(title="probe off and on: medians over rounds")
    for name in ("concurrency", "figure", "off", "on", "on/off [95 %]"):
        table.add_column(name)
    for level in sorted({row["level"] for row in rows}):
        for figure in FIGURES:
            off, on = (
                [float(r[figure]) for r in rows if r["level"] == level and r["side"] == side]
                for side in SIDES
            )
            ratio, low, high = ratio_interval(off, on)
            table.add_row(
                str(level),
                figure,
                f"{median(off):.3f}",
                f"{median(on):.3f}",
                f"{ratio:.4f} [{low:.4f}, {high:.4f}]",
            )
    console = Console(width=120)
    console.print(table)
    console.print(rows[-1]["probe"])


if __name__ == "__main__":
    main()
