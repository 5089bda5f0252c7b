"""The whole step's curves on their way from the probe's publisher to the draft controller."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_nfp import files, strict_json
from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft import curve_exchange, curve_set
from vllm_nfp.draft.between import between
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.curve_exchange import CurveReceiver, CurveSender
from vllm_nfp.draft.curve_set import CurveSet, curve_file, read_curves, write_curves
from vllm_nfp.draft.sources import curves_of_rows
from vllm_nfp.results.snapshot import SnapshotError
from vllm_nfp.types import Basis, CurvePoint

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (1024, 2048, 4096, 8192)


def rows(seed: int = 1, modules: tuple[str, ...] = ("attention", "model")) -> list[CurvePoint]:
    """Curves of 8 x 4 cells at the default grid, with every digit that a float can have."""
    rng = random.Random(seed)
    return [
        CurvePoint(
            module, batch_size, context, n, 32, rng.random(), 1.0 if n == 1 else 1.0 + rng.random(),
            0.9, 2.0, "none" if batch_size * n > 512 else "full", 1e-3, 2e-3,
        )
        for module in modules
        for batch_size in BATCH_SIZES
        for context in CONTEXTS
        for n in ProbeConfig().grid
    ]  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> ProbeConfig:
    return ProbeConfig(draft_control=True, run_dir=str(tmp_path))


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, config: ProbeConfig) -> CurveSender:
    """The sender of another process: it does not see the receivers of this one, nor they it."""
    sender = CurveSender(config, "0")
    send = sender.send

    def elsewhere(found: list[CurvePoint]) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(curve_exchange, "_latest", {})
            patch.setattr(curve_exchange, "_readers", {})
            return send(found)

    monkeypatch.setattr(sender, "send", elsewhere)
    assert not sender.send(rows(seed=3)), "where the controller is shows by the next time"
    assert not curve_file(str(config.run_dir), "0").exists()
    return sender


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened to be read from now on."""
    names: list[str] = []
    original = files.os.open

    def record(path: str, flags: int, *args: int, **kwargs: Any) -> int:
        if not flags & os.O_CREAT:
            names.append(Path(path).name)
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(files.os, "open", record)
    return names


