"""NFP tables of two models in one short session on one GPU.

    python -m benchmarks.prediction.h100_session --out DIR

Starts two servers side by side on one GPU, each with a KV cache of fixed size and one fourth to
one sixth of its published layers, then sends load to one at a time; the other uses no GPU time
meanwhile. NFP of every module in cells B in 1, 8, 32 and L in 1k, 4k, 16k is measured between the
real steps; the probe may take half of the time here, so that a minute of load gives enough pairs.
No scan at the start: all pairs are taken under load.

Each part is written as soon as it is there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.prediction import tabulate
from benchmarks.serving import server
from benchmarks.serving.table_servers import Plan, Session

LIMIT_SECONDS = 540.0
TABLE: Mapping[str, object] = {
    "startup_seconds": 0.0,
    "capture_seconds": 60.0,
    "graph_memory_mib": 4096,
    "step_share": 1.0,
    "batch_sizes": [1, 8, 32],
    "contexts": [1024, 4096, 16384],
    "max_positions": 64,
    "overhead_budget": 0.5,
    "wanted_samples": 8,
}
TRIAL_TABLE = {**TABLE, "batch_sizes": [1, 4], "contexts": [64, 256], "max_positions": 8}
FLAGS = ("--gpu-memory-utilization", "0.05", "--max-model-len", "20480")
TRIAL_FLAGS = ("--enforce-eager", "--max-model-len", "1024")
PHASES = ((8, 950), (32, 950), (1, 3900))
"""(streams, prompt tokens)."""
TRIAL_PHASES = ((1, 50), (2, 50))


def plans(trial: bool) -> tuple[Plan, ...]:
    """The servers; tiny ones to try the script without a GPU."""
    if trial:
        return tuple(
            Plan(name, "tiny", 8, 0.1, TRIAL_TABLE, flags=TRIAL_FLAGS) for name in ("dense", "moe")
        )
    return (
        Plan("dense", "qwen3-8b", 8, 16.4, TABLE, flags=FLAGS),
        Plan("moe", "qwen3-30b-a3b", 8, 8.3, TABLE, flags=FLAGS),
    )


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--table-seconds", type=float, default=60.0, help="Load on each server.")
@click.option("--trial", is_flag=True, help="Tiny models, to try the script without a GPU.")
def main(out: Path, table_seconds: float, trial: bool) -> None:
    """Measure the NFP tables of two models; see the module's text."""
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-session-") as work, ExitStack() as stack:
        session = Session(out, Path(work), LIMIT_SECONDS)
        wanted = plans(trial)
        session.start(stack, wanted)
        for plan in wanted:
            if plan.name in session.urls:
                session.measure(plan, TRIAL_PHASES if trial else PHASES, table_seconds)
                tabulate.print_model(out, plan.name)


if __name__ == "__main__":
    main()
