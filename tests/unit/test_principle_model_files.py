"""Reading config.json: what is found, and what is refused in which words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_principle_models import LLAMA_3_8B

from vllm_nfp.principle import ShapeError, load_config, shape_from_config
from vllm_nfp.principle.model_files import MAX_CONFIG_BYTES


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return tmp_path


def test_a_folder_or_the_file(model: Path) -> None:
    assert load_config(model) == load_config(str(model / "config.json")) == LLAMA_3_8B


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf{}")
    assert load_config(file) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"config.json is not JSON \(line 1: Expecting value\)"),
        (b"{\n'a': 1}", r"is not JSON \(line 2: "),
        (b"[1]", "does not hold a JSON object"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "has a number too large to read"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": "' + b"x" * MAX_CONFIG_BYTES + b'"}', "is larger than 4 MiB"),
    ],
)
def test_refused_contents(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ShapeError, match=message) as refusal:
        load_config(file)
    text = str(refusal.value)
    assert str(file) in text
    assert text.endswith("give a directory with a config.json, or the file itself")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"has no config.json: give a directory"):
        load_config(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ShapeError, match=r"no config.json but params.json, which is not read"):
        load_config(tmp_path)
    with pytest.raises(
        ShapeError, match=r"no directory 'org/model': get the config with 'hf download org/model"
    ):
        load_config("org/model")
    with pytest.raises(ShapeError, match=r"an empty path names no model"):
        load_config(" ")
    with pytest.raises(ShapeError, match=r"no file or directory|cannot be read"):
        load_config("a\0b")
    with pytest.raises(ShapeError, match=r"no file or directory|cannot be read"):
        load_config("a" * 100_000)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ShapeError, match=r"has no config.json"):
        load_config(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads any file")
def test_an_unreadable_file(model: Path) -> None:
    (model / "config.json").chmod(0)
    with pytest.raises(ShapeError, match=r"config.json cannot be read \(Permission denied\)"):
        load_config(model)


def test_reading_errors_name_the_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ShapeError, match=r"config.json cannot be read \(Permission denied\)"):
        load_config(model)


def test_quantization_beside_the_config_is_read_as_vllm_does(model: Path) -> None:
    beside = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (model / "hf_quant_config.json").write_text(json.dumps(beside))
    shape = shape_from_config(load_config(model))
    assert (shape.quantization, shape.weight_bytes, shape.kv_bytes) == ("fp8", 1, 1)
    own = {**LLAMA_3_8B, "quantization_config": {"quant_method": "awq", "bits": 4}}
    (model / "config.json").write_text(json.dumps(own))
    assert shape_from_config(load_config(model)).quantization == "wna16"