def test_in_one_process_the_curves_arrive_without_a_file(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = CurveReceiver(config, "0")
    assert receiver.latest is None
    names = opened(monkeypatch)
    assert CurveSender(config, "0").send(rows())
    assert receiver.latest is not None
    assert receiver.latest.curves == curves_of_rows(rows())
    receiver.look()
    assert not names
    assert list(tmp_path.iterdir()) == []


def test_curves_from_before_the_controller_are_there_when_it_comes(config: ProbeConfig) -> None:
    """The worker warms up, and publishes, before the scheduler is made."""
    CurveSender(config, "0").send(rows())
    receiver = CurveReceiver(config, "0")
    assert receiver.latest is not None
    assert receiver.latest.curves == curves_of_rows(rows())
    assert CurveReceiver(config, "1").latest is None, "another engine has others"


def test_the_same_curves_stay_the_same_object(config: ProbeConfig) -> None:
    """So that the controller keeps what it has read off them."""
    receiver, sender = CurveReceiver(config, "0"), CurveSender(config, "0")
    sender.send(rows())
    before = receiver.latest
    sender.send(rows())
    assert receiver.latest is before
    sender.send(rows(seed=2))
    assert receiver.latest is not before


def test_between_processes_they_are_read_to_the_bit_and_once(
    config: ProbeConfig, apart: CurveSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = CurveReceiver(config, "0")
    receiver.look()
    assert receiver.latest is None
    assert apart.send(rows())
    names = opened(monkeypatch)
    receiver.look()
    assert receiver.latest is not None
    assert receiver.latest == CurveSet.of(curves_of_rows(rows()))
    assert {curve.without_graph_from for curve in receiver.latest.curves} > {None, 5, 24}
    for _ in range(3):
        receiver.look()
    assert names == ["curves-0.jsonl"], "what has not changed is not read"
    before = (tmp_path / "curves-0.jsonl").stat().st_ino
    apart.send(rows())
    assert (tmp_path / "curves-0.jsonl").stat().st_ino == before, "nor is it written"
    apart.send(rows(seed=2))
    receiver.look()
    assert receiver.latest.curves == curves_of_rows(rows(seed=2))
    assert names == ["curves-0.jsonl"] * 2
    assert os.listdir(tmp_path) == ["curves-0.jsonl"]


def test_what_is_read_is_small(
    config: ProbeConfig, apart: CurveSender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """8 x 4 cells at the default grid: 1 ms of CPU, where the snapshot took 30."""
    apart.send(rows())
    path = curve_file(str(tmp_path), "0")
    assert path.stat().st_size < 16_000
    parsed: list[int] = []
    loads, decoder = json.loads, curve_set._LINE

    def parse(text: bytes, **options: object) -> object:
        parsed.append(len(text))
        return loads(text, **options)

    def decode(line: bytes) -> object:
        parsed.append(len(line))
        return decoder.decode(line)

    monkeypatch.setattr(strict_json.json, "loads", parse)
    monkeypatch.setattr(curve_set, "_LINE", SimpleNamespace(decode=decode))
    assert len(read_curves(path).curves) == 32
    assert len(parsed) == 33
    assert max(parsed) < 500


def test_damaged_curves_give_one_warning_and_no_curves(
    config: ProbeConfig, apart: CurveSender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    apart.send(rows())
    receiver, path = CurveReceiver(config, "0"), curve_file(str(tmp_path), "0")
    receiver.look()
    good = path.read_text()
    for damage in (good[:2000], "{}", "", good.replace("[1,", "[-1,"), good + "\n" + "[" * 5000):
        path.unlink()
        path.write_text(damage)
        receiver.look()
        assert receiver.latest == CurveSet.of(())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    receiver.look()
    assert receiver.latest == CurveSet.of(())
    (warning,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "does without curves" in warning.message
    path.unlink()
    path.write_text(good)
    receiver.look()
    assert receiver.latest is not None
    assert receiver.latest.curves == curves_of_rows(rows())


def test_curves_that_cannot_be_written_are_written_later(
    config: ProbeConfig,
    apart: CurveSender,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve_exchange, "write_curves", full)
        assert not apart.send(rows())
        assert not apart.send(rows())
    assert len(caplog.records) == 1
    assert apart.send(rows())
    receiver = CurveReceiver(config, "0")
    receiver.look()
    assert receiver.latest is not None


def test_times_that_make_no_curve_are_no_fault_of_the_probe(
    config: ProbeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = CurveReceiver(config, "0")
    broken = [dataclasses.replace(row, median_seconds=0.0) for row in rows()]
    assert CurveSender(config, "0").send(broken)
    assert receiver.latest is None
    assert "has a time that is not above 0" in caplog.text


def test_engines_of_one_process_are_bounded(config: ProbeConfig) -> None:
    for engine in range(2 * curve_exchange.MOST_ENGINES):
        CurveReceiver(config, str(engine))
        CurveSender(config, str(engine)).send(rows(modules=("model",))[:11])
    assert len(curve_exchange._latest) <= curve_exchange.MOST_ENGINES
    assert len(curve_exchange._readers) <= curve_exchange.MOST_ENGINES


def plane(batch_size: int, context: int, basis: Basis = Basis.MEASURED) -> StepCurve:
    """Steps whose time is exactly proportional to powers of B N, and whose ratio is one of L."""
    counts = (1, 2, 4, 8, 16)
    points = tuple((n, float(n) ** (0.2 + 0.05 * math.log2(context / 256))) for n in counts)
    return StepCurve(
        batch_size, context, 1e-3 * batch_size**0.5, points, bases=(basis,) * len(counts)
    )


def ratio(table: CurveSet, batch_size: int, context: int, positions: int) -> float:
    found = table.ratio(batch_size, context, positions)
    assert found is not None
    return found[0]


def test_any_batch_size_and_context_is_read_off_on_log_lines() -> None:
    table = CurveSet.of(plane(b, c) for b in (1, 2, 4, 8) for c in (256, 1024, 4096))
    for n in (1, 2, 8, 16):
        assert ratio(table, 4, 1024, n) == pytest.approx(plane(4, 1024).ratio(n))
        assert ratio(table, 8, 2048, n) == pytest.approx(plane(8, 2048).ratio(n))
        for context, last in ((16, 256), (1 << 20, 4096)):
            # Beyond the contexts the last one holds.
            assert ratio(table, 2, context, n) == pytest.approx(plane(2, last).ratio(n))
    assert ratio(table, 4, 1024, 6) == plane(4, 1024).ratio_between(6)
    # 24 tokens of 6 sequences are 6 positions of 4, whose next point is 8, and 3 of 8, next 4.
    low, high, weight = plane(4, 1024), plane(8, 1024), math.log2(6 / 4)
    four, eight = low.seconds_at_one * low.ratio(8), high.seconds_at_one * high.ratio(4)
    one = low.seconds_at_one * low.ratio_between(1.5), high.seconds_at_one
    wanted = (four / one[0]) ** (1 - weight) * (eight / one[1]) ** weight
    assert ratio(table, 6, 1024, 4) == pytest.approx(wanted)
    assert between(low, high, 6).ratio(4) == pytest.approx(wanted)
    assert table.ratio(4, 1024, 17) is None


def test_far_outside_the_table_there_is_no_curve() -> None:
    table = CurveSet.of([plane(b, 1024) for b in (8, 16)])
    assert [table.ratio(b, 1024, 2) is None for b in (1, 5, 6, 16, 24, 25, 100)] == [
        True, True, False, False, False, True, True
    ]  # fmt: skip
    assert CurveSet.of(()).ratio(1, 1024, 1) is None


def test_what_is_read_off_rests_on_the_weakest_of_its_rows() -> None:
    table = CurveSet.of(
        [
            plane(1, 256),
            plane(2, 256),
            plane(1, 1024, Basis.INFERRED),
            plane(2, 1024, Basis.PREDICTED),
        ]
    )
    places = ((1, 256), (1, 512), (1, 1024), (2, 256), (2, 512), (2, 4096))
    found = [table.ratio(*place, 4) for place in places]
    assert [point[1] for point in found if point is not None] == [
        Basis.MEASURED, Basis.INFERRED, Basis.INFERRED,
        Basis.MEASURED, Basis.PREDICTED, Basis.PREDICTED,
    ]  # fmt: skip
    between_measured = CurveSet.of([plane(2, 1024), plane(4, 1024)]).ratio(3, 1024, 4)
    assert between_measured is not None
    assert between_measured[1] is Basis.INFERRED


def test_reading_off_takes_far_less_than_a_millisecond() -> None:
    """The engine core does it between two steps."""
    counts = tuple(range(1, 65))
    curves = [
        StepCurve(1 << b, 4**c, 1e-3 * 2**b, tuple((n, n**0.5) for n in counts))
        for b in range(9)
        for c in range(4, 8)
    ]
    table, places = CurveSet.of(curves), [(b, 300 + 90 * b) for b in range(3, 200, 7)]
    spent = []
    for place in places:
        begin = time.thread_time()
        assert table.ratio(*place, 9) is not None
        spent.append(time.thread_time() - begin)
    assert statistics.median(spent) < 2e-4


def test_answers_that_hardly_change_are_neither_sent_nor_written(
    config: ProbeConfig, apart: CurveSender, tmp_path: Path
) -> None:
    def moved(factor: float, basis: Basis = Basis.MEASURED) -> list[CurvePoint]:
        return [
            dataclasses.replace(row, ratio=row.ratio * factor, basis=basis)
            if row.positions == 4
            else row
            for row in rows()
        ]

    receiver, sender = CurveReceiver(config, "0"), CurveSender(config, "0")
    assert sender.send(rows())
    first = receiver.latest
    assert sender.send(moved(1.004))
    assert receiver.latest is first
    assert sender.send(moved(1.006))
    second = receiver.latest
    assert second is not first
    assert sender.send(moved(1.006, Basis.INFERRED))
    assert receiver.latest is not second
    assert apart.send(rows())
    path = tmp_path / "curves-0.jsonl"
    before = path.stat().st_ino
    assert apart.send(moved(1.004))
    assert path.stat().st_ino == before
    assert apart.send(moved(1.006))
    assert path.stat().st_ino != before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1,1024,0.001,null,[1,2],[1.0],[]]", "shorter"),
        ("[1,1024,0.001,null,[1,1],[1.0,1.0],[]]", "ascend"),
        ("[1,1024,0.001,null,[2],[1.0],[]]", "lacks its point at N = 1"),
        ("[true,1024,0.001,null,[1],[1.0],[]]", "Expected `int`, got `bool`"),
        ("[1,1024,true,null,[1],[1.0],[]]", "Expected `float`, got `bool`"),
        ("[1,1024,1e999,null,[1],[1.0],[]]", "out of range"),
        ("[1,1024,0.001,null]", "holds no curve"),
        ('[1,1024,0.001,null,[1],[1.0],["guessed"]]', "Invalid enum value"),
        ('[1,1024,0.001,null,[1,2],[1.0,1.0],["measured"]]', "lacks the basis"),
        ("7", "holds no curve"),
        (f"[1,1024,0.001,null,{list(range(1, 66))},{[1.0] * 65},[]]", "length <= 64"),
        ("[" + "9" * 5000 + "]", "more than 4096 bytes"),
    ],
)
def test_a_line_that_is_no_curve_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "curves-0.jsonl"
    path.write_text('{"schema":2,"curves":1}\n' + line)
    with pytest.raises(SnapshotError, match=said):
        read_curves(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"curves":2', '"curves":3'), "as many curves"),
        (lambda text: text.replace('"schema":2', '"schema":1'), "schema 2"),
        (lambda text: text.replace("[8,", "[1,"), "two curves of one cell"),
        (lambda text: text + "\n[]" * 300, "more than 256 curves"),
        (lambda text: text + " " * (1 << 20), "larger than"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, change: object, said: str) -> None:
    path = tmp_path / "curves-0.jsonl"
    write_curves(path, CurveSet.of([StepCurve(b, 1024, 1e-3, ((1, 1.0),)) for b in (1, 8)]))
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(SnapshotError, match=said):
        read_curves(path)


def test_the_largest_grid_fits(tmp_path: Path) -> None:
    rng = random.Random(1)
    points = tuple((n, 1.0 if n == 1 else 1 + rng.random()) for n in range(449, 513))
    points = ((1, 1.0), *points[1:])
    curves = [
        StepCurve(
            1000 + b,
            (1 << 22) - c,
            rng.random(),
            points,
            512,
            bases=(Basis.PREDICTED,) * len(points),
        )
        for b in range(16)
        for c in range(16)
    ]
    path = tmp_path / "curves-0.jsonl"
    write_curves(path, CurveSet.of(curves))
    assert read_curves(path) == CurveSet.of(curves)
