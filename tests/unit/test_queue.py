"""The place in the agenda, and targets that cannot be run."""

from __future__ import annotations

from vllm_nfp.schedule.agenda import NO_AGENDA, Agenda
from vllm_nfp.schedule.queue import Queue
from vllm_nfp.types import Shape

TWO, FOUR, EIGHT = (Shape(1, 64, n) for n in (2, 4, 8))


class Latest:
    agenda = NO_AGENDA

    def __call__(self) -> Agenda:
        return self.agenda


def queue_of(*shapes: Shape) -> tuple[Queue, Latest]:
    latest = Latest()
    latest.agenda = Agenda(shapes)
    return Queue(latest), latest


def taken(queue: Queue, count: int, now: float = 0.0) -> list[Shape | None]:
    return [queue.next(now) for _ in range(count)]


def test_targets_come_in_order_and_from_the_top_again() -> None:
    queue, _ = queue_of(TWO, FOUR, EIGHT)
    assert not queue.used_up
    assert taken(queue, 2) == [TWO, FOUR]
    assert not queue.used_up
    assert taken(queue, 1) == [EIGHT]
    assert queue.used_up
    assert taken(queue, 4) == [TWO, FOUR, EIGHT, TWO]
    assert queue.used_up, "the next agenda is wanted until it comes"


def test_a_new_agenda_is_begun_at_its_top() -> None:
    queue, latest = queue_of(TWO, FOUR, EIGHT)
    taken(queue, 2)
    latest.agenda = Agenda((TWO, FOUR, EIGHT))  # alike, but made anew
    assert taken(queue, 3) == [TWO, FOUR, EIGHT]
    latest.agenda = Agenda((FOUR,), settled=True)
    assert not queue.used_up and queue.settled
    assert taken(queue, 2) == [FOUR, FOUR]


def test_nothing_comes_of_an_empty_agenda() -> None:
    queue = Queue(Latest())
    assert queue.next(0.0) is None
    assert queue.used_up and not queue.settled


def test_a_target_that_was_refused_never_comes_back() -> None:
    queue, latest = queue_of(TWO, FOUR)
    queue.refuse(TWO)
    assert taken(queue, 3, now=1e9) == [FOUR, FOUR, FOUR]
    latest.agenda = Agenda((TWO, FOUR, EIGHT))
    assert taken(queue, 2) == [FOUR, EIGHT]
    for target in (FOUR, EIGHT):
        queue.refuse(target)
    assert queue.next(0.0) is None and queue.used_up
    assert queue.refused == {TWO, FOUR, EIGHT}


def test_a_target_that_was_put_off_comes_back_after_longer_and_longer_waits() -> None:
    queue, _ = queue_of(TWO, FOUR)
    for now, seconds in ((0.0, 10.0), (100.0, 20.0), (200.0, 40.0)):
        queue.wait(FOUR, now)
        assert set(taken(queue, 4, now + seconds - 1.0)) == {TWO}
        assert queue.put_off == {FOUR}
        assert set(taken(queue, 4, now + seconds)) == {TWO, FOUR}
        assert queue.put_off == frozenset()
    queue.measured(FOUR)
    queue.wait(FOUR, 300.0)
    assert set(taken(queue, 4, 310.0)) == {TWO, FOUR}, "its next wait is a first one"
