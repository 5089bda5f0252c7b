"""Claim: on a CPU, vLLM's dense products keep memory for each number of tokens that a step has.

    python -m benchmarks.memory.product_memory --out FILE.json

No server and no probe: the products of one layer of SmolLM2-135M and its logits, by vLLM's oneDNN
operator, each step with a random number of tokens. One process after the other walks the same
steps: with no variables, with glibc's threshold fixed, and with ``STEADY_MEMORY`` of
:mod:`benchmarks.overhead.soak`. Resident memory is noted every 100 steps.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.hosts.process_memory import process_mib
from benchmarks.overhead.soak import STEADY_MEMORY

HIDDEN, INNER, QKV, VOCABULARY = 576, 1536, 960, 49152
"""Of SmolLM2-135M (its config.json): 9 query and 3 key-value heads of 64 have 960 rows."""
PRODUCTS = ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))
"""Outputs and inputs of a layer's products."""
KEPT = 32
"""Programs of each product, as vLLM has it (see STEADY_MEMORY)."""
MOST_TOKENS, MOST_LOGITS = 2048, 32
"""Of a step: vLLM's longest on a CPU at --max-model-len 2048, and rows of logits."""
EVERY = 100
OWN = Path("/proc/self")
SEED = 0
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "fixed threshold": {THRESHOLD: STEADY_MEMORY[THRESHOLD]},
    "steady": STEADY_MEMORY,
}


def token_counts(steps: int) -> list[int]:
    """Tokens of each step; the same in every process."""
    rng = random.Random(SEED)
    return [rng.randint(1, MOST_TOKENS) for _ in range(steps)]


def walk(steps: int) -> Iterator[dict[str, float]]:
    """Do the steps in this process; resident memory in MiB before them and after every 100."""
    import torch

    importlib.import_module("vllm.platforms").current_platform.import_kernels()
    ops: Any = importlib.import_module("vllm._custom_ops")
    torch.set_num_threads(1)

    def product(rows: int, columns: int) -> Any:
        return ops.create_onednn_mm(torch.randn(rows, columns).to(torch.bfloat16).t(), KEPT)

    layer = [(product(*sizes), sizes[1]) for sizes in PRODUCTS]
    logits = product(VOCABULARY, HIDDEN)
    counts = token_counts(steps)
    yield {"steps": 0, "counts": 0, "resident_mib": process_mib(OWN)}
    for step, tokens in enumerate(counts, 1):
        inputs = {size: torch.randn(tokens, size).to(torch.bfloat16) for size in (HIDDEN, INNER)}
        for handler, columns in layer:
            ops.onednn_mm(handler, inputs[columns], None)
        ops.onednn_mm(logits, inputs[HIDDEN][: min(tokens, MOST_LOGITS)], None)
        if step % EVERY == 0:
            seen = len(set(counts[:step]))
            yield {"steps": step, "counts": seen, "resident_mib": process_mib(OWN)}


def rows_in(output: str) -> list[dict[str, float]]:
    """What a process noted, out of its output, in which vLLM logs too."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def walked(steps: int, variables: Mapping[str, str]) -> list[dict[str, float]]:
    """Do the steps in a process with these variables alone; without a sign of them in this one."""
    program = "import json, sys; from benchmarks.memory.product_memory import walk\n"
    program += "for row in walk(int(sys.argv[1])): print(json.dumps(row), flush=True)"
    others = {name: value for name, value in os.environ.items() if name not in STEADY_MEMORY}
    done = subprocess.run(
        [sys.executable, "-c", program, str(steps)],
        env={**others, **variables}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return rows_in(done.stdout)


@click.command()
@click.option("--steps", type=int, default=900, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(steps: int, out: Path) -> None:
    """Tell how resident memory grows with the number of token counts, by variables."""
    about = environment.record()
    found = {name: walked(steps, variables) for name, variables in SETTINGS.items()}
    out.write_text(
        json.dumps({"schema": 1, "environment": about, "settings": SETTINGS, "rows": found}),
        encoding="utf-8",
    )
    for name, rows in found.items():
        by = rows[-1]["resident_mib"] - rows[0]["resident_mib"]
        print(f"{name}: {by:.0f} MiB more after {rows[-1]['counts']:.0f} counts of tokens")


if __name__ == "__main__":
    main()
