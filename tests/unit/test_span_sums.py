"""The kernel that sums a GPU's memory, run by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from triton import knobs

from vllm_nfp.probe import kv_sums, span_sums

PROGRAM = """
import json, sys
import numpy as np, torch
from vllm_nfp.probe.span_sums import span_sums
values = torch.from_numpy(np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8))
spans = np.array(json.loads(sys.argv[1]), dtype=np.int64)
def sums():
    return span_sums(spans + [[values.data_ptr(), 0]], torch.device("cpu")).tolist()
words = values.view(torch.int32)
found = [sums()]
for one, other in ((0, 1), (3, 3 + 1024), (5, 4000)):
    words[[one, other]] = words[[other, one]]
    found.append(sums())
values[-1] ^= 128
print(json.dumps([*found, sums()]))
"""
SPANS = [[0, 20_000], [4096, 4097], [6, 100], [16, 0]]


def sums_of(spans: list[list[int]]) -> list[list[int]]:
    """Sums of random bytes, and after each of four changes."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(spans)]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mixed_sum(data: bytes) -> int:
    """Of words and places, by MurmurHash3's finalizer, in plain integers; whole tiles of zeros."""
    data += bytes(-len(data) % 4096)
    total = 0
    for place, word in enumerate(np.frombuffer(data, dtype="<u4").tolist()):
        mixed = (word + place * 0x9E3779B9) % 2**32
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        total += mixed ^ mixed >> 16
    return total


def test_the_kernel_sums_whole_words_and_tells_every_change() -> None:
    first, *changed = sums_of(SPANS)
    data = np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert first == [
        mixed_sum(data), mixed_sum(data[4096:8196]), mixed_sum(data[4:108]), 0
    ]  # fmt: skip
    whole = [first[0], *(sums[0] for sums in changed)]
    assert len(set(whole)) == len(whole), "a change leaves the sum as it was"
    assert [sums[1] == first[1] for sums in changed] == [True, False, False, False]


@contextmanager
def compilations_are_errors() -> Iterator[Any]:
    """As under vLLM's ``--jit-monitor-mode error``."""

    def report() -> None:
        raise RuntimeError("Triton kernel JIT compilation during inference")

    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = report
    try:
        yield report
    finally:
        knobs.runtime.jit_post_compile_hook = before


def test_the_first_sums_are_not_reported_as_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_and_sum(spans: Any, device: Any) -> torch.Tensor:
        if knobs.runtime.jit_post_compile_hook is not None:  # as Triton does
            knobs.runtime.jit_post_compile_hook()
        return torch.zeros(len(spans), dtype=torch.int64)

    monkeypatch.setattr(span_sums, "span_sums", compile_and_sum)
    memory = SimpleNamespace(data_ptr=lambda: 4096, nbytes=lambda: 1 << 20)
    on_gpu: Any = SimpleNamespace(
        untyped_storage=lambda: memory, device=SimpleNamespace(type="cuda")
    )
    with compilations_are_errors() as report:
        assert kv_sums.checksum([on_gpu])
        assert knobs.runtime.jit_post_compile_hook is report, "later ones are not reported"
