"""The text of hand-over files and profiles, made in pieces, and the pauses between them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_nfp import give_way as module
from vllm_nfp import strict_json
from vllm_nfp.give_way import LEAST_SECONDS, PAUSE_SECONDS, give_way
from vllm_nfp.results.snapshot import Snapshot, read_snapshot, write_snapshot
from vllm_nfp.strict_json import ROWS_AT_A_TIME, encode
from vllm_nfp.types import CurvePoint, State


def snapshot(rows: int) -> Snapshot:
    curves = tuple(
        CurvePoint("attention", 1, 1024, n + 1, 6, 1e-3, 1.0, 0.9, None, "full")
        for n in range(rows)
    )
    return Snapshot("m", "0", State.PROBING, probes={"measured": 3}, curves=curves)


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_A_TIME, ROWS_AT_A_TIME + 1, 5 * ROWS_AT_A_TIME])
def test_pieces_make_the_same_text_as_the_whole(rows: int) -> None:
    value = snapshot(rows)
    assert json.loads(encode(value)) == json.loads(json.dumps(dataclasses.asdict(value)))


def test_a_table_that_is_the_same_object_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dumped: list[object] = []
    dumps = strict_json._dumps

    def noted(value: object) -> str:
        dumped.append(value)
        return dumps(value)

    monkeypatch.setattr(strict_json, "_dumps", noted)
    first = snapshot(5 * ROWS_AT_A_TIME)
    text = encode(first)
    before = sum(isinstance(value, tuple) and len(value) > 0 for value in dumped)
    assert encode(dataclasses.replace(first, probes={"measured": 4})) != text
    after = sum(isinstance(value, tuple) and len(value) > 0 for value in dumped)
    assert before == after == 5
    assert encode(first) == text
    other = dataclasses.replace(first, curves=first.curves[:-1])
    assert json.loads(encode(other)) == json.loads(json.dumps(dataclasses.asdict(other)))


def test_a_large_snapshot_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "engine-0.json"
    write_snapshot(path, snapshot(100))
    assert read_snapshot(path) == snapshot(100)


@dataclass(frozen=True)
class Odd:
    value: object


def test_what_json_has_no_text_for_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(Odd(float("nan")))
    with pytest.raises(TypeError):
        encode(Odd({1, 2}))
    with pytest.raises(TypeError):
        encode({"no": "dataclass"})


def test_only_a_background_thread_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    give_way()
    assert slept == []
    thread = threading.Thread(target=give_way)
    thread.start()
    thread.join()
    assert slept == [PAUSE_SECONDS]


def test_a_pause_is_left_out_where_the_last_one_was_just_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pause costs more than most of the work between two."""
    now, slept = [100.0], []

    def work() -> None:
        for elapsed in (0.0, 0.4, 0.4, 0.4, 0.4, 5.0):
            now[0] += elapsed * LEAST_SECONDS
            before = len(slept)
            give_way()
            paused.append(len(slept) > before)

    paused: list[bool] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert paused == [True, False, False, True, False, True]


def test_a_serving_thread_goes_on_while_a_long_table_is_encoded() -> None:
    """Without pauses it would get the interpreter back once every 5 ms at most."""
    value, done = snapshot(4000), threading.Event()

    def write() -> None:
        encode(value)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    turns = 0
    while not done.is_set():
        time.sleep(0)  # as a call into CUDA does: let go of the interpreter, and take it again
        turns += 1
    thread.join()
    assert turns > 4000 / ROWS_AT_A_TIME
