"""Claim: at the probe's defaults, chosen draft lengths are as fast as the best fixed one.

    python -m benchmarks.drafts.servers --gpu 0:0.7,0.9..0.5,0.5:1,4,16,32,64,128 --within 1500 \\
        --watch-stalls --out DIR
    python -m benchmarks.drafts.servers --shape qwen3-30b-a3b --layers 20 --gpu 0:0.7:1,16,128 \\
        --method ngram_gpu --prompt-tokens 1024 --within 1500 --watch-stalls --out DIR
    python -m benchmarks.drafts.servers --score DIR

Each ``--gpu INDEX:ACCEPTANCES:BATCH_SIZES`` has its own ``vllm serve`` processes, of one shape with
dummy weights and an EAGLE-3 head or n-grams, whose drafts are accepted at vLLM's synthetic rates:
``0.7`` at every place, ``0.9..0.5`` falling from the first draft to the last in equal steps. All
models talk (:mod:`benchmarks.serving.talk`), so that drafts differ and activate their own experts
as text does:

- ``none`` does not speculate;
- ``drafts`` speculates without the probe; its table of draft lengths holds each K up to 8, so that
  vLLM captures graphs for all, and one K at a time is put in force for all batch sizes;
- ``live`` has ``--nfp-probe --nfp-draft-control`` and no setting of either. It gets a minute of the
  traffic of :mod:`benchmarks.serving.user_traffic`, whose batch sizes and contexts are not those
  measured. Then ``vllm-nfp recommend URL`` is asked, with the acceptance that the server has
  counted;
- ``table`` is what was recommended, for each acceptance: in force on ``drafts``, since another
  server would take a minute and more to start. ``--table-servers`` starts it. Both have the same
  scheduler and the same graphs; a server of its own holds no graphs of other lengths.

Each length of a table finds its CUDA graphs, as on a server of that length alone
(:mod:`benchmarks.serving.length_graphs`), in all servers; ``--as-is`` leaves vLLM's choice of
graphs as it is, with which servers stall, and implies ``--table-servers``.

Then streams of requests, closed loop, are sent to one server at a time; the others are stopped
meanwhile (SIGSTOP), so that no idle probe of ``live`` runs beside them. In the first round ``live``
and ``table`` come first at each batch size, then fixed lengths, of which long ones are left out
where shorter ones have lost. The order is random in later rounds. Rounds over all points go on
until the time is up, and rows are written as they come. Goodput is tokens/s as clients see them,
prompts and trials of the controller included; every point counts. Rounds in which the server
stalled count as well, and are named.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.drafts.acceptance import Acceptance, read_acceptance
from benchmarks.drafts.fleet import (
    EAGLE3,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    METHODS,
    NGRAM_CPU,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    Fleet,
    Shape,
)
from benchmarks.drafts.servers_score import print_scores
from benchmarks.drafts.servers_turns import Turns
from benchmarks.hosts import environment
from benchmarks.serving import shapes, talk
from benchmarks.serving.server import end_servers_on_sigterm
from vllm_nfp.files import write_whole

END_SECONDS = 12.0
"""For the servers to end."""
KV_SLACK = 1.04
"""Of a KV cache: requests end in the middle of blocks of 16 tokens, and draft beyond their end. 128
requests of 256 + 512 tokens take 9.4 GiB with 24 layers of Qwen3-8B and the head's one. Such a
server takes 15.5 GiB beside its KV cache (benchmarks/verification/servers.py: 60 GiB, of which
44.5), three of them 76 GiB, and 105 GiB with prompts of 1024 tokens: an H200 has 140 GiB."""
TINY_PROMPT_TOKENS = talk.TOKENS + 32
"""N-grams find nothing before the cycle comes again."""
TRAFFIC_TOKENS = 40_000
"""That the streams of benchmarks.serving.user_traffic have in the KV cache, at most."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What one GPU measures."""

    index: str
    acceptances: tuple[Acceptance, ...]
    batch_sizes: tuple[int, ...]


def read_plan(text: str) -> GpuPlan:
    """A plan from INDEX:ACCEPTANCES:BATCH_SIZES.

    Raises:
        click.BadParameter: if it is none, with an example.
    """
    try:
        index, acceptances, sizes = text.split(":")
        found = GpuPlan(
            index,
            tuple(read_acceptance(one) for one in acceptances.split(",")),
            tuple(int(one) for one in sizes.split(",")),
        )
    except ValueError:
        found = GpuPlan("", (), ())
    if not all(1 <= size <= MAX_NUM_SEQS for size in found.batch_sizes or (0,)):
        raise click.BadParameter(
            f"{text!r} is not INDEX:ACCEPTANCES:BATCH_SIZES, such as 0:0.7,0.9..0.5:1,16,128, with "
            f"batch sizes up to {MAX_NUM_SEQS}"
        )
    return found


