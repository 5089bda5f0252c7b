"""Claim: a server with the probe runs for hours with flat memory, and leaks no file and no thread.

    python -m benchmarks.soak --shape qwen3-8b --layers 16 --seconds 3600 --out DIR

One server with the probe under Poisson arrivals, with pauses in which it is idle, scraped all the
while. Every few seconds each process's resident memory, open files and threads are noted. The first
part, in which caches fill, is left out; then the medians of the first and of the last quarter must
agree within what one allocation more or less makes. Writes soak.json; exit code 1 if not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import environment, load, server, shapes
from benchmarks.probe_account import probe_state, require_probe
from benchmarks.traffic import Arrivals, Load
from vllm_nfp.results import fetching
from vllm_nfp.start.ports import free_port

MOST_GROWTH = {"resident_mib": 48.0, "files": 8.0, "threads": 4.0}
"""Between the first and the last quarter, over all processes of the server."""
SETTLING_SHARE = 0.25
"""Part of the run, at its start, that does not count."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of the server at one moment."""

    seconds: float
    resident_mib: float
    files: int
    threads: int
    processes: int


def sample(leader: int, began: float) -> Sample:
    """Look at every process of the group that ``leader`` leads."""
    resident, files, threads, processes = 0.0, 0, 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) != leader:
                continue
            pages = int((folder / "statm").read_text().split()[1])
            resident += pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
            files += len(os.listdir(folder / "fd"))
            threads += int(fields[17])
            processes += 1
    return Sample(time.monotonic() - began, resident, files, threads, processes)


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Median of the last quarter minus that of the first, once the start is left out.

    Raises:
        ValueError: for fewer samples than quarters.
    """
    kept = samples[int(SETTLING_SHARE * len(samples)) :]
    part = len(kept) // 4
    if part == 0:
        raise ValueError(f"{len(samples)} samples are too few: run longer, or sample more often")
    return {
        name: statistics.median(getattr(s, name) for s in kept[-part:])
        - statistics.median(getattr(s, name) for s in kept[:part])
        for name in MOST_GROWTH
    }


def grown(samples: Sequence[Sample]) -> list[str]:
    """What has grown beyond its limit, in words; empty where all is flat."""
    return [
        f"{name} grew by {by:.0f}, more than {MOST_GROWTH[name]:.0f}"
        for name, by in growth(samples).items()
        if by > MOST_GROWTH[name]
    ]


def soak(
    leader: int, url: str, seconds: float, every: float, send: Callable[[], object]
) -> list[Sample]:
    """Send load and scrape for this long; what was seen of the processes meanwhile."""
    began = time.monotonic()
    samples = [sample(leader, began)]
    while (now := time.monotonic()) < began + seconds:
        send()
        fetching.fetch(url)
        time.sleep(max(0.0, now + every - time.monotonic()))
        samples.append(sample(leader, began))
    return samples


@click.command()
@click.option("--shape", default="tiny")
@click.option("--layers", type=int, default=None)
@click.option("--seconds", type=float, default=3600.0)
@click.option("--every", type=float, default=10.0, help="Seconds between two looks.")
@click.option("--requests-per-second", type=float, default=2.0)
@click.option("--probe", "probe_json", default="{}", help="Settings of the probe, JSON.")
@click.option("--flags", default="--max-model-len 4096", help="Further flags of vllm serve.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shape: str,
    layers: int | None,
    seconds: float,
    every: float,
    requests_per_second: float,
    probe_json: str,
    flags: str,
    out: Path,
) -> None:
    """Run one server under load and see that nothing grows."""
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-") as folder:
        model = shapes.write_model(Path(folder) / shape, shape, layers)
        spec = server.Spec(
            model, out / "soak.log", free_port(), tuple(flags.split()), json.loads(probe_json)
        )
        with server.running_together([spec]) as (one,):
            work = Load(
                one.url, str(model), shapes.vocab_size(shape), 1, 64, 64, max(1.0, 0.6 * every)
            )
            numbers = iter(range(1 << 30))

            def send() -> None:
                request = dataclasses.replace(work, seed=next(numbers))
                load.run_open(Arrivals(request, requests_per_second), 0.0)

            samples = soak(one.child.pid, one.url, seconds, every, send)
            require_probe(one.url)
            state = probe_state(one.url)
    problems = grown(samples)
    result = {
        "schema": 1,
        "environment": environment.record(),
        "growth": growth(samples),
        "problems": problems,
        "probe": state,
        "samples": [dataclasses.asdict(one) for one in samples],
    }
    (out / "soak.json").write_text(json.dumps(result), encoding="utf-8")
    print("\n".join(problems) or f"flat: {growth(samples)}")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
