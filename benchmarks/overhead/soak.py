"""Claim: a server with the probe runs for hours with flat memory, and answers as at its start.

    python -m benchmarks.overhead.soak --shape qwen3-8b --minutes 60 --out DIR
    python -m benchmarks.overhead.soak --real --minutes 60 --out DIR \\
        --flags '--speculative-config {"method":"ngram","num_speculative_tokens":3}'
    python -m benchmarks.overhead.soak --real --without-probe --out DIR  # vLLM's own growth

One server with the probe under mixed traffic (:mod:`benchmarks.overhead.soak_traffic`): short and
long prompts, bursts that are aborted, pauses in which it is idle. It is scraped all the while.
Every few seconds each process's resident memory, open files and threads are noted, and the GPU's
memory. The first part, in which caches fill, is left out; then the medians of the first and of the
last quarter must agree within what one allocation more or less makes. A fixed set of prompts is
sent one by one before the traffic and after it: tokens and log-probabilities must be the same.
``--real`` serves a small real model of a package (:mod:`vllm_nfp.real_model`), whose prompts are
text.

By default two libraries keep ever more memory on a CPU: oneDNN a program for each number of tokens
that a step had, and glibc what was freed. vLLM's worker then grows without the probe too
(results/2026-11-29-soak-cpu-again). So the server has ``STEADY_MEMORY``, and what still grows is
memory that something holds. ``--default-memory`` leaves it out.

Writes soak.json; exit code 1 if something grew or an answer changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.hosts.flag_text import split_flags
from benchmarks.hosts.process_memory import process_mib
from benchmarks.overhead import soak_traffic
from benchmarks.overhead.probe_account import probe_state, require_probe
from benchmarks.serving import server, shapes
from benchmarks.serving.traffic import Load
from benchmarks.serving.user_traffic import model_card
from vllm_nfp.real_model import write_real_model
from vllm_nfp.results import fetching
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import Server

MOST_GROWTH = {"resident_mib": 48.0, "files": 8.0, "threads": 4.0, "gpu_mib": 64.0}
"""Between the first and the last quarter, over all processes of the server. GPU memory may grow by
the graphs that the probe is allowed."""
STEADY_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
"""Environment variables of the server. The first is glibc's default, 128 KiB, but fixed
(mallopt(3), M_MMAP_THRESHOLD): a larger block goes back to the kernel when it is freed. Unless it
is set, glibc raises it to up to 32 MiB. The second is 1024 by default (oneDNN's guide, Primitive
Cache); 32 is how many vLLM itself keeps of each layer (create_onednn_mm in its
model_executor/layers/utils.py)."""
SETTLING_SHARE = 0.25
"""Part of the run, at its start, that does not count."""
TRAFFIC_SHARE = 0.6
"""Of the time between two looks; in the rest the server is idle."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of the server at one moment, and the memory that the first GPU has given.

    Attributes:
        heap_mib: the part of ``resident_mib`` in glibc's main heaps.
        by_process: the same as ``resident_mib``, by the name that the process gave itself.
    """

    seconds: float
    resident_mib: float
    files: int
    threads: int
    processes: int
    gpu_mib: float = 0.0
    heap_mib: float = 0.0
    by_process: Mapping[str, float] = dataclasses.field(default_factory=dict)


def sample(leader: int, began: float) -> Sample:
    """Look at every process of the group that ``leader`` leads."""
    heap, files, threads, processes = 0.0, 0, 0, 0
    by_process: dict[str, float] = defaultdict(float)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) != leader:
                continue
            by_process[process_name(folder)] += process_mib(folder)
            heap += heap_mib((folder / "smaps").read_text())
            files += len(os.listdir(folder / "fd"))
            threads += int(fields[17])
            processes += 1
    gpu = environment.gpu_state()
    gpu_mib = float(gpu["memory.used"].split()[0]) if gpu is not None else 0.0
    seconds, resident = time.monotonic() - began, sum(by_process.values())
    return Sample(seconds, resident, files, threads, processes, gpu_mib, heap, dict(by_process))


def process_name(folder: Path) -> str:
    """What a process calls itself, such as VLLM::Worker; else the name of its program."""
    first = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    return first.split(" ")[0].rpartition("/")[2]


def heap_mib(smaps: str) -> float:
    """Resident memory of the heap, out of the text of /proc/PID/smaps; 0 without a heap."""
    found = re.search(r"\[heap\]\n(?:.*\n)*?Rss: +(\d+) kB", smaps)
    return int(found[1]) / 1024 if found else 0.0


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Median of the last quarter minus that of the first, once the start is left out.

    Raises:
        ValueError: for fewer samples than quarters.
    """
    return {name: grew(samples, operator.attrgetter(name)) for name in MOST_GROWTH}


