"""Where a config.json comes from: paths, the Hugging Face cache, and examples of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_principle_models import LLAMA_3_8B, QWEN_3_8B

from vllm_nfp import predict
from vllm_nfp.cli import main
from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.examples import example, example_names
from vllm_nfp.principle.model_sources import read_model

# Billions of parameters by the model cards.
PUBLISHED = {
    "qwen3-0.6b": 0.6, "qwen3-1.7b": 1.7, "qwen3-4b": 4.0, "qwen3-8b": 8.2, "qwen3-14b": 14.8,
    "qwen3-32b": 32.8, "qwen3-30b-a3b": 30.5, "qwen3-235b-a22b": 235, "llama-3.2-1b": 1.24,
    "llama-3.1-8b": 8.03, "llama-3.3-70b": 70.6, "mixtral-8x7b": 46.7, "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 117, "glm-4.5-air": 106, "deepseek-v3": 671,
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds the config of someone/model."""
    constants = pytest.importorskip("huggingface_hub.constants")
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA_3_8B))
    refs = tmp_path / "models--someone--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123456789abcdef")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", example_names())
def test_examples_have_the_published_size(name: str) -> None:
    found = example(name)
    assert found is not None
    parameters = shape_from_config(found[1]).total_parameters
    assert parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.03)


@pytest.mark.parametrize("name", ["qwen3-8b", "Qwen3_8B", "QWEN3-8B"])
def test_an_example_is_named_in_any_spelling(name: str) -> None:
    config, shown = read_model(name)
    assert shown == "qwen3-8b"
    assert shape_from_config(config).num_layers == 36
    assert predict(name, "H100-SXM", (1,), (1024,)).model == "qwen3-8b"


def test_a_directory_goes_before_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-8b").mkdir()
    (tmp_path / "qwen3-8b" / "config.json").write_text(json.dumps({**QWEN_3_8B, "x": 1}))
    assert read_model("qwen3-8b")[0]["x"] == 1


def test_a_repository_is_found_in_the_local_cache(cache: Path) -> None:
    config, name = read_model("someone/model")
    assert config["hidden_size"] == 4096
    assert name == "someone/model"


def test_a_quantization_file_beside_a_cached_config_is_read(cache: Path) -> None:
    snapshot = next((cache / "models--someone--model" / "snapshots").iterdir())
    (snapshot / "hf_quant_config.json").write_text(json.dumps({"quantization": {}}))
    assert read_model("someone/model")[0]["quantization_config"] == {"quantization": {}}


def test_one_command_fetches_what_is_not_there(cache: Path) -> None:
    with pytest.raises(ShapeError, match=r"'hf download other/model config\.json' and run this"):
        read_model("other/model")
    with pytest.raises(ShapeError, match=r"no file or directory 'other': .* qwen3-8b"):
        read_model("other")


def test_refusals_end_with_code_2(cache: Path) -> None:
    done = CliRunner().invoke(main, ["predict", "other/model", "--hardware", "H100-SXM"])
    assert done.exit_code == 2
    assert "hf download other/model config.json" in " ".join(done.output.split())
