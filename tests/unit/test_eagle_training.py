"""How the EAGLE-3 head is trained: its answers, its time, its losses."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.serving import eagle_prompts
from benchmarks.serving.traces import AnswerTrace, read_traces
from benchmarks.verification import eagle_answers, eagle_head, eagle_train
from benchmarks.verification.eagle_answers import Answer
from benchmarks.verification.eagle_head import Clock, Sizes, generate
from benchmarks.verification.eagle_model import UNROLLED, Head, HeadShape, counted
from benchmarks.verification.eagle_train import RATE, WARM_UP, learning_rate, train_head

SIZES = Sizes(4, 2, 16, 20, 1, 4, 1, 16)


def test_no_subject_is_both_trained_on_and_recorded() -> None:
    kinds = {
        "chat": (eagle_prompts._ASKED, eagle_prompts._TOPICS),
        "code": (eagle_prompts._WRITTEN, eagle_prompts._JOBS),
        "copying": (eagle_prompts._COPIED, eagle_prompts._passages()),
    }
    for task, (forms, subjects) in kinds.items():
        sides = [set(eagle_prompts.prompts(task, 10**6, held)) for held in (False, True)]
        assert sum(map(len, sides)) == len(forms) * len(subjects) == len(sides[0] | sides[1])
        for subject in subjects:
            texts = {form.format(subject) for form in forms}
            assert [texts <= side for side in sides].count(True) == 1
            assert [bool(texts & side) for side in sides].count(True) == 1


@pytest.mark.parametrize(("within", "batches"), [(math.inf, 5), (0.0, 1)])
def test_answers_are_greedy_first_and_stop_with_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, within: float, batches: int
) -> None:
    def answers(*_: object, temperature: float | None = None, **__: object) -> Iterator[Any]:
        for batch in range(2 if temperature is None else 3):
            yield [([0 if temperature is None else 1], [batch])]

    monkeypatch.setattr(eagle_head, "answers", answers)
    generate(None, tmp_path, tmp_path, SIZES, Clock(time.monotonic(), within))
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    made = [([0], [0]), ([0], [1]), ([1], [0]), ([1], [1]), ([1], [2])]
    assert [tuple(json.loads(line)) for line in lines] == made[:batches]


def test_each_part_has_a_share_of_the_time() -> None:
    clock = Clock(time.monotonic(), 100.0)
    assert clock.left("generate") == pytest.approx(40.0, abs=1.0)
    assert clock.left("train") == pytest.approx(88.0, abs=1.0)
    assert Clock(0.0, math.inf).left("generate") == math.inf


def test_the_rate_rises_and_then_falls_with_the_share_that_is_over() -> None:
    assert learning_rate(0, 0.0) == pytest.approx(RATE / WARM_UP)
    assert learning_rate(WARM_UP, 0.0) == RATE
    assert learning_rate(10 * WARM_UP, 0.75) == pytest.approx(RATE / 4)
    assert learning_rate(10 * WARM_UP, 1.0) == 0.0


def small_target() -> Any:
    """Tokens follow each other in a ring, and the target is sure of that."""
    torch.manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(24, 32), dim=-1) * 6.0
    config = SimpleNamespace(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 1e4}, vocab_size=24,
        max_position_embeddings=128, num_hidden_layers=8,
    )  # fmt: skip

    def run(tokens: torch.Tensor, **_: object) -> Any:
        states = [embedding[tokens]] * 9
        return SimpleNamespace(hidden_states=states, last_hidden_state=embedding[(tokens + 1) % 24])

    weight = SimpleNamespace(weight=embedding)
    return SimpleNamespace(model=run, config=config, get_input_embeddings=lambda: weight)


def ring(count: int) -> list[Answer]:
    return [([i % 24], [(i + j) % 24 for j in range(1, 25)]) for i in range(count)]


def losses(out: Path) -> list[list[float]]:
    lines = (out / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["losses"] for line in lines]


def test_training_lowers_the_loss_of_all_draft_steps(tmp_path: Path) -> None:
    train_head(small_target(), ring(32), tmp_path, (24, 40, 16), math.inf)
    found = losses(tmp_path)
    assert len(found) == 40 * 2 / eagle_train.LOGGED
    assert len(found[0]) == UNROLLED
    assert all(last < 0.5 * first for first, last in zip(found[0], found[-1], strict=True))
    assert (tmp_path / "head" / "model.safetensors").exists()


def test_training_ends_with_its_time(tmp_path: Path) -> None:
    began = time.monotonic()
    train_head(small_target(), ring(8), tmp_path, (24, 10**6, 4), 1.0)
    assert time.monotonic() - began < 30.0
    assert len(losses(tmp_path)) >= 1
    assert (tmp_path / "head" / "model.safetensors").exists()


def test_reading_stops_with_its_share_of_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_head(small_target(), ring(8), tmp_path, (24, 1, 2), 0.0)
    assert "25% of the answers are read" in capsys.readouterr().out
    assert (tmp_path / "head" / "model.safetensors").exists()


def test_a_place_weighs_what_can_be_drafted_of_it() -> None:
    """Nothing is learned where the target wants tokens that the head cannot draft."""
    torch.manual_seed(0)
    shape = HeadShape(32, 48, 4, 2, 8, 1e-5, 1e4, 20, 50, 128, (2, 3, 4))
    model = Head(shape, torch.randn(50, 32), torch.arange(0, 40, 2))
    tokens, states = torch.randint(0, 50, (1, 12)), torch.randn(1, 12, 96)
    counts = torch.zeros(1, 12)
    counts[0, 9] = 1.0
    whole = torch.rand(1, 20).softmax(-1)
    full = model.losses(tokens, states, whole, counts)
    assert torch.allclose(model.losses(tokens, states, whole / 4, counts), full / 4)
    assert not model.losses(tokens, states, whole * 0, counts).any()


def test_places_that_count_are_those_of_the_head() -> None:
    """The head's first place is the second token's; what counts before it has none."""
    rows, columns = counted(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


def test_the_target_is_asked_where_answers_count() -> None:
    target = small_target()
    model = eagle_train._new_head(target, ring(24), 12)
    batch = eagle_train._features(target, model, [([1, 2, 3], [4, 5, 6]), ([7, 8], [9])])
    # After 3, 4, 5 and 8: what the target says next.
    wanted = (batch.last.float() @ model.embedding.T - batch.whole[:, None]).exp()
    assert wanted.sum(-1).tolist() == pytest.approx([1.0] * 4, abs=1e-4)
    assert wanted.argmax(-1).tolist() == [4, 5, 6, 9]


def test_each_recorded_answer_keeps_its_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All tasks are answered together, in an order of the answers' own."""

    def ids(_: Path, texts: list[str]) -> list[list[int]]:
        return [[len(text), *map(ord, text)] for text in texts]

    def answers(_: object, model: Path, texts: list[str], tokens: int) -> Iterator[list[Answer]]:
        yield [(one, one[:3]) for one in reversed(ids(model, texts))]

    seen: list[tuple[str, list[Answer]]] = []

    def recorded(_: object, __: object, answered: list[Answer], task: str, ___: int) -> list[Any]:
        seen.append((task, answered))
        zeros = np.zeros((1, eagle_head.LONGEST_DRAFT), dtype=np.float32)
        return [AnswerTrace(task, zeros, np.zeros(1, dtype=np.int64)) for _ in answered]

    for name, stand_in in (("prompt_ids", ids), ("answers", answers), ("record_answers", recorded)):
        monkeypatch.setattr(eagle_head, name, stand_in)
    monkeypatch.setattr(eagle_head, "load", lambda *_: None)
    sizes = dataclasses.replace(SIZES, recorded=2)
    eagle_head.record(None, tmp_path, tmp_path, sizes, Clock(0.0, math.inf))
    assert [task for task, _ in seen] == list(eagle_prompts.TASKS)
    for task, answered in seen:
        wanted = ids(tmp_path, eagle_prompts.prompts(task, 2, held_out=True))
        assert answered == [(one, one[:3]) for one in wanted]
    assert len(read_traces(tmp_path / "traces.npz")[0]) == 6


def test_answers_end_with_the_models_end_and_belong_to_their_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Target:
        config = SimpleNamespace(eos_token_id=2)

        def generate(self, ids: torch.Tensor, attention_mask: torch.Tensor, **how: Any) -> Any:
            assert (ids[attention_mask == 0] == 2).all()
            ids = ids.repeat_interleave(how["num_return_sequences"], 0)
            said = torch.stack([ids[:, -1], torch.full((len(ids),), 2), ids[:, -1]], 1)
            return torch.cat([ids, said], 1)

    monkeypatch.setattr(eagle_answers, "prompt_ids", lambda _, texts: [[5] * len(t) for t in texts])
    monkeypatch.setattr(eagle_answers, "SEQUENCES", {"cpu": 4, "cuda": 4})
    found = list(eagle_answers.answers(Target(), tmp_path, ["a", "bbb", "cc"], 3, samples=2))
    assert sorted(map(len, found)) == [2, 4], "two texts at once, twice each"
    assert sorted(one for batch in found for one in batch) == [
        ([5] * n, [5, 2]) for n in (1, 1, 2, 2, 3, 3)
    ]
