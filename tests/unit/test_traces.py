"""Traces of a real model's drafts, and the head that they are recorded with."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.eagle_model import UNROLLED, Head, HeadShape
from benchmarks.eagle_prompts import TASKS, prompts
from benchmarks.traces import (
    RequestTrace,
    StepTrace,
    TraceError,
    acceptance_by_position,
    by_confidence,
    read_traces,
    write_traces,
)

STEPS = (
    StepTrace((0.9, 0.6, 0.1), 2),
    StepTrace((0.8, 0.2, 0.1), 0),
    StepTrace((0.9, 0.7, 0.6), 3),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, traces = tmp_path / "t.jsonl.gz", [RequestTrace("chat", STEPS), RequestTrace("code", ())]
    write_traces(path, traces, {"commit": "abc"})
    first = path.read_bytes()
    write_traces(path, traces, {"commit": "abc"})
    assert path.read_bytes() == first
    assert read_traces(path) == (traces, {"commit": "abc"})


@pytest.mark.parametrize("row", ["{", '{"task": "chat"}', '{"task": "c", "steps": [[[90], 2]]}'])
def test_what_is_no_trace_is_refused_by_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(f"{json.dumps({})}\n{row}\n".encode()))
    with pytest.raises(TraceError, match="line 2"):
        read_traces(path)


def test_acceptance_counts_by_position_and_by_confidence() -> None:
    assert acceptance_by_position(STEPS) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    # The third token of the first draft was verified and rejected; those after a rejected one,
    # as in the second draft, say nothing.
    assert by_confidence(STEPS, (0.0, 0.5)) == [(0.0, 1, 0.0), (0.5, 6, pytest.approx(5 / 6))]


def test_no_prompt_is_both_trained_on_and_recorded() -> None:
    for task in TASKS:
        trained, recorded = (prompts(task, 1000, held_out) for held_out in (False, True))
        assert len(recorded) >= 20
        assert len(trained) >= 150
        assert not set(trained) & set(recorded)
        assert prompts(task, 5, held_out=True) == recorded[:5]


SHAPE = HeadShape(32, 48, 4, 2, 8, 1e-5, 1e4, 20, 50, 128, (2, 3, 4))


def head() -> Head:
    torch.manual_seed(0)
    return Head(SHAPE, torch.randn(50, 32), torch.arange(0, 40, 2))


def test_a_draft_step_does_not_see_later_tokens() -> None:
    model, length = head(), 12
    tokens, states = torch.randint(0, 50, (1, length)), torch.randn(1, length, 96)
    wanted = torch.rand(1, length, 20).softmax(-1)
    counts = torch.zeros(1, length)
    counts[0, 6] = 1.0  # one position alone counts
    before = model.losses(tokens, states, wanted, counts)
    assert before.shape == (UNROLLED,)
    later, other = tokens.clone(), states.clone()
    later[0, 7:] = (later[0, 7:] + 1) % 50
    other[0, 6:] += 1.0
    assert torch.allclose(model.losses(later, other, wanted, counts), before)
    earlier = states.clone()
    earlier[0, 5] += 1.0
    assert not torch.allclose(model.losses(tokens, earlier, wanted, counts), before)


def test_later_draft_steps_read_the_heads_own_output() -> None:
    """Step j at a position has seen the target's states up to j positions before it alone."""
    model, length = head(), 12
    tokens, states = torch.randint(0, 50, (1, length)), torch.randn(1, length, 96)
    wanted, counts = torch.rand(1, length, 20).softmax(-1), torch.zeros(1, length)
    counts[0, 6] = 1.0
    before = model.losses(tokens, states, wanted, counts)
    for step in range(UNROLLED):
        changed = states.clone()
        changed[0, 5 - step + 1 :] += 1.0  # what this step must not see
        assert torch.allclose(model.losses(tokens, changed, wanted, counts)[step], before[step])
        changed[0, 5 - step] += 1.0
        found = model.losses(tokens, changed, wanted, counts)
        assert not torch.allclose(found[step], before[step])


def test_the_checkpoint_has_the_names_that_vllm_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = head()
    model.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["d2t"].tolist() == list(range(20)), "drafted id i is token i + d2t[i]"
    assert weights["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert {"fc.weight", "norm.weight", "lm_head.weight", "midlayer.hidden_norm.weight"} <= {
        *weights
    }
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == 20
