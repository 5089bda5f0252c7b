"""Claim: a step with the probe's hooks takes no longer than one without.

Asked for by ``python -m benchmarks.draft_lengths --cost-seconds N``, whose plain engine it uses;
alone:

    python -m benchmarks.step_cost --shape qwen3-8b --layers 24 --out DIR

One engine in this process, stepped by hand with the batch held. Its steps take turns, in random
order, without hooks (``off``), with hooks that time real steps (``passive``), and with the probe at
its defaults (``active``): the same process, cores, memory and GPU, so that what differs from server
to server and from minute to minute cancels. Batches are 10, 50 and 90 % of ``--max-num-seqs``.

Each turn is a row of step-cost.jsonl with every step's time, and the time that the hooks themselves
took. ``--summarize DIR`` prints ratios over ``off`` with bootstrap 95 % intervals over rounds.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.hooks import Hooks
from benchmarks.paired import ratio_of_quantiles, ratio_of_sums

SHARES = (0.1, 0.5, 0.9)
VARIANTS = ("off", "passive", "active")
WARM_STEPS = 4
FILE = "step-cost.jsonl"


def measure(
    llm: Any,
    runner: Any,
    place: Any,
    hold: Callable[[int, int], None],
    step: Callable[[], int | None],
    most_sequences: int,
    context: int,
    seconds: float,
    out: Path,
) -> None:
    """Take turns for this long; rows are written as they come.

    Args:
        hold: begins anew with so many sequences of so many tokens.
        step: one call of the engine's loop; None if no step has ended.
        most_sequences: ``--max-num-seqs``.
        context: tokens of each sequence.
    """
    from vllm_nfp.config import config_from_mapping

    folders = {name: out / f"run-{name}" for name in ("passive", "active")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    small = {} if context >= 1024 else {"batch_sizes": [1, 4], "contexts": [context]}
    hooks = {}
    for name, folder in folders.items():
        settings = {**small, "passive": name == "passive", "run_dir": str(folder)}
        vllm_config = llm.llm_engine.vllm_config
        hooks[name] = Hooks(config_from_mapping(settings), vllm_config, runner, place)
        if not hooks[name].active:
            raise RuntimeError("the probe did not attach; see the log")
    turn = max(0.1, seconds / 100)
    ends, rng, number = time.monotonic() + seconds, random.Random(11), 0
    with (out / FILE).open("a", encoding="utf-8") as file:
        while time.monotonic() < ends:
            for share in SHARES:
                batch_size = max(1, round(share * most_sequences))
                hold(batch_size, context)
                for variant in rng.sample(VARIANTS, len(VARIANTS)):
                    row = _turn(hooks, variant, step, turn)
                    about = {"share": share, "batch_size": batch_size, "round": number}
                    file.write(json.dumps({**about, **row}) + "\n")
            file.flush()
            number += 1
    probe = {name: one.account() for name, one in hooks.items()}
    record = {"environment": environment.record(), "after": environment.gpu_state()}
    (out / "step-cost.json").write_text(json.dumps({**record, "probe": probe}), encoding="utf-8")
    for one in hooks.values():
        one.switch(False)
        one.session.disable("the measurement has ended", expected=True)


def _turn(
    hooks: Mapping[str, Hooks], variant: str, step: Callable[[], int | None], seconds: float
) -> dict[str, Any]:
    for one in hooks.values():
        one.switch(False)
        one.take_cost()
    if variant in hooks:
        hooks[variant].switch(True)
    for _ in range(WARM_STEPS):
        step()
    intervals: list[int] = []
    begun = last = time.perf_counter()
    while last < begun + seconds:
        if step() is not None:
            now = time.perf_counter()
            intervals.append(round((now - last) * 1e6))
            last = now
    spent = hooks[variant].take_cost()["seconds"] if variant in hooks else 0.0
    steps = len(intervals) + WARM_STEPS
    return {"variant": variant, "step_us": intervals, "hook_us_per_step": 1e6 * spent / steps}


def print_summary(folder: Path) -> None:
    """Ratios over ``off`` of every variant at every load."""
    rows = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    table = Table(title=f"{folder.name}: steps with hooks over those without, 95 % intervals")
    names = ("load", "B", "variant", "rounds", "steps", "off, us", "rate", "p50", "p99", "hook")
    for name in names:
        table.add_column(name, justify="right")
    for share in sorted({row["share"] for row in rows}):
        for variant in VARIANTS[1:]:
            table.add_row(*_cells(rows, share, variant))
    Console(width=150).print(table)


def _cells(rows: Sequence[Mapping[str, Any]], share: float, variant: str) -> list[str]:
    """A line of the table."""
    turns = {(r["variant"], r["round"]): r for r in rows if r["share"] == share}
    rounds = sorted(
        n for v, n in turns if v == variant and all((w, n) in turns for w in ("off", variant))
    )
    off, on = (
        [np.array(turns[v, n]["step_us"], np.uint32) for n in rounds] for v in ("off", variant)
    )
    rates = [[len(times) / times.sum() for times in side] for side in (off, on)]
    ratios = (
        ratio_of_sums(rates[0], rates[1]),
        ratio_of_quantiles(off, on, 0.5),
        ratio_of_quantiles(off, on, 0.99),
    )
    hook = float(np.median([turns[variant, n]["hook_us_per_step"] for n in rounds]))
    return [
        f"{100 * share:.0f} %",
        str(turns[variant, rounds[0]]["batch_size"]),
        variant,
        str(len(rounds)),
        str(sum(map(len, on))),
        f"{np.median(np.concatenate(off)):.0f}",
        *(f"{r.ratio:.4f} [{r.lower:.4f}, {r.upper:.4f}]" for r in ratios),
        f"{hook:.1f} us",
    ]


@click.command()
@click.option("--shape", default="qwen3-8b")
@click.option("--layers", type=int, default=24)
@click.option("--kv-gib", type=float, default=30.0)
@click.option("--seconds", type=float, default=90.0, help="Of measuring, the start left out.")
@click.option("--tiny", is_flag=True, help="A tiny model, to try the script without a GPU.")
@click.option("--summarize", is_flag=True, help="Print what lies in --out, and measure nothing.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shape: str, layers: int, kv_gib: float, seconds: float, tiny: bool, summarize: bool, out: Path
) -> None:
    """Measure what the hooks cost a step; see the module's text."""
    if not summarize:
        from benchmarks.draft_lengths import Engine, Settings

        out.mkdir(parents=True, exist_ok=True)
        engine = Engine(Settings(shape, layers, kv_gib, False, tiny, 0.0), out)
        engine.step_cost(seconds, out)
    print_summary(out)


if __name__ == "__main__":
    main()
