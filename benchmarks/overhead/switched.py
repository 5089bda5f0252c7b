"""Claim: the probe costs a server no latency and no throughput, at any load.

    python -m benchmarks.overhead.switched --shape qwen3-8b --out DIR
    python -m benchmarks.overhead.switched --shape llama-3.1-70b --layers 24 --out DIR \\
        --flags "--tensor-parallel-size 2"

One server serves all variants: its hooks are installed and removed
(:mod:`benchmarks.overhead.worker_extension`) every half second or so, in random order, while the
load goes on. So what differs from server to server and from minute to minute cancels, which it does
not between servers side by side (:mod:`benchmarks.overhead.overhead`, which has what this lacks:
start-up, and a server without the plugin). The server has vLLM's own settings, the variant
``active`` the probe's. While a variant's hooks are off, its background thread is held
(:class:`benchmarks.overhead.hooks.Parking`).

``--draft METHOD`` lets the server speculate, with n-grams or a head of dummy weights. Without the
control the longest draft is in force. The variant ``control`` is ``active`` and, in the engine
core, the live control of draft lengths (:mod:`benchmarks.overhead.switched_core`):

    python -m benchmarks.overhead.switched --shape qwen3-8b --draft eagle3 --out DIR \\
        --variants off,active,control

At the defaults so few steps are delayed that a run of minutes holds a handful. So the variant
``raised`` delays many more (:data:`PROBES`), from which follows what one delayed step costs.

Loads are random arrivals at 10, 50 and 90 % of the rate that saturates the server without hooks,
the same in each turn, and as many streams as saturate it, in longer turns. A block of a load has
turns of one variant and of ``off`` alone: requests that a raised variant has made late would reach
into the turns of another. An inter-token time counts if it is entirely within one turn, a time to
first token if its request was sent within it. Once a variant has delayed ``--delayed`` steps at a
load, the others have that load for themselves. Reported are ratios over ``off`` with bootstrap 95 %
intervals over rounds of two turns. ``--summarize`` prints the results in ``--out``.
"""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import click

from benchmarks.hosts.flag_text import split_flags
from benchmarks.overhead.hooks import OFF, require_active
from benchmarks.overhead.overhead_summary import Row, Turn
from benchmarks.overhead.probe_account import resident_mib
from benchmarks.overhead.switched_board import Board, CoreCost
from benchmarks.overhead.switched_drafts import NGRAM, Drafts
from benchmarks.overhead.switched_server import Output
from benchmarks.overhead.switched_spec import BOARD, CONTROL, PROBES, Settings, probe_of, spec_of
from benchmarks.overhead.switched_summary import SATURATED, SHARES, print_summary
from benchmarks.serving import load, server, shapes
from benchmarks.serving.load_result import Window
from benchmarks.serving.remote import Remote
from benchmarks.serving.saturation import GIB, SATURATION_SECONDS, a_load, saturation
from benchmarks.serving.traffic import Arrivals, Load

VARIANTS = (OFF, "active", "raised")
GUARD_SECONDS = 0.03
"""After a switch: a step that was in flight when it came has left by then."""
ROUNDS_OF_BLOCK = 8
"""Rounds of a variant and ``off`` while one load goes on."""
ENDING_SECONDS = 20.0
"""Kept back for the server's end."""
Switched = tuple[Mapping[str, Any], CoreCost]
"""What the first rank answered to a switch, and what the engine core had spent by then."""


def measure_block(
    settings: Settings,
    work: Load | Arrivals,
    remote: Remote,
    board: Board,
    planned: Sequence[Turn],
    output: Output,
) -> None:
    """One load that goes on while the variants take turns."""
    turns: list[tuple[Turn, Switched]] = []
    seconds = settings.turn(planned[0].share)

    async def switch(session: aiohttp.ClientSession, variant: str) -> Switched:
        board.want_control(variant == CONTROL)
        return (await remote.switch(session, variant))[0], board.cost

    async def take_turns(session: aiohttp.ClientSession) -> list[Window]:
        windows, ends = [], time.perf_counter()
        for turn in planned:
            turns.append((turn, await switch(session, turn.variant)))
            await load.watch(GUARD_SECONDS)
            # In step with the arrivals, however long the switch took.
            ends += seconds
            windows.append(await load.watch(max(GUARD_SECONDS, ends - time.perf_counter())))
        turns.append((turns[-1][0], await switch(session, OFF)))
        return windows

    longest = (len(planned) + 2) * seconds
    warmup = settings.warmup_turns * settings.turn_seconds
    results = load.run_windows(work, warmup, take_turns, longest)
    for (turn, before), (_, after), result in zip(turns, turns[1:], results, strict=False):
        output.add(turn, result, _cost(turn.variant, before, after))


