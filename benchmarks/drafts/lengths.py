"""Claim: the chosen draft lengths are as fast as the best fixed one, at every load.

    python -m benchmarks.drafts.lengths --shape qwen3-8b --out DIR
    python -m benchmarks.drafts.lengths --method eagle3 --shape qwen3-8b --out DIR

Two real vLLM engines share one GPU and are stepped in turn, never at once: one without
speculation, one that drafts and accepts at vLLM's synthetic rates, with FULL CUDA graphs for every
draft length. ``--method`` says how it drafts: ngram_gpu looks n-grams up, at next to no cost; eagle
and eagle3 run a head of one layer, with dummy weights, for each drafted token.

The second cycles through the fixed lengths, a few steps of each, so that slow periods of the host
affect all of them equally. It also steps under the live controller, one for each acceptance. The
time of a step depends on its length, not on the policy that chose it. So a table, and the
controller, are judged by the lengths that they ran and the times of those lengths in the cycle.
Over a ramp of the load each policy runs alone. Rows are written as they come;
``benchmarks.drafts.table`` makes tables of them.

The models have dummy weights, changed so that their tokens differ (:mod:`benchmarks.serving.talk`):
otherwise such a model repeats one token, and with experts its drafts cost less than those of text.

Memory, of some 70 GiB that the weights and KV caches of both engines may take on an 80 GB H100. A
token takes 4 KiB for each layer of qwen3-8b (8 KV heads of 128, keys and values, 2 bytes) and 2 KiB
of qwen3-30b-a3b (4 KV heads), and an EAGLE head is one layer more. With eagle3 and ``--long-batch``
sequences of 9000 tokens, in GiB:

    shape           long-batch   --layers   --kv-gib   --plain-kv-gib   weights   in all
    qwen3-8b                64         12         29               27        14       70
    qwen3-8b               128          6         31               27        10       68
    qwen3-30b-a3b           64         14         17               16        35       68
    qwen3-30b-a3b          128          9         22               20        24       66

``--only-long`` leaves context 1024 and the ramp out. The fewer the layers, the more of a step is
the LM head, and the more a drafted token costs relative to it: compare nothing across these rows.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from benchmarks.drafts.cost import METHODS
from benchmarks.drafts.plan import LONG_CONTEXT, MAIN_ACCEPTANCE, Settings
from benchmarks.drafts.run import Run, Worker
from benchmarks.hosts import environment
from benchmarks.prediction.kernel_sweep import wait_for
from benchmarks.serving import shapes

LONG_TOKENS = 9000
"""Of a sequence that began with the long context, when it is measured."""


@click.command()
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], help="How to draft.")
@click.option("--shape", default="qwen3-8b")
@click.option("--layers", type=int, default=20)
@click.option("--kv-gib", type=float, default=24.0, help="KV cache of the engine that drafts.")
@click.option("--plain-kv-gib", type=float, default=22.0, help="KV cache of the other one.")
@click.option("--long-batch", type=int, default=32, help="Largest batch size at context 8192.")
@click.option("--gpu", default=None, help="CUDA_VISIBLE_DEVICES of both engines.")
@click.option("--limit-seconds", type=float, default=540.0, help="Ends by then, start included.")
@click.option("--seconds", type=float, default=0.2, help="Length of one measurement.")
@click.option("--tiny", is_flag=True, help="A tiny model, to try the script without a GPU.")
@click.option("--wait-for", "awaited", type=click.Path(path_type=Path), default=None)
@click.option("--smoke", is_flag=True, help="A few points only.")
@click.option("--only-long", is_flag=True, help="Context 8192 alone, and no ramp.")
@click.option("--only-short", is_flag=True, help="Context 1024 alone, and no ramp.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    method: str,
    shape: str,
    layers: int,
    kv_gib: float,
    plain_kv_gib: float,
    long_batch: int,
    gpu: str | None,
    limit_seconds: float,
    seconds: float,
    tiny: bool,
    awaited: Path | None,
    smoke: bool,
    only_long: bool,
    only_short: bool,
    out: Path,
) -> None:
    """Compare draft lengths; see the module's text."""
    if only_long and only_short:
        raise click.UsageError("--only-long and --only-short leave no context: give one of them")
    ends = time.monotonic() + limit_seconds
    if not (tiny or smoke):
        extra = method in shapes.DRAFT_HEADS
        _check_room(shape, layers, plain_kv_gib, long_batch, "--plain-kv-gib")
        _check_room(shape, layers + extra, kv_gib, long_batch, "--kv-gib")
    out.mkdir(parents=True, exist_ok=True)
    environ = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    record = environment.record()
    plain_settings = Settings(shape, layers, plain_kv_gib, False, tiny)
    spec_settings = Settings(shape, layers, kv_gib, True, tiny, method)
    begun = time.monotonic()
    try:
        with (
            Worker(plain_settings, out / "plain", environ) as plain,
            Worker(spec_settings, out / "spec", environ) as spec,
        ):
            if not (plain.ready() and spec.ready()):
                raise SystemExit(f"an engine did not start; see {plain.log} and {spec.log}")
            print(f"engines up after {time.monotonic() - begun:.0f} s", flush=True)
            if awaited is not None:
                wait_for(awaited)
            spec.ask({"order": "scan"})
            run = Run(plain, spec, out, ends, tiny, seconds, method)
            _carry_out(run, smoke, tiny, long_batch, only_long, only_short)
    finally:
        about = {
            **record, "after": environment.gpu_state(), "shape": shape, "layers": layers,
            "method": method,
        }  # fmt: skip
        (out / "environment.json").write_text(json.dumps(about, indent=1))
    print(f"done with {ends - time.monotonic():.0f} s left", flush=True)


def _check_room(shape: str, layers: int, kv_gib: float, long_batch: int, flag: str) -> None:
    """Refuse a cache in which long sequences would push each other out while they are timed."""
    need = shapes.kv_gib(shape, layers, long_batch * LONG_TOKENS)
    if kv_gib < need:
        raise click.UsageError(
            f"{flag} {kv_gib:g} does not hold {long_batch} sequences of {LONG_TOKENS} tokens: "
            f"give {need:.1f} or more, fewer --layers or a smaller --long-batch"
        )


def _carry_out(
    run: Run, smoke: bool, tiny: bool, long_batch: int, only_long: bool, only_short: bool
) -> None:
    if tiny:
        run.points({64: (1, 4)}, 1)
        run.ramps(MAIN_ACCEPTANCE, 64, 1)
        return
    if smoke:
        run.points({1024: (1, 32, 128)}, 1)
        return
    sizes = (1, 4, 16, 32, 64, 128)
    if only_long:
        run.warm_up(LONG_CONTEXT, (1, long_batch))
    else:
        run.warm_up(1024, (1, 128))
        run.points({1024: sizes}, 2)
        if only_short:
            return
        run.ramps(MAIN_ACCEPTANCE, 1024, 2)
    shorter = [batch_size for batch_size in reversed(sizes) if batch_size < long_batch]
    run.points({LONG_CONTEXT: (long_batch, *shorter)}, 2)


if __name__ == "__main__":
    main()
