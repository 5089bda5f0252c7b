"""Claim: a CUDA kernel costs host memory, and some cost tens of MiB.

    python -m benchmarks.memory.operator_memory --out FILE.jsonl

Each case runs in a process of its own that has run some other kernel before, and reports by how
much the process's resident memory grows. What the probe may run ahead of a server's steps follows
from it: see :mod:`vllm_nfp.adapter.light_ops` and :mod:`vllm_nfp.probe.span_sums`. Triton keeps
compiled kernels on the disk: run it twice to see them loaded without being compiled.
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

from benchmarks.hosts import environment
from benchmarks.overhead.resident import resident

WIDTH, VOCABULARY = 4096, 151936
TOKENS = (1, 16, 32, 64, 256)
PAGES, PAGE_SHAPE = 80, (2, 1024, 16, 8, 128)
"""Blocks that a proof reads, and a KV cache (keys and values, blocks, tokens, heads, head size)."""
PROOF_CASES = (
    "rows of int64", "columns of int64", "bytes as int64", "cat of int32", "cat of int64",
    "stack of int64", "index of int16 pages by int32", "index of bf16 pages by int64",
    "index_select of int16 pages", "gather of int64", "int32 to int64", "copy of a strided view",
    "copy of strided pages", "clone", "zero", "arange of int64", "remainder of int64",
    "another Triton kernel", "Triton sums",
)  # fmt: skip
PROOF_SEQUENCES = [
    ["another Triton kernel", "Triton sums", "proof of 8 layers", "checksum"],
    ["index of 1", "index of 16", "index of int16 pages by int32", "rows of int64",
     "columns of int64", "cat of int32", "cat of int64"],
]  # fmt: skip
"""What the proof runs now where Triton has run before, and what it ran before by PyTorch."""


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
    cases |= _proof_cases()
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


def _proof_cases() -> dict[str, Callable[[], Any]]:
    """What a proof that the KV cache is untouched could be made of."""
    import numpy as np
    import torch
    import triton
    import triton.language as tl

    from vllm_nfp.probe.kv_sums import block_sums, checksum, integers
    from vllm_nfp.probe.span_sums import span_sums

    @triton.jit
    def add_one(values):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        tl.store(values, tl.load(values) + 1)

    device = torch.device("cuda", torch.cuda.current_device())
    cache = torch.zeros(PAGE_SHAPE, dtype=torch.bfloat16, device=device)
    pages, whole_pages = integers(cache).movedim(1, 0), cache.view(-1, 16 * 8 * 128)
    words = torch.zeros((PAGES, 1 << 12), dtype=torch.int64, device=device)
    numbers = np.arange(1, 1 + PAGES, dtype=np.int32)
    ids = torch.from_numpy(numbers).to(device)
    long_ids = torch.from_numpy(numbers.astype(np.int64)).to(device)
    spans = np.array([[cache.data_ptr(), cache.nbytes]], dtype=np.int64)
    table = torch.zeros((64, 512), dtype=torch.int32, device=device)
    return {
        "rows of int64": lambda: words.sum(1),
        "columns of int64": lambda: words.sum(0),
        "bytes as int64": lambda: words.view(torch.uint8).sum(1, dtype=torch.int64),
        "cat of int32": lambda: torch.cat([ids, ids]),
        "cat of int64": lambda: torch.cat([long_ids, long_ids]),
        "stack of int64": lambda: torch.stack([long_ids, long_ids]),
        "index of int16 pages by int32": lambda: pages[ids],
        "index of bf16 pages by int64": lambda: whole_pages[long_ids],
        "index_select of int16 pages": lambda: pages.index_select(0, long_ids),
        "gather of int64": lambda: words.gather(0, long_ids[:8, None]),
        "int32 to int64": lambda: ids.to(torch.int64),
        "copy of a strided view": lambda: table[:8, :7].copy_(ids[:56].view(8, 7)),
        "copy of strided pages": pages[1:9].contiguous,
        "clone": table.clone,
        "zero": table.zero_,
        "arange of int64": lambda: torch.arange(1024, device=device),
        "remainder of int64": lambda: long_ids.remainder_(64),
        "another Triton kernel": lambda: add_one[(1,)](table),
        "Triton sums": lambda: span_sums(spans, device),
        "proof of 8 layers": lambda: block_sums([(pages, numbers)] * 8, device),
        "checksum": lambda: checksum([cache]),
    }


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
        command = [sys.executable, "-m", "benchmarks.memory.operator_memory", "--out", str(out)]
        subprocess.run([*command, "--worker", json.dumps(group)], check=False)


def _default_groups() -> list[list[str]]:
    others = ["sum of int64", "max of int64", "any", "cumsum", "dot of float32", "mean", "rsqrt"]
    lookups = ["embedding of", "index of", "index_select of", "gather of"]
    groups = [[name] for name in (*others, "sleep", "argmax")]
    groups += [[f"{name} {tokens}" for tokens in TOKENS] for name in lookups]
    groups += [["index of 16", "index of 1"]]
    return groups + [[name] for name in PROOF_CASES] + PROOF_SEQUENCES


if __name__ == "__main__":
    main()