def growth_by_process(samples: Sequence[Sample]) -> dict[str, float]:
    """The same of each process's resident memory, in MiB, and of all heaps."""

    def of(name: str) -> Callable[[Sample], float]:
        return lambda one: one.by_process.get(name, 0.0)

    names = sorted({name for one in samples for name in one.by_process})
    heaps = grew(samples, operator.attrgetter("heap_mib"))
    return {**{name: grew(samples, of(name)) for name in names}, "all heaps": heaps}


def grew(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """The median of a value in the last quarter minus that in the first; raises as growth does."""
    kept = samples[int(SETTLING_SHARE * len(samples)) :]
    part = len(kept) // 4
    if part == 0:
        raise ValueError(f"{len(samples)} samples are too few: run longer, or sample more often")
    first, last = ([value(one) for one in quarter] for quarter in (kept[:part], kept[-part:]))
    return statistics.median(last) - statistics.median(first)


def grown(samples: Sequence[Sample]) -> list[str]:
    """What has grown beyond its limit, in words; empty where all is flat."""
    return [
        f"{name} grew by {by:.0f}, more than {MOST_GROWTH[name]:.0f}"
        for name, by in growth(samples).items()
        if by > MOST_GROWTH[name]
    ]


def changed(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which answers of the fixed prompts are others at the end, in words."""
    return [
        f"answer {number} of {len(before)} is another at the end: "
        f"{', '.join(name for name in first if first[name] != last[name])}"
        for number, (first, last) in enumerate(zip(before, after, strict=True), 1)
        if first != last
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


def run(
    one: Server,
    prompts: Sequence[soak_traffic.Prompt],
    vocab_size: int,
    seconds: float,
    every: float,
    rate: float,
    probed: bool,
) -> dict[str, Any]:
    """Fixed prompts, traffic, and the fixed prompts again; what is written."""
    card = model_card(one.url)
    base = Load(one.url, card["id"], vocab_size, 1, 64, 64, max(1.0, TRAFFIC_SHARE * every))
    stretches = soak_traffic.cycle(base, rate, card["max_model_len"])
    before = soak_traffic.answers(one.url, card["id"], prompts)
    samples = soak(
        one.child.pid, one.url, seconds, every, lambda: soak_traffic.send(next(stretches))
    )
    after = soak_traffic.answers(one.url, card["id"], prompts)
    if probed:
        require_probe(one.url)
    return {
        "growth": growth(samples),
        "growth_by_process": growth_by_process(samples),
        "problems": [*grown(samples), *changed(before, after)],
        "probe": probe_state(one.url) if probed else None,
        "answers": before,
        "samples": [dataclasses.asdict(one) for one in samples],
    }


@click.command()
@click.option("--shape", default="tiny")
@click.option("--layers", type=int, default=None)
@click.option("--real", is_flag=True, help="A small real model of a package, instead of a shape.")
@click.option("--minutes", type=float, default=60.0, show_default=True)
@click.option("--every", type=float, default=10.0, help="Seconds between two looks.")
@click.option("--requests-per-second", type=float, default=2.0)
@click.option("--probe", "probe_json", default="{}", help="Settings of the probe, JSON.")
@click.option("--without-probe", is_flag=True, help="Leave the probe out, to compare with.")
@click.option(
    "--default-memory", is_flag=True, help="Let glibc and oneDNN keep as much as they do."
)
@click.option("--flags", default="--max-model-len 4096", help="Further flags of vllm serve.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shape: str,
    layers: int | None,
    real: bool,
    minutes: float,
    every: float,
    requests_per_second: float,
    probe_json: str,
    without_probe: bool,
    default_memory: bool,
    flags: str,
    out: Path,
) -> None:
    """Run one server under mixed traffic and see that nothing grows and no answer changes."""
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    ran_on = environment.record()  # now: the checkout may be another commit at the end
    with tempfile.TemporaryDirectory(prefix="nfp-") as folder:
        model = write_real_model(Path(folder)) if real else shapes.shared_model(shape, layers)
        vocab_size = int(json.loads((model / "config.json").read_text())["vocab_size"])
        spec = server.Spec(
            model,
            out / "soak.log",
            free_port(),
            ("--no-enable-prefix-caching", *split_flags(flags)),
            None if without_probe else json.loads(probe_json),
            extra={} if default_memory else STEADY_MEMORY,
            real=real,
        )
        prompts = soak_traffic.real_texts() if real else soak_traffic.token_prompts(vocab_size)
        with server.running_together([spec]) as (one,):
            found = run(
                one,
                prompts,
                vocab_size,
                60 * minutes,
                every,
                requests_per_second,
                not without_probe,
            )
    about = {
        "model": "SmolLM2-135M-Instruct" if real else shape,
        "minutes": minutes,
        "probed": not without_probe,
        "variables": dict(spec.extra),
    }
    result = {"schema": 2, **about, "environment": ran_on, **found}
    (out / "soak.json").write_text(json.dumps(result), encoding="utf-8")
    print("\n".join(found["problems"]) or f"flat, all answers the same: {found['growth']}")
    raise SystemExit(1 if found["problems"] else 0)


if __name__ == "__main__":
    main()
