"""Traces of a real model's drafts, and the head that they are recorded with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.serving.eagle_prompts import TASKS, prompts
from benchmarks.serving.traces import (
    AnswerTrace,
    TraceError,
    acceptance_by_position,
    by_confidence,
    read_traces,
    tokens_per_step,
    visited,
    write_traces,
)
from benchmarks.verification.eagle_checkpoint import load, save
from benchmarks.verification.eagle_model import UNROLLED, Head, HeadShape
from benchmarks.verification.eagle_record import record_answer


def trace(task: str, accepted: list[int], log_odds: list[list[float]]) -> AnswerTrace:
    return AnswerTrace(task, np.array(log_odds, dtype=np.float32), np.array(accepted))


CHAT = trace("chat", [2, 0, 0, 1], [[2.0, 0.5, -3.0], [1.0, -1.0, -2.0], [0.0] * 3, [3.0] * 3])
CODE = trace("code", [3], [[40.0, 1.0, 0.125]])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    write_traces(path, [CHAT, CODE], {"commit": "abc"})
    (chat, code), environment = read_traces(path)
    assert (chat.task, code.task, environment) == ("chat", "code", {"commit": "abc"})
    assert chat.accepted.tolist() == [2, 0, 0, 1]
    assert chat.log_odds.tolist() == CHAT.log_odds.tolist()
    assert code.log_odds.tolist() == [[127 / 8, 1.0, 0.125]], "one byte holds no more"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"accepted": np.array([4], dtype=np.uint8)}, "more tokens are accepted than drafted"),
        ({"accepted": np.array([1, 1], dtype=np.uint8)}, "do not fit together"),
        ({"tasks": np.array(["chat", "code"])}, "do not fit together"),
        ({"environment": np.array("{")}, "holds no traces"),
        ({"environment": np.array([{}], dtype=object)}, "holds no traces"),
    ],
)
def test_what_holds_no_traces_is_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], why: str
) -> None:
    write_traces(tmp_path / "whole.npz", [CODE], {})
    held = dict(np.load(tmp_path / "whole.npz")) | changes
    np.savez(tmp_path / "other.npz", **held)
    with pytest.raises(TraceError, match=why):
        read_traces(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("none")
    with pytest.raises(TraceError, match=r"text\.npz holds no traces"):
        read_traces(tmp_path / "text.npz")


def test_a_draft_length_visits_the_places_that_it_reaches() -> None:
    assert visited(CHAT, 3) == [0, 3]
    assert visited(CHAT, 1) == [0, 2, 3]
    assert visited(CHAT, 0) == [0, 1, 2, 3]
    assert acceptance_by_position([CHAT, CODE]) == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert tokens_per_step([CHAT], 3) == 1 + (2 + 1) / 2
    assert tokens_per_step([CHAT], 1) == 1 + (1 + 0 + 1) / 3


def test_acceptance_by_confidence_counts_what_was_verified() -> None:
    # Row 0: two right and one wrong; rows 1 and 2: the first is wrong; row 3: one right, one wrong.
    edges = (0.0, 0.4, 0.7)
    found = by_confidence([CHAT], edges)
    assert found == [(0.0, 1, 0.0), (0.4, 2, 0.5), (0.7, 4, 0.5)]


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
    wanted = torch.rand(1, 20).softmax(-1)
    counts = torch.zeros(1, length)
    counts[0, 8] = 1.0  # one position alone counts
    before = model.losses(tokens, states, wanted, counts)
    assert before.shape == (UNROLLED,)
    later, other = tokens.clone(), states.clone()
    later[0, 9:] = (later[0, 9:] + 1) % 50
    other[0, 8:] += 1.0
    assert torch.allclose(model.losses(later, other, wanted, counts), before)
    earlier = states.clone()
    earlier[0, 7] += 1.0
    assert not torch.allclose(model.losses(tokens, earlier, wanted, counts), before)


def test_later_draft_steps_read_the_heads_own_output() -> None:
    """Step j at a position has seen the target's states up to j positions before it alone."""
    model, length = head(), 12
    tokens, states = torch.randint(0, 50, (1, length)), torch.randn(1, length, 96)
    wanted, counts = torch.rand(1, 20).softmax(-1), torch.zeros(1, length)
    counts[0, 8] = 1.0
    before = model.losses(tokens, states, wanted, counts)
    for step in range(UNROLLED):
        changed = states.clone()
        changed[0, 7 - step + 1 :] += 1.0  # what this step must not see
        assert torch.allclose(model.losses(tokens, changed, wanted, counts)[step], before[step])
        changed[0, 7 - step] += 1.0
        found = model.losses(tokens, changed, wanted, counts)
        assert not torch.allclose(found[step], before[step])


