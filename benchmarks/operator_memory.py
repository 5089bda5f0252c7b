"""Claim: a CUDA kernel costs host memory, and some cost tens of MiB.

    python -m benchmarks.operator_memory --out FILE.jsonl

Each case runs in a process of its own that has run some other kernel before, and reports by how
much its resident memory grows. What the probe may run ahead of a server's steps follows from it:
see :mod:`vllm_nfp.engine.light_ops`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks import environment
from benchmarks.resident import resident

WIDTH, VOCABULARY = 4096, 151936
TOKENS = (1, 16, 32, 64, 256)


def _cases() -> dict[str, Callable[[], Any]]:
    import torch

    weight = torch.zeros((VOCABULARY, WIDTH), dtype=torch.bfloat16, device="cuda")
    hidden = torch.zeros((256, WIDTH), dtype=torch.bfloat16, device="cuda")
    words = torch.zeros(1 << 20, dtype=torch.int64, device="cuda")
    cases: dict[str, Callable[[], Any]] = {
        "sum of int64": words.sum,
        "max of int64": words.max,
        "any": (words != 0).any,
        "cumsum": lambda: words.cumsum(0),
        "dot of float32": lambda: torch.dot(words.view(torch.float32), words.view(torch.float32)),
        "mean": lambda: hidden.float().pow(2).mean(-1),
        "rsqrt": lambda: torch.rsqrt(hidden.float()),
        "sleep": lambda: torch.cuda._sleep(1000),
        "argmax": lambda: hidden.argmax(-1),
    }
    for tokens in TOKENS:
        ids = torch.zeros(tokens, dtype=torch.int64, device="cuda")
        cases |= {
            f"embedding of {tokens}": partial(torch.nn.functional.embedding, ids, weight),
            f"index of {tokens}": partial(lambda i, w: w[i], ids, weight),
            f"index_select of {tokens}": partial(lambda i, w: w.index_select(0, i), ids, weight),
            f"gather of {tokens}": partial(
                lambda i, w: w.gather(0, i[:, None].expand(-1, WIDTH)), ids, weight
            ),
        }
    return cases


def run(names: list[str]) -> list[dict[str, Any]]:
    """Growth of this process by each case, one after the other."""
    import torch

    cases = _cases()
    (torch.zeros(8, device="cuda") + 1).cpu()
    torch.cuda.synchronize()
    rows = []
    for name in names:
        before = resident()
        cases[name]()
        torch.cuda.synchronize()
        rows.append({"case": name, "after": names[: names.index(name)]})
        rows[-1] |= resident().since(before).summary()
    return rows


@click.command()
@click.option("--cases", default="", help="JSON lists of cases to run in one process each.")
@click.option("--worker", default=None, hidden=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(cases: str, worker: str | None, out: Path) -> None:
    """Measure; see the module's text."""
    if worker is not None:
        with out.open("a", encoding="utf-8") as file:
            for row in run(json.loads(worker)):
                file.write(json.dumps(row) + "\n")
                print(row["case"], row["mib"])
        return
    groups = json.loads(cases) if cases else _default_groups()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": environment.record()}) + "\n")
    for group in groups:
        command = [sys.executable, "-m", "benchmarks.operator_memory", "--out", str(out)]
        subprocess.run([*command, "--worker", json.dumps(group)], check=False)


def _default_groups() -> list[list[str]]:
    others = ["sum of int64", "max of int64", "any", "cumsum", "dot of float32", "mean", "rsqrt"]
    lookups = ["embedding of", "index of", "index_select of", "gather of"]
    groups = [[name] for name in (*others, "sleep", "argmax")]
    return groups + [[f"{name} {tokens}" for tokens in TOKENS] for name in lookups]


if __name__ == "__main__":
    main()
