"""The load of :mod:`benchmarks.verification.compare`: the same places of the same streams for all.

Every request goes on until the slowest has passed the measured places, so that so many requests run
all the time. Each one's speed is measured between two places of its answer, wherever in time they
are. So all ways of drafting make the same tokens, and none gains by what lies before or after.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from benchmarks.serving.load import LoadError, session_for_load, stream_answer
from benchmarks.serving.load_result import Trace
from benchmarks.verification.streams import prompt_of

T = TypeVar("T")
BEGIN = 64
"""Place of an answer at which its speed begins to count: all requests run by then."""
POLL_SECONDS = 0.02
LOOK_SECONDS = 0.2
LONGEST_ANSWER = 4
"""A request may make so many times the tokens that are measured, while slower ones go on."""


@dataclass(frozen=True, slots=True)
class Point:
    """A load; request i meets stream i."""

    context: str
    prompts: tuple[int, ...]
    """Tokens of each request's prompt."""
    places: int
    """Measured, of each answer."""

    @property
    def requests(self) -> int:
        """Requests at the same time."""
        return len(self.prompts)


@dataclass(frozen=True, slots=True)
class Speed:
    """What a load has shown."""

    tokens_per_second: float
    """Of all requests together, if answers of equal length follow one another."""
    seconds: float
    """From the first request to the end."""
    whole: bool
    """Whether all requests ran while any was measured."""


def bodies(point: Point, model: str, vocabulary: int, tokens: int) -> list[bytes]:
    """Of the requests of a point."""
    asked = {
        "model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    return [
        json.dumps({**asked, "prompt": prompt_of(number, length, vocabulary)}).encode()
        for number, length in enumerate(point.prompts)
    ]


def fill(url: str, model: str, vocabulary: int, prompts: Sequence[int]) -> None:
    """Have the prompts read once: they are in the prefix cache from then on."""
    asked = bodies(Point("", tuple(prompts), 0), model, vocabulary, 1)

    async def send() -> None:
        async with session_for_load() as session:
            await asyncio.gather(
                *(stream_answer(session, url, body, Trace(0.0), lambda: None) for body in asked)
            )

    asyncio.run(send())


def lead_in(
    url: str,
    model: str,
    vocabulary: int,
    point: Point,
    enough: Callable[[float], bool],
) -> float:
    """Send a point's requests again and again, with answers as long as measured ones.

    Args:
        enough: takes the seconds so far, and says whether to end; asked every LOOK_SECONDS.

    Returns:
        The seconds that it took.

    Raises:
        LoadError: if the server refuses one.
    """
    asked = bodies(point, model, vocabulary, BEGIN + point.places)
    began = time.perf_counter()

    async def again(body: bytes) -> None:
        async with session_for_load() as session:
            while True:
                await stream_answer(session, url, body, Trace(0.0), lambda: None)

    async def send() -> float:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(again(body)) for body in asked]
            while not await asyncio.to_thread(enough, time.perf_counter() - began):
                await asyncio.sleep(LOOK_SECONDS)
            for task in tasks:
                task.cancel()
        return time.perf_counter() - began

    return _run_all(send())


def measure(
    url: str, model: str, vocabulary: int, point: Point, limit_seconds: float = 60.0
) -> Speed:
    """Send a point's requests, and end them once all have passed the measured places.

    Raises:
        LoadError: if the server refuses one, or they do not get there in time.
    """
    end = BEGIN + point.places
    asked = bodies(point, model, vocabulary, LONGEST_ANSWER * end)
    began = time.perf_counter()
    traces = _run_all(_run(url, asked, end, limit_seconds))
    return speed(traces, BEGIN, end, time.perf_counter() - began)


def measure_for(seconds: float, url: str, model: str, vocabulary: int, point: Point) -> Speed:
    """Measure a point until so many seconds have passed, once at least.

    Raises:
        LoadError: as :func:`measure`.
    """
    found = [measure(url, model, vocabulary, point)]
    while sum(one.seconds for one in found) < seconds:
        found.append(measure(url, model, vocabulary, point))
    return Speed(
        float(np.mean([one.tokens_per_second for one in found])),
        sum(one.seconds for one in found),
        all(one.whole for one in found),
    )


def _run_all(work: Coroutine[Any, Any, T]) -> T:
    """What requests in a group come to; their first error as one of the load."""
    try:
        return asyncio.run(work)
    except ExceptionGroup as group:
        raise LoadError(f"the load failed: {group.exceptions[0]}") from group


async def _run(url: str, asked: Sequence[bytes], end: int, limit_seconds: float) -> list[Trace]:
    traces = [Trace(time.perf_counter()) for _ in asked]
    deadline = time.perf_counter() + limit_seconds
    async with session_for_load() as session, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream_answer(session, url, body, trace, lambda: None))
            for body, trace in zip(asked, traces, strict=True)
        ]
        while any(sum(trace.counts) < end for trace in traces):
            await asyncio.sleep(POLL_SECONDS)
            if time.perf_counter() > deadline:
                raise LoadError(f"no {end} tokens of each request within {limit_seconds:.0f} s")
        for task in tasks:
            task.cancel()
    return traces


def speed(traces: Sequence[Trace], begin: int, end: int, seconds: float) -> Speed:
    """The speed between two places of each answer."""
    each, firsts, begins, ends = [], [], [], []
    for trace in traces:
        so_far = np.cumsum(trace.counts)
        first, last = (int(np.searchsorted(so_far, place)) for place in (begin, end))
        spent = trace.arrivals[last] - trace.arrivals[first]
        each.append(spent / float(so_far[last] - so_far[first]))
        firsts.append(trace.arrivals[0])
        begins.append(trace.arrivals[first])
        ends.append(trace.arrivals[last])
    stopped = min((t.ended for t in traces if t.ended is not None), default=float("inf"))
    whole = max(firsts) <= min(begins) and max(ends) <= stopped
    return Speed(len(traces) / float(np.mean(each)), seconds, whole)