def kv_gib_of(shape: str, layers: int, prompt_tokens: int, plans: Sequence[GpuPlan]) -> float:
    """KV cache of one server that holds the most streams of the plans, the head's layer with it."""
    streams = max(size for plan in plans for size in plan.batch_sizes)
    tokens = max(streams * (prompt_tokens + OUTPUT_TOKENS), TRAFFIC_TOKENS)
    return KV_SLACK * shapes.kv_gib(shape, layers + 1, tokens)


def run_gpu(
    plan: GpuPlan, shape: Shape, out: Path, ends: float, alone: bool, own_tables: bool
) -> None:
    """Start one GPU's servers and measure them until the time is up."""
    end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with Fleet(plan.index, shape, out, ends - END_SECONDS) as fleet:
        turns = Turns(fleet, plan.acceptances, plan.batch_sizes, out, alone, own_tables)
        turns.begin()
        turns.recommend()
        turns.measure()


@click.command()
@click.option("--shape", default="qwen3-8b", show_default=True)
@click.option("--layers", type=int, default=24, show_default=True)
@click.option("--kv-gib", type=float, help="Of each server; without it, for all its streams.")
@click.option("--method", type=click.Choice(METHODS), default=EAGLE3, show_default=True)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(16, MAX_MODEL_LEN - OUTPUT_TOKENS),
    default=PROMPT_TOKENS,
    show_default=True,
)
@click.option("--gpu", "gpus", multiple=True, help="INDEX:ACCEPTANCES:BATCH_SIZES; repeat it.")
@click.option("--within", type=float, default=550.0, show_default=True, help="Seconds, in all.")
@click.option("--alone", is_flag=True, help="Fixed lengths alone, without other servers.")
@click.option("--table-servers", is_flag=True, help="Start a server of each recommended table.")
@click.option("--as-is", is_flag=True, help="With vLLM's own choice of CUDA graphs.")
@click.option("--watch-stalls", is_flag=True, help="Stacks in the logs where no step follows.")
@click.option("--tiny", is_flag=True, help="A tiny model and n-grams, to try it on a CPU.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--score", "scored", type=click.Path(exists=True, path_type=Path), multiple=True)
def main(
    shape: str,
    layers: int,
    kv_gib: float | None,
    method: str,
    prompt_tokens: int,
    gpus: Sequence[str],
    within: float,
    alone: bool,
    table_servers: bool,
    as_is: bool,
    watch_stalls: bool,
    tiny: bool,
    out: Path | None,
    scored: Sequence[Path],
) -> None:
    """Compare draft lengths on real servers, or score what runs have left; see the module."""
    if scored:
        print_scores(scored)
        return
    if out is None:
        raise click.UsageError("give --out DIR to run servers, or --score DIR for what a run left")
    ends = time.monotonic() + within
    plans = [read_plan(text) for text in gpus]
    if not plans:
        raise click.UsageError("no --gpu is given, such as --gpu 0:0.7:1,16,128")
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "environment": environment.record(), "shape": shape, "layers": layers, "tiny": tiny,
        "alone": alone, "gpus": gpus, "probe": {}, "within": within, "as_is": as_is,
        "table_servers": table_servers or as_is, "watch_stalls": watch_stalls, "method": method,
        "prompt_tokens": prompt_tokens,
    }  # fmt: skip
    write_whole(out / "about.json", json.dumps(about, indent=1))
    if tiny:
        shape, layers, method, prompt_tokens = "tiny", 2, NGRAM_CPU, TINY_PROMPT_TOKENS
    if kv_gib is None:
        kv_gib = kv_gib_of(shape, layers, prompt_tokens, plans)
    served = Shape(shape, layers, kv_gib, tiny, as_is, watch_stalls, method, prompt_tokens)
    workers = [
        multiprocessing.get_context("spawn").Process(
            target=run_gpu,
            args=(plan, served, out / f"gpu-{plan.index}", ends, alone, table_servers or as_is),
        )
        for plan in plans
    ]
    end_servers_on_sigterm()
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
        write_whole(
            out / "about.json", json.dumps({**about, "after": environment.gpu_state()}, indent=1)
        )
    print_scores([out])
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a GPU's servers failed: see the logs in the folder of the run")


if __name__ == "__main__":
    main()