def _cost(variant: str, before: Switched, after: Switched) -> dict[str, Any]:
    """What a turn cost the first rank and the engine core, from the switches around it."""
    (earlier, core_before), (later, core) = before, after
    hooks = later["hooks"].get(variant, {"seconds": 0.0, "steps": 0, "median_us": {}})
    return {
        **{f"hook_{name}": value for name, value in hooks.items()},
        "background_seconds": later["background_seconds"] - earlier["background_seconds"],
        "resident_mib": later["resident_mib"],
        **(core.since(core_before) if core.pid else {}),
    }


def plan(share: float, variant: str, first: int) -> Iterator[Turn]:
    """Variant and ``off`` once in every round; one round of a saturated server: its turns are long.

    Args:
        first: number of the first round; no other block has one of these.
    """
    rng = random.Random(first)
    for number in range(first, first + (1 if share == SATURATED else ROUNDS_OF_BLOCK)):
        for one in rng.sample((OFF, variant), 2):
            yield Turn(share, number, one)


def next_blocks(
    rows: Sequence[Row], variants: Sequence[str], wanted: int
) -> tuple[tuple[float, str], ...]:
    """Load and variant of the next blocks: variants that lack delayed steps, or all if none does.

    Args:
        variants: without ``off``.
        wanted: delayed steps of a variant at a load.
    """
    found = []
    for share in SHARES:
        lacking = [one for one in variants if _delayed(rows, share, one) < wanted]
        found += [(share, one) for one in lacking or variants]
    return tuple(found)


def _delayed(rows: Sequence[Row], share: float, variant: str) -> float:
    mine = [row for row in rows if (row["share"], row["variant"]) == (share, variant)]
    found: float = sum(row.get("hook_delayed_steps", 0) for row in mine)
    return found


def attach(settings: Settings, folder: Path, remote: Remote, output: Output) -> None:
    """Start a session for each variant with hooks."""
    names = [name for name in settings.variants if name != OFF]
    probe = {name: probe_of(settings, name, folder) for name in names}
    answers = remote.call("nfp_attach", json.dumps(probe))
    require_active(answers)
    output.about |= {"attached": answers, "account": remote.call("nfp_account")}
    output.write()


def measure(
    settings: Settings, model: str, url: str, folder: Path, output: Output, deadline: float
) -> None:
    """Attach, find the saturation, then blocks of all loads as long as there is time."""
    remote, board = Remote(url), Board(folder / BOARD)
    attach(settings, folder, remote, output)
    if settings.attach_only:
        return
    found = output.about["saturation"] = saturation(settings, model, url, warmup_seconds=1.5)
    rate = found["requests_per_second"]
    print(f"attached; saturated at {rate:.1f} requests/s", flush=True)
    number, longest = 0, dict.fromkeys(SHARES, 0.0)
    hooked = [name for name in settings.variants if name != OFF]
    while True:
        blocks = next_blocks(output.rows, hooked, settings.delayed)
        if time.monotonic() + sum(longest[share] for share, _ in blocks) > deadline:
            return
        for share, variant in blocks:
            began = time.monotonic()
            work: Load | Arrivals
            work = streams = a_load(settings, model, url, number + 1, SATURATION_SECONDS)
            if share != SATURATED:
                work = Arrivals(streams, rate * share, settings.turn_seconds)
            planned = list(plan(share, variant, number))
            measure_block(settings, work, remote, board, planned, output)
            time.sleep(0.3)  # aborted requests leave
            longest[share] = max(longest[share], time.monotonic() - began)
            number += ROUNDS_OF_BLOCK
        output.about["account"] = remote.call("nfp_account")
        output.write()


