"""Exchanges through shared memory, between processes."""

from __future__ import annotations

import mmap
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_lockstep import Hub, in_parallel

from vllm_nfp.schedule import mailbox
from vllm_nfp.schedule.lockstep import WireError
from vllm_nfp.schedule.mailbox import SLOT_BYTES, SLOTS, Mailbox, faster
from vllm_nfp.schedule.message import VALUES


def pair() -> list[Mailbox]:
    memory = mmap.mmap(-1, 2 * SLOTS * SLOT_BYTES)
    return [Mailbox(memory, rank, 2) for rank in range(2)]


def values(first: int, second: int = 0) -> list[int]:
    return [first, second] + [0] * (VALUES - 2)


def test_all_get_the_maxima_of_all() -> None:
    one, two = pair()
    handles = one.begin(values(5, -3)), two.begin(values(2, -1))
    assert list(one.finish(handles[0])) == list(two.finish(handles[1])) == values(5, -1)


def test_a_rank_waits_for_the_others_and_no_longer() -> None:
    one, two = pair()
    handle = one.begin(values(1))
    late = threading.Timer(0.1, lambda: two.begin(values(7)))
    late.start()
    begun = time.monotonic()
    assert one.finish(handle)[0] == 7
    assert 0.05 < time.monotonic() - begun < mailbox.LIMIT_SECONDS / 2


def test_a_silent_rank_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "LIMIT_SECONDS", 0.05)
    one, _ = pair()
    with pytest.raises(WireError, match="rank 1 has been silent"):
        one.finish(one.begin(values(1)))


def test_a_record_that_is_half_written_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "LIMIT_SECONDS", 0.05)
    one, two = pair()
    two.begin(values(9, 9))
    at = two._offset(1, 1) + 8
    two._memory[at : at + 4] = b"half"
    with pytest.raises(WireError):
        one.finish(one.begin(values(1)))


def test_the_next_exchange_does_not_overwrite_what_others_have_to_read() -> None:
    one, two = pair()
    for number in range(1, 3 * SLOTS):
        mine, theirs = one.begin(values(number)), two.begin(values(0))
        assert one.finish(mine)[0] == number
        ahead = one.begin(values(number + 100))  # while the other still reads the last one
        assert two.finish(theirs)[0] == number
        assert two.begin(values(0)) == ahead
        assert one.finish(ahead)[0] == two.finish(ahead)[0] == number + 100


def _work(connection: Any, path: str) -> None:
    with open(path, "r+b") as file:
        box = Mailbox(mmap.mmap(file.fileno(), 0), 1, 2)
    for number in range(2000):
        box.finish(box.begin(values(-number, number)))
    connection.send("done")


def test_two_processes_stay_in_step(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(2 * SLOTS * SLOT_BYTES))
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, str(path)), daemon=True)
    process.start()
    with path.open("r+b") as file:
        box = Mailbox(mmap.mmap(file.fileno(), 0), 0, 2)
    for number in range(2000):
        assert list(box.finish(box.begin(values(number, -number)))) == values(number, number)
    assert here.poll(30)
    process.join(30)


def test_ranks_of_one_host_get_a_mailbox_whose_name_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "_SHARED_FOLDER", tmp_path)
    hub = Hub(2)
    boxes = in_parallel(*(lambda r=r: faster(hub.wire(r, 5.0)) for r in range(2)))
    assert all(isinstance(box, Mailbox) for box in boxes)
    assert list(tmp_path.iterdir()) == []
    handles = [box.begin(values(rank)) for rank, box in enumerate(boxes)]
    assert [box.finish(h)[0] for box, h in zip(boxes, handles, strict=True)] == [1, 1]


def test_ranks_that_share_no_memory_keep_their_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "_SHARED_FOLDER", tmp_path)
    plain = mailbox._open
    monkeypatch.setattr(
        mailbox, "_open", lambda path, size, flags: plain(path, size, flags) if flags else None
    )
    hub = Hub(2)
    wires = [hub.wire(r, 5.0) for r in range(2)]
    assert in_parallel(*(lambda w=w: faster(w) for w in wires)) == wires
    assert list(tmp_path.iterdir()) == []