def test_the_checkpoint_has_the_names_that_vllm_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = head()
    save(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["d2t"].tolist() == list(range(20)), "drafted id i is token i + d2t[i]"
    assert weights["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert {"fc.weight", "norm.weight", "lm_head.weight", "midlayer.hidden_norm.weight"} <= {
        *weights
    }
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == 20


def test_a_checkpoint_is_loaded_beside_its_target(tmp_path: Path) -> None:
    model = head()
    save(model, tmp_path)
    config = SimpleNamespace(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 1e4}, vocab_size=50,
        max_position_embeddings=128, num_hidden_layers=8,
    )  # fmt: skip
    embeddings = SimpleNamespace(weight=model.embedding)
    again = load(tmp_path, SimpleNamespace(config=config, get_input_embeddings=lambda: embeddings))
    assert again.drafted.tolist() == model.drafted.tolist()
    tokens, states = torch.randint(0, 50, (1, 12)), torch.randn(1, 12, 96)
    with torch.no_grad():
        one, other = (of.drafts(tokens, states, 3)[1] for of in (model, again))
    assert torch.allclose(one, other, atol=0.05), "16 bits"


def test_drafts_follow_from_the_heads_own_tokens() -> None:
    """Where an answer's tokens are what was drafted, training's unrolled steps give the same."""
    model, length, start = head(), 17, 6
    tokens, states = torch.randint(0, 50, (1, length)), torch.randn(1, length, 96)
    with torch.no_grad():
        ids, odds = model.drafts(tokens, states, UNROLLED)
        assert ids.shape == odds.shape == (1, length - UNROLLED, UNROLLED)
        tokens[0, start + 2 : start + 2 + UNROLLED] = ids[0, start]
        for step in range(UNROLLED):
            place = int((model.drafted == ids[0, start, step]).nonzero())
            wanted = torch.zeros(1, 20)
            wanted[0, place] = 1.0
            counts = torch.zeros(1, length)
            counts[0, start + step + 1] = 1.0
            loss = model.losses(tokens, states, wanted, counts)[step]
            assert float(torch.exp(-loss)) == pytest.approx(
                float(torch.sigmoid(odds[0, start, step]))
            )


def test_an_answers_drafts_are_compared_with_what_follows() -> None:
    """Prompt of 3 tokens, answer 10 to 16; the head drafts two tokens from each place."""

    class Drafts:
        drafted = torch.arange(3)
        shape = SimpleNamespace(layers=(0, 0, 0))

        def drafts(self, tokens: torch.Tensor, _: torch.Tensor, steps: int) -> tuple[object, ...]:
            rows = tokens.shape[1] - steps
            ids = torch.zeros(1, rows, steps, dtype=torch.long)
            ids[0, 2] = torch.tensor([11, 12])  # from the answer's first token on: both right
            ids[0, 3] = torch.tensor([12, 99])
            ids[0, 4] = torch.tensor([99, 14])
            return ids, torch.arange(rows * steps, dtype=torch.float).view(1, rows, steps)

    target = SimpleNamespace(
        model=lambda tokens, **_: SimpleNamespace(
            hidden_states=[torch.zeros(*tokens.shape, 2)], last_hidden_state=None
        )
    )
    answer = ([1, 2, 3], list(range(10, 17)))
    found = record_answer(target, Drafts(), answer, "chat", 2)  # type: ignore[arg-type]
    assert found is not None
    assert found.accepted.tolist() == [2, 1, 0, 0, 0]
    assert found.log_odds[0].tolist() == [4.0, 5.0]
    assert record_answer(target, Drafts(), ([1], [2, 3]), "chat", 2) is None  # type: ignore[arg-type]
