"""On a CUDA GPU: a drafter in graphs that are captured like the model's drafts what it always does.

pytest -m gpu tests/gpu/test_drafter_graphs_gpu.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

PROGRAM = Path(__file__).with_name("drafter_passes.py")


def test_graphs_of_any_mix_draft_what_the_pass_in_pieces_drafts(tmp_path: Path) -> None:
    """Sums of another order may turn a draft where two logits are close: dummy weights."""
    out = tmp_path / "passes.json"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(out)],
        env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    seen = json.loads(out.read_text())
    replays = [one for one in seen if one["graph"]]
    assert len(replays) >= 100
    assert len(replays) == len(seen), "each decode step has a graph"
    cut = [one for one in replays if one["tokens"] % one["requests"]]
    assert len(cut) >= 30, "steps of unequal lengths"
    assert min(one["alike"] for one in replays) > 0.999
    drafts = sum(one["requests"] for one in replays)
    assert sum(one["equal"] for one in replays) >= 0.97 * drafts
