"""The substitution's kernels do what its operations of PyTorch do; Triton interprets them here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("triton")

PROGRAM = """
from types import SimpleNamespace as Has
import numpy as np, torch
from benchmarks.verification.kernels import Kernels
from benchmarks.verification.replay import Replay
from benchmarks.verification.streams import FIRST_TOKEN, Streams

rng = np.random.default_rng(3)
streams = Streams(
    rng.normal(size=(3, 8, 7)).astype(np.float32), rng.integers(0, 8, (3, 8)),
    rng.integers(2, 900, (3, 8)),
)
def held(values):
    return Has(gpu=torch.tensor(values, dtype=torch.int32))
# The last slot's request has no token of its answer yet, and is of no stream by its first token.
states = Has(
    all_token_ids=held([[FIRST_TOKEN + n, 5] for n in (1, 0, 2, 7, -1)]),
    prompt_len=held([2, 9, 4, 3, 2]), total_len=held([3, 29, 5, 12, 2]),
)
plain = Replay(states, streams, torch.device("cpu"))
kernels = Kernels(states, *plain.recorded)
slots = torch.tensor([3, 0, 4, 1], dtype=torch.int32)
def output(width):
    return Has(
        sampled_token_ids=torch.zeros(4, width, dtype=torch.int64),
        num_sampled=torch.tensor([1, 1, 0, 1], dtype=torch.int32),
        num_rejected=torch.tensor([9, 9, 9, 9], dtype=torch.int32),
    )
seen = 0
for width, ends in ((5, [0, 5, 6, 7, 10]), (5, None), (1, None)):
    one, other = output(width), output(width)
    given = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    plain.judge(slots, given, one)
    kernels.judge(slots, given, other)
    for name in vars(one):
        assert torch.equal(getattr(one, name), getattr(other, name)), (width, name)
    seen += int(one.sampled_token_ids.abs().sum() > 0)
drafts = torch.full((4, 4), -5)
assert torch.equal(plain.draft(slots, drafts), kernels.draft(slots, drafts))
assert (drafts == -5).all()
def estimator():
    return Has(slope=torch.tensor([0.5]), intercepts=torch.tensor([0.0, -1.0, -2.0, 0.3]),
               features=torch.zeros(5, 4), predictions=torch.zeros(5, 4))
one, other = estimator(), estimator()
first, second = torch.zeros(6, 4), torch.zeros(6, 4)
plain.grade(slots, one, first)
kernels.grade(slots, other, second)
assert torch.equal(one.features, other.features) and one.features.abs().sum() > 0
torch.testing.assert_close(one.predictions, other.predictions)
torch.testing.assert_close(first, second)
assert (second[4:] == 0).all()
print("compared", seen)
"""


def test_kernels_do_what_operations_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["compared", "3"]
