"""The pure parts of benchmarks/engines/images.py: no server, no GPU."""

from __future__ import annotations

import base64
import importlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("aiohttp")

from benchmarks.engines.images import GPU, TRIAL, Chat, ImageSession, Mixed, Scale, compare, plan_of
from benchmarks.serving import shapes, vision_files

CHATS = (Chat(3, 1), Chat(3, 2, (1,)), Chat(3, 2, (2,)))


def answers(*tokens: int, logprob: float = -1.0) -> list[dict[str, Any]]:
    return [{"prompt_tokens": 9, "tokens": [one], "logprobs": [logprob]} for one in tokens]


def test_equal_rounds_are_told_from_those_that_differ() -> None:
    plain = answers(5, 6, 7)
    same = compare([plain, plain], plain, CHATS)
    assert same["token_ids_equal"] and same["logprobs_equal"] and same["picture_changes_answer"]
    assert (same["rounds"], same["with_pictures"], same["distinct_tokens"]) == (2, 2, 3)
    tokens = compare([plain, answers(5, 6, 8)], plain, CHATS)
    assert (tokens["token_ids_equal"], tokens["logprobs_equal"]) == (False, True)
    logprobs = compare([answers(5, 6, 7, logprob=-1.5), plain], plain, CHATS)
    assert (logprobs["token_ids_equal"], logprobs["logprobs_equal"]) == (True, False)
    assert not compare([], plain, CHATS)["token_ids_equal"], "nothing was compared"


def test_a_model_that_does_not_see_the_picture_is_noticed() -> None:
    blind = answers(5, 6, 6)
    assert not compare([blind], blind, CHATS)["picture_changes_answer"]


@pytest.mark.parametrize("scale", [GPU, TRIAL])
def test_compared_chats_have_no_one_and_two_pictures(scale: Scale) -> None:
    assert {len(chat.pictures) for chat in scale.chats} == {0, 1, 2}
    by_words: dict[int, set[tuple[int, ...]]] = {}
    for chat in scale.chats:
        by_words.setdefault(chat.seed, set()).add(chat.pictures)
    assert max(map(len, by_words.values())) == 2, "two chats differ in the picture alone"


@pytest.mark.parametrize("trial", [False, True])
def test_the_server_has_its_files_and_the_probe_no_setting(trial: bool, tmp_path: Path) -> None:
    plan = plan_of(trial)
    spec = ImageSession(tmp_path, tmp_path, 1.0)._spec(plan, 8000)
    assert trial or spec.probe == {}
    assert spec.output_dir == tmp_path / "probe-images"
    command = spec.command()
    assert command.index("--no-skip-tokenizer-init") > command.index("--skip-tokenizer-init")
    config = json.loads((spec.model / "config.json").read_text())
    tokenizer = json.loads((spec.model / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    assert sorted(words.values()) == list(range(config["vocab_size"]))
    added = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    assert added.items() <= words.items()
    ids = ("image", "video", "vision_start", "vision_end")
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    assert [added[name] for name in names] == [config[f"{one}_token_id"] for one in ids]
    assert (spec.model / "preprocessor_config.json").exists()
    assert vision_files.PICTURE in (spec.model / "chat_template.jinja").read_text()


def test_the_shape_is_the_published_one() -> None:
    config = shapes.SHAPES["qwen2.5-vl-7b"]
    assert (config["hidden_size"], config["num_hidden_layers"]) == (3584, 28)
    vision = config["vision_config"]
    assert isinstance(vision, dict)
    assert vision["out_hidden_size"] == config["hidden_size"]
    tiny = shapes.SHAPES["tiny-vl"]
    small = tiny["vision_config"]
    assert isinstance(small, dict)
    assert small["out_hidden_size"] == tiny["hidden_size"]
    for one in (config, tiny):
        rotary = one["rope_scaling"]
        assert isinstance(rotary, dict)
        heads = one["num_attention_heads"]
        assert isinstance(heads, int)
        assert 2 * sum(rotary["mrope_section"]) * heads == one["hidden_size"]


def test_every_other_request_of_the_load_has_a_picture() -> None:
    pytest.importorskip("PIL")
    traffic = Mixed("http://x", "m", 1, TRIAL)
    bodies = [traffic._prompt(random.Random(0), number) for number in range(4)]
    parts = [[part["type"] for part in one["messages"][0]["content"]] for one in bodies]
    assert parts == [["text"], ["image_url", "text"]] * 2
    assert traffic.asked == [False, True] * 2


def test_pictures_differ_by_seed_and_have_whole_tokens() -> None:
    image = pytest.importorskip("PIL.Image")

    def opened(seed: int) -> Any:
        address = vision_files.picture(seed, (2, 3))
        return image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))

    assert opened(1).size == (3 * 28, 2 * 28)
    assert opened(1).tobytes() != opened(2).tobytes()


def test_layers_get_different_weights_the_same_each_time() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.serving.wide_weights import SPREAD, widen

    def widened() -> dict[str, Any]:
        model = torch.nn.ModuleDict(
            {
                "embed_tokens": torch.nn.Embedding(50, 64),
                "first": torch.nn.Linear(64, 64),
                "second": torch.nn.Linear(64, 64),
                "norm": torch.nn.RMSNorm(64),
            }
        )
        widen(model)
        return {name: weight.detach() for name, weight in model.named_parameters()}

    one, other = widened(), widened()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["first.weight"], one["second.weight"])
    assert float(one["first.weight"].std()) == pytest.approx(SPREAD / 8, rel=0.1)
    assert float(one["embed_tokens.weight"].std()) == pytest.approx(1.0, rel=0.1)
    assert bool((one["norm.weight"] == 1).all()) and not bool(one["first.bias"].any())


@pytest.mark.parametrize("asked", ["1", "0", None])
def test_dummy_weights_are_widened_where_a_server_is_asked_to(
    asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    loader = pytest.importorskip("vllm.model_executor.model_loader.dummy_loader")
    from benchmarks.serving import wide_weights

    made: list[Any] = []

    def load_weights(self: Any, model: Any, *_: Any) -> None:
        made.append(model)

    monkeypatch.setattr(loader.DummyModelLoader, "load_weights", load_weights)
    monkeypatch.delenv(wide_weights.WIDE_VARIABLE, raising=False)
    if asked is not None:
        monkeypatch.setenv(wide_weights.WIDE_VARIABLE, asked)
    wide_weights.widen_if_asked()
    model = torch.nn.Linear(64, 64, bias=False)
    before = model.weight.detach().clone()
    loader.DummyModelLoader.load_weights(object(), model, object())
    assert made == [model]
    assert torch.equal(model.weight, before) == (asked != "1")


def test_the_probe_is_ended_in_every_session() -> None:
    pytest.importorskip("torch")
    from vllm_nfp.session.session import Session

    name = "benchmarks.answers.truth_extension"
    # The module changes the class when it is imported.
    with mock.patch.object(Session, "after_warm_up"), mock.patch.dict(sys.modules):
        sys.modules.pop(name, None)
        extension = importlib.import_module(name)
        sessions = [mock.Mock(), mock.Mock()]
        extension._ATTACHED.extend((one, None) for one in sessions)
        answer = json.loads(extension.TruthServer().nfp_end())
    assert answer == {"ended": 2}
    for one in sessions:
        one.disable.assert_called_once_with(extension.UNPROBED, expected=True)