def run(settings: Settings, out: Path) -> None:
    """Everything, server and load."""
    began = time.monotonic()
    output = Output(out, settings.shape, dataclasses.asdict(settings))
    with tempfile.TemporaryDirectory(prefix="nfp-") as name:
        folder = Path(name)
        model = shapes.shared_model(settings.shape, settings.layers)
        for variant in settings.variants:
            (folder / variant).mkdir()
        Board.create(folder / BOARD)
        spec = spec_of(settings, model, folder, out / f"switched-{settings.shape}.log")
        with spec.start() as one:
            one.wait_until_healthy(settings.within)
            output.about["start_seconds"] = time.monotonic() - began
            print(f"server up after {time.monotonic() - began:.0f} s", flush=True)
            output.about["resident_mib_before"] = resident_mib(one.child.pid)
            deadline = began + settings.within - ENDING_SECONDS
            measure(settings, str(model), one.url, folder, output, deadline)
            output.about["resident_mib_after"] = resident_mib(one.child.pid)
            output.write()


@click.command()
@click.option("--shape", type=click.Choice(sorted(shapes.SHAPES)), default="qwen3-8b")
@click.option("--layers", type=int, default=None)
@click.option("--kv-gib", type=float, default=None, help="Of each rank; else as vLLM sizes it.")
@click.option("--prompt-tokens", type=int, default=512)
@click.option("--output-tokens", type=int, default=128)
@click.option("--saturating", type=int, default=128, help="Streams that saturate the server.")
@click.option("--turn-seconds", type=float, default=0.5)
@click.option("--saturated-turn-seconds", type=float, default=1.5)
@click.option(
    "--delayed",
    type=int,
    default=300,
    show_default=True,
    help="Steps that a variant delays at a load, before others have that load for themselves.",
)
@click.option("--warmup-turns", type=int, default=2, help="Of load before each block.")
@click.option("--variants", default=",".join(VARIANTS), help=f"Of off, {', '.join(PROBES)}.")
@click.option("--probe", "probe_json", default="{}", help="Further settings of the probe, JSON.")
@click.option("--draft", type=click.Choice((NGRAM, *shapes.DRAFT_HEADS)), help="Draft, and so.")
@click.option("--draft-lengths", default="0,1,2,4", show_default=True, help="What control may use.")
@click.option("--acceptance", default=0.7, show_default=True, help="Of a head's drafted tokens.")
@click.option("--flags", default="", help="Further flags of vllm serve.")
@click.option("--within", type=float, default=2400.0, help="Ends in so many s, start included.")
@click.option("--attach-only", is_flag=True, help="Attach, record memory, and end.")
@click.option("--summarize", is_flag=True, help="Print the results in --out; measure nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    out: Path,
    summarize: bool,
    probe_json: str,
    flags: str,
    variants: str,
    draft: str | None,
    draft_lengths: str,
    acceptance: float,
    **values: Any,
) -> None:
    """Measure the probe's cost by switching one server's hooks on and off."""
    if not summarize:
        server.end_servers_on_sigterm()
        kv_gib = values["kv_gib"]
        cache = () if kv_gib is None else ("--kv-cache-memory-bytes", str(int(kv_gib * GIB)))
        if CONTROL in variants.split(",") and draft is None:
            raise click.UsageError("--variants control needs --draft: there is nothing to control")
        lengths = tuple(sorted(int(length) for length in draft_lengths.split(",")))
        if len(set(lengths)) < max(2, len(lengths)) or lengths[0] != 0:
            raise click.UsageError(
                f"--draft-lengths {draft_lengths} must hold 0 and at least one more, each once"
            )
        settings = Settings(
            probe=json.loads(probe_json),
            draft=None if draft is None else Drafts(draft, lengths, acceptance),
            variants=tuple(variants.split(",")),
            flags=(*split_flags(flags), *cache),
            **values,
        )
        run(settings, out)
    for path in sorted(out.glob("switched-*.json")):
        print_summary(path)


if __name__ == "__main__":
    main()
