"""Claim: under draft control, a probe that publishes does not hold the engine core's steps up.

    python -m benchmarks.control_gaps --base fcc10c7 --worker shared --out DIR
    python -m benchmarks.control_gaps --shape qwen3-8b --layers 24 \\
        --batch-sizes 1,2,4,8,16,32,64,128 --contexts 1024,2048,4096,8192 \\
        --flags "--max-model-len 16384 --gpu-memory-utilization 0.4" --out DIR

Two servers of the same model with n-gram drafts, ``--nfp-draft-control`` and 8 x 4 probed cells,
one with vllm-nfp as it was at ``--base``, one as it is now. They take turns under the same load
while the processes of the other are stopped. A plugin (:mod:`benchmarks.gap_recorder`) notes in the
engine core when steps end, and what the probe and the controller do meanwhile.

A gap is the time from the end of one step to the end of the next while requests run. Left out are
gaps with a new request in them, and those with a pair of probes, which delays a step by design.
Reported are the gaps that meet the reporter of the controller (where the base reads the probe's
snapshot), those that meet a publish of the probe and not the reporter, and the others; and what
each piece of background work takes of the CPU. ``--worker`` chooses where the worker lives: in the
engine core's process, as with one GPU, or in one of its own, as with several. On a shared CPU only
the comparison counts. ``--summarize`` prints what lies in ``--out``.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import environment, load, server, shapes
from benchmarks.gap_recorder import FOLDER_ENV_VAR, MOST_RECORDS, RECORD, What
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import START_SECONDS

ROOT = Path(__file__).resolve().parents[1]
SPECULATION = {
    "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 2,
}  # fmt: skip
SHARED, APART = "shared", "apart"
WORKERS: Mapping[str, Mapping[str, str]] = {
    # vLLM's CPU platform takes a process for the worker otherwise; the server's core has its own.
    SHARED: {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    APART: {},
}
GUARD_SECONDS = 0.3
"""After a server was woken up."""
BOUNDS_MS = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, np.inf)
BAR = 40
KINDS = ("meets the reporter", "meets a publish", "others")
FILE = "control-gaps.json"
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    shape: str
    layers: int | None
    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    streams: int
    output_tokens: int
    publish_seconds: float
    startup_seconds: float
    overhead_budget: float
    turn_seconds: float
    rounds: int
    keep_profiles: bool
    worker: str
    flags: tuple[str, ...]

    @property
    def probe(self) -> dict[str, object]:
        """Settings of the probe."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "contexts": list(self.contexts),
            "publish_seconds": self.publish_seconds,
            "startup_seconds": self.startup_seconds,
            "overhead_budget": self.overhead_budget,
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """A time in which one server was under load; seconds of the monotonic clock."""

    side: str
    begin: float
    end: float


