"""What a soak sends, and what it finds changed; nothing here starts a server."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
from click.testing import CliRunner

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("aiohttp")

from benchmarks.hosts import environment
from benchmarks.overhead import soak, soak_traffic
from benchmarks.serving import load, server, shapes
from benchmarks.serving.server import Spec
from benchmarks.serving.traffic import Load

BASE = Load("http://x", "m", 1000, 1, 64, 64, seconds=6.0)


def test_traffic_is_mixed_and_fits_the_context() -> None:
    found = list(itertools.islice(soak_traffic.cycle(BASE, 2.0, 512), 8))
    assert all(one.load.prompt_tokens + one.load.output_tokens <= 512 for one in found)
    assert len({one.load.seed for one in found}) == 8, "no prompt comes again"
    kinds = {(one.load.prompt_tokens, one.per_second) for one in found}
    assert len(kinds) == len(soak_traffic.KINDS)
    assert max(one.load.prompt_tokens for one in found) == 384
    assert (min(one.per_second for one in found), max(one.per_second for one in found)) == (0.5, 16)


def test_fixed_prompts_are_the_same_each_time() -> None:
    tokens = soak_traffic.token_prompts(1000)
    assert tokens == soak_traffic.token_prompts(1000)
    assert len(tokens) == len(soak_traffic.real_texts()) == soak_traffic.FIXED_PROMPTS
    assert all(2 <= token < 1000 for prompt in tokens for token in prompt)


def test_answers_are_asked_for_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Any] = []

    def complete(url: str, body: Any) -> dict[str, Any]:
        bodies.append(body)
        logprobs = {"token_logprobs": [-0.5]} if isinstance(body["prompt"], str) else None
        return {"choices": [{"token_ids": [len(bodies)], "logprobs": logprobs, "text": "a"}]}

    monkeypatch.setattr(soak_traffic, "complete", complete)
    found = soak_traffic.answers("http://x", "m", ["Tell me.", [3, 4]])
    assert [one["tokens"] for one in found] == [[1], [2]]
    assert [one["logprobs"] for one in found] == [[-0.5], None]
    assert {body["temperature"] for body in bodies} == {0}
    assert all(body["return_tokens_as_token_ids"] for body in bodies)


def test_a_refusal_has_the_servers_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, body: Any) -> dict[str, Any]:
        raise HTTPError(url, 400, "Bad Request", Message(), io.BytesIO(b"no tokenizer here"))

    monkeypatch.setattr(soak_traffic, "complete", refuse)
    with pytest.raises(load.LoadError, match="answered 400: no tokenizer here"):
        soak_traffic.answers("http://x", "m", [[3, 4]])


def test_an_answer_that_changed_is_named_with_what_changed() -> None:
    before = [{"tokens": [1], "logprobs": [-0.5]}, {"tokens": [2], "logprobs": [-0.25]}]
    assert soak.changed(before, before) == []
    after = [before[0], {"tokens": [2], "logprobs": [-0.26]}]
    assert soak.changed(before, after) == ["answer 2 of 2 is another at the end: logprobs"]


def test_gpu_memory_that_grows_is_told() -> None:
    samples = [soak.Sample(float(i), 100.0, 10, 5, 2, gpu_mib=2.0 * i) for i in range(80)]
    assert soak.grown(samples) == ["gpu_mib grew by 90, more than 64"]


def test_a_real_model_is_served_with_its_weights_and_tokenizer(tmp_path: Path) -> None:
    real = Spec(tmp_path, tmp_path / "log", 1, real=True).command()
    dummy = Spec(tmp_path, tmp_path / "log", 1).command()
    assert "--load-format" not in real and "--skip-tokenizer-init" not in real
    assert "--load-format" in dummy and "--skip-tokenizer-init" in dummy


def test_growth_is_told_by_process_and_of_the_heaps() -> None:
    samples = [
        soak.Sample(
            float(i), 100.0, 10, 5, 2, heap_mib=2.0 * i, by_process={"vllm": 7.0, "worker": 1.0 * i}
        )
        for i in range(80)
    ]
    found = soak.growth_by_process(samples)
    assert found == {"vllm": 0.0, "worker": 45.0, "all heaps": 90.0}


def test_the_heap_is_told_from_other_memory() -> None:
    smaps = (
        "55d0-55e0 rw-p 00000000 00:00 0     [heap]\nSize:    4096 kB\nRss:     2048 kB\n"
        "7f00-7f10 rw-p 00000000 00:00 0 \nSize:    8192 kB\nRss:     8192 kB\n"
    )
    assert soak.heap_mib(smaps) == 2.0
    assert soak.heap_mib(smaps.replace("[heap]", "")) == 0.0


@pytest.mark.parametrize(
    ("flags", "probe", "variables"),
    [
        ((), {}, soak.STEADY_MEMORY),
        (("--without-probe",), None, soak.STEADY_MEMORY),
        (("--default-memory",), {}, {}),
    ],
)
def test_a_soak_can_leave_out_the_probe_and_the_steady_memory(
    flags: tuple[str, ...],
    probe: dict[str, Any] | None,
    variables: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Spec] = []

    @contextlib.contextmanager
    def running(specs: Sequence[Spec]) -> Iterator[list[object]]:
        started.extend(specs)
        yield [object()]

    commits = iter(["at the start"])

    def no_run(*_: object) -> dict[str, Any]:
        assert next(commits, None) is None, "the commit is that of the start"
        return {"problems": [], "growth": {}}

    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    monkeypatch.setattr(shapes, "shared_model", lambda *_: tmp_path)
    monkeypatch.setattr(server, "running_together", running)
    monkeypatch.setattr(environment, "record", lambda: {"commit": next(commits)})
    monkeypatch.setattr(server, "end_servers_on_sigterm", lambda: None)
    monkeypatch.setattr(soak, "run", no_run)
    done = CliRunner().invoke(soak.main, ["--out", str(tmp_path), *flags])
    assert done.exit_code == 0, done.output
    assert (started[0].probe, started[0].extra) == (probe, variables)
    record = json.loads((tmp_path / "soak.json").read_text())
    assert (record["probed"], record["variables"]) == (probe is not None, variables)


def test_a_server_without_the_probe_is_asked_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_probe(_: str) -> dict[str, Any]:
        raise AssertionError("there is no probe to ask")

    one: Any = SimpleNamespace(url="http://x", child=SimpleNamespace(pid=1))
    samples = [soak.Sample(float(i), 100.0, 10, 5, 2) for i in range(80)]
    monkeypatch.setattr(soak, "model_card", lambda _: {"id": "m", "max_model_len": 512})
    monkeypatch.setattr(soak, "require_probe", no_probe)
    monkeypatch.setattr(soak, "probe_state", no_probe)
    monkeypatch.setattr(soak, "soak", lambda *_: samples)
    monkeypatch.setattr(soak_traffic, "answers", lambda *_: [])
    found = soak.run(one, [], 100, 1.0, 1.0, 1.0, probed=False)
    assert (found["probe"], found["problems"]) == (None, [])