def code_of(commit: str, folder: Path) -> Path:
    """The package as it was at a commit, in a folder for PYTHONPATH."""
    packed = subprocess.run(
        ["git", "archive", commit, "vllm_nfp"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def add_plugin(folder: Path) -> Path:
    """A folder that, on PYTHONPATH, has vLLM load the recorder."""
    info = folder / "nfp_bench-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nfp-bench\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nnfp_bench = benchmarks.gap_recorder:register\n"
    )
    return folder


def spec_of(settings: Settings, model: Path, side: str, code: Path, out: Path) -> server.Spec:
    """One server: the package of its side, and this folder's benchmarks."""
    records = out / f"records-{side}"
    records.mkdir(parents=True, exist_ok=True)
    plugin = add_plugin(model.parent / f"plugin-{side}")
    paths = (str(code), str(ROOT), str(plugin), os.environ.get("PYTHONPATH", ""))
    return server.Spec(
        model,
        out / f"server-{side}.log",
        free_port(),
        (
            "--speculative-config", json.dumps(SPECULATION), "--nfp-draft-control",
            "--max-num-seqs", str(max(settings.streams, *settings.batch_sizes)),
            "--distributed-executor-backend", "uni" if settings.worker == SHARED else "mp",
            *settings.flags,
        ),
        settings.probe,
        out / f"kept-{side}" if settings.keep_profiles else None,
        {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONSAFEPATH": "1",  # the folder that this runs in comes first otherwise
            FOLDER_ENV_VAR: str(records),
            **WORKERS[settings.worker],
        },
    )  # fmt: skip


def measure(settings: Settings, base: str, out: Path) -> None:
    """Start both servers, and have them take turns."""
    with tempfile.TemporaryDirectory(prefix="nfp-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        code = {"base": code_of(base, folder / "base"), "now": ROOT}
        model = shapes.write_model(folder / "model", settings.shape, settings.layers)
        servers = {}
        for side, path in code.items():
            spec = spec_of(settings, model, side, path, out)
            one = servers[side] = stack.enter_context(spec.start())
            one.wait_until_healthy(START_SECONDS + settings.startup_seconds)
            print(f"{side}: up", flush=True)
            one.child.pause()
        turns = []
        for number in range(settings.rounds):
            for side in ("base", "now") if number % 2 else ("now", "base"):
                servers[side].child.resume()
                turns.append(_turn(settings, side, str(model), servers[side].url, number))
                servers[side].child.pause()
        for one in servers.values():
            one.child.resume()
        metrics = {side: one.metrics() for side, one in servers.items()}
    record = {
        "settings": dataclasses.asdict(settings),
        "environment": environment.record(),
        "base": base,
        "now": environment.commit(),
        "turns": [dataclasses.asdict(turn) for turn in turns],
        "metrics": {
            side: [line for line in text.splitlines() if "vllm_nfp_probes_total{" in line]
            for side, text in metrics.items()
        },
        "points": {side: text.count("\nvllm_nfp_samples{") for side, text in metrics.items()},
    }
    (out / FILE).write_text(json.dumps(record), encoding="utf-8")
    for side in code:
        _pack(out, side)


def _turn(settings: Settings, side: str, model: str, url: str, number: int) -> Turn:
    time.sleep(GUARD_SECONDS)
    work = load.Load(
        url, model, shapes.vocab_size(settings.shape), settings.streams, 16,
        settings.output_tokens, settings.turn_seconds, seed=number,
    )  # fmt: skip
    window = load.run(work, GUARD_SECONDS).window
    time.sleep(GUARD_SECONDS)  # aborted requests leave
    return Turn(side, window.begin, window.end)


def _pack(out: Path, side: str) -> None:
    """The records of all processes of a server, in one small file."""
    folder = out / f"records-{side}"
    dtype = [("what", "<i8"), *((name, "<f8") for name in ("begin", "end", "first", "second"))]
    arrays = []
    for path in sorted(folder.glob("*.bin")):
        found = np.frombuffer(path.read_bytes(), dtype)
        assert RECORD.size * MOST_RECORDS == found.nbytes
        arrays.append(found[found["what"] > 0])
        path.unlink()
    folder.rmdir()
    whole = np.concatenate(arrays)
    np.savez_compressed(out / f"records-{side}.npz", records=whole[np.argsort(whole["end"])])


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps of one server, by what they meet; milliseconds."""

    by_kind: Mapping[str, Floats]
    probed: int
    """Gaps left out since they held a pair of probes."""


def gaps_of(records: Any, turns: Sequence[Turn]) -> Gaps:
    """Sort the gaps within the turns by what went on meanwhile."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    probed = 0
    steps = records[records["what"] == What.STEP]
    probes = _spans(records, What.PROBE)
    reports = _spans(records, What.READ, What.WRITE_CONTROL)
    publishes = _spans(records, What.PUBLISH)
    for turn in turns:
        ends = steps[(steps["end"] >= turn.begin) & (steps["end"] <= turn.end)]
        for one, two in itertools.pairwise(ends):
            begin, end = float(one["end"]), float(two["end"])
            if one["first"] == 0 or two["second"] > 0:
                continue  # nothing ran, or a prompt was read
            if _meets(probes, begin, end):
                probed += 1
            elif _meets(reports, begin, end):
                found[KINDS[0]].append(1e3 * (end - begin))
            elif _meets(publishes, begin, end):
                found[KINDS[1]].append(1e3 * (end - begin))
            else:
                found[KINDS[2]].append(1e3 * (end - begin))
    return Gaps({kind: np.array(times) for kind, times in found.items()}, probed)


def _spans(records: Any, *whats: What) -> tuple[Floats, Floats]:
    """Begins and ends, ascending; those that touch are one."""
    chosen = records[np.isin(records["what"], whats)]
    spans: list[list[float]] = []
    for begin, end in sorted(zip(chosen["begin"], chosen["end"], strict=True)):
        if spans and begin <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([begin, end])
    table = np.array(spans).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _meets(spans: tuple[Floats, Floats], begin: float, end: float) -> bool:
    begins, ends = spans
    first = int(np.searchsorted(ends, begin))
    return first < len(begins) and bool(begins[first] <= end)


def costs_of(records: Any, turns: Sequence[Turn]) -> Iterator[tuple[What, Floats, Floats]]:
    """For each piece of work within the turns: CPU milliseconds, and of the longest stretch."""
    inside = np.zeros(len(records), dtype=bool)
    for turn in turns:
        inside |= (records["begin"] >= turn.begin) & (records["end"] <= turn.end)
    for what in What:
        chosen = records[inside & (records["what"] == what)]
        if what not in (What.STEP, What.PROBE) and len(chosen):
            yield what, 1e3 * chosen["first"], 1e3 * chosen["second"]


def print_summary(out: Path) -> None:
    """Both servers side by side."""
    record = json.loads((out / FILE).read_text(encoding="utf-8"))
    console = Console(width=130)
    gaps, costs = {}, {}
    for side in ("base", "now"):
        turns = [Turn(**turn) for turn in record["turns"] if turn["side"] == side]
        with np.load(out / f"records-{side}.npz") as stored:
            records = stored["records"]
        gaps[side], costs[side] = gaps_of(records, turns), list(costs_of(records, turns))
    console.print(f"base is {record['base']}, now is {record['now']}; points {record['points']}")
    table = Table(title=f"gaps between steps, ms; worker {record['settings']['worker']}")
    for name in ("", "gaps", "n", "share", "median", "p90", "p99", "max"):
        table.add_column(name, justify="right")
    for side, found in gaps.items():
        total = sum(map(len, found.by_kind.values()))
        for kind, times in found.by_kind.items():
            if len(times):
                levels = [f"{x:.2f}" for x in (*np.percentile(times, (50, 90, 99)), times.max())]
                share = f"{100 * len(times) / total:.1f} %"
                table.add_row(side, kind, str(len(times)), share, *levels)
        every = np.concatenate(list(found.by_kind.values()))
        levels = [f"{x:.2f}" for x in (*np.percentile(every, (50, 90, 99)), every.max())]
        table.add_row(side, "all", str(total), "", *levels)
    console.print(table)
    for kind in KINDS:
        console.print(f"\n{kind}: share of the gaps by their length, base and now")
        for line in _histogram(*(gaps[side].by_kind[kind] for side in gaps)):
            console.print(line, highlight=False)
    cpu = Table(title="CPU of one piece of work, ms: median and largest, and longest stretch")
    for name in ("", "work", "n", "median", "largest", "stretch, median", "stretch, largest"):
        cpu.add_column(name, justify="right")
    for side, rows in costs.items():
        for what, total_ms, stretch in rows:
            numbers = (np.median(total_ms), total_ms.max(), np.median(stretch), stretch.max())
            cpu.add_row(side, what.name.lower(), str(len(stretch)), *(f"{x:.2f}" for x in numbers))
    console.print(cpu)


def _histogram(base: Floats, now: Floats) -> Iterator[str]:
    counts = [np.histogram(times, BOUNDS_MS)[0] / max(1, len(times)) for times in (base, now)]
    for low, high, *shares in zip(BOUNDS_MS, BOUNDS_MS[1:], *counts, strict=False):
        if max(shares) > 0.0:
            name = f"{low:>4g} to {high:<4g} ms"
            for side, share in zip(("base", "now "), shares, strict=True):
                yield f"  {name} {side} {100 * share:6.2f} % {'#' * round(BAR * share)}"
                name = " " * len(name)


def _numbers(_: Any, __: Any, text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


@click.command()
@click.option("--base", default="fcc10c7", help="Commit that the present one is compared with.")
@click.option("--shape", default="tiny-dense")
@click.option("--layers", type=int, default=None)
@click.option("--batch-sizes", callback=_numbers, default="1,2,3,4,6,8,12,16")
@click.option("--contexts", callback=_numbers, default="32,64,128,256")
@click.option("--streams", type=int, default=4)
@click.option("--output-tokens", type=int, default=400)
@click.option("--publish-seconds", type=float, default=0.5)
@click.option("--startup-seconds", type=float, default=300.0, help="At most, to fill the grid.")
@click.option("--overhead-budget", type=float, default=0.01)
@click.option("--turn-seconds", type=float, default=10.0)
@click.option("--rounds", type=int, default=10)
@click.option("--keep-profiles", is_flag=True, help="With --nfp-output-dir.")
@click.option("--worker", type=click.Choice([SHARED, APART]), default=SHARED)
@click.option(
    "--flags", default="--enforce-eager --max-model-len 1024 --dtype float32", show_default=True
)
@click.option("--summarize", is_flag=True, help="Print what lies in --out, and measure nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(base: str, summarize: bool, out: Path, flags: str, **settings: Any) -> None:
    """Measure gaps between steps; see the module's text."""
    if not summarize:
        out.mkdir(parents=True, exist_ok=True)
        measure(Settings(**settings, flags=tuple(shlex.split(flags))), base, out.resolve())
    print_summary(out)


if __name__ == "__main__":
    main()
