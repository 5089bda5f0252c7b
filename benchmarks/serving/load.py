"""A streaming load of fixed concurrency or of fixed rate, with the arrival time of every token.

Requests carry token ids, so that the server needs no tokenizer, and each sender starts its next
request when the last one ends. Tokens are counted by the server's running count in each event
(``continuous_usage_stats``): without it, two tokens that left in one event would count as one.

The measured window opens when every sender has had its first token, and a warm-up has passed. At
its end all streams are closed, and vLLM aborts the requests.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Awaitable, Callable

import aiohttp

from benchmarks.serving.load_result import Result, Trace, Window, measure
from benchmarks.serving.traffic import Arrivals, Load, request_bodies

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
READ_BUFFER_BYTES = 1 << 20
LAG_STEP_SECONDS = 0.005


class LoadError(RuntimeError):
    """The load could not be sent as asked, so that its figures would mean nothing."""


Measured = Callable[[aiohttp.ClientSession], Awaitable[list[Window]]]
"""What is done while the load runs; the measured windows."""


def run(load: Load, warmup_seconds: float = 2.0) -> Result:
    """Send the load and measure it; the warm-up follows every sender's first token.

    Raises:
        LoadError: if the server refuses a request, breaks a stream, or cannot be reached.
    """
    return run_windows(load, warmup_seconds, _one_window(load.seconds), load.seconds)[0]


def run_open(arrivals: Arrivals, warmup_seconds: float = 1.0) -> Result:
    """Send requests at a rate and measure them; the warm-up fills the server with requests.

    Raises:
        LoadError: if the server refuses a request, breaks a stream, or cannot be reached.
    """
    seconds = arrivals.load.seconds
    return run_windows(arrivals, warmup_seconds, _one_window(seconds), seconds)[0]


def _one_window(seconds: float) -> Measured:
    async def measured(_: aiohttp.ClientSession) -> list[Window]:
        return [await watch(seconds)]

    return measured


def run_windows(
    work: Load | Arrivals, warmup_seconds: float, measured: Measured, longest_seconds: float
) -> list[Result]:
    """Send a load, and measure it in several windows one after the other.

    Args:
        measured: runs after the warm-up, concurrently with the load; it may change the server.
        longest_seconds: how long that takes at most; requests at a rate end then.

    Raises:
        LoadError: if the server refuses a request, breaks a stream, or cannot be reached.
    """
    try:
        if isinstance(work, Arrivals):
            return asyncio.run(_run_open(work, warmup_seconds, measured, longest_seconds))
        return asyncio.run(_run(work, warmup_seconds, measured))
    except ExceptionGroup as group:
        first = group.exceptions[0]
        raise LoadError(f"the load failed: {type(first).__name__}: {first}") from group


async def _run_open(
    arrivals: Arrivals, warmup_seconds: float, measured: Measured, longest_seconds: float
) -> list[Result]:
    load = arrivals.load
    recorder = _Recorder(1)
    moments = arrivals.moments(warmup_seconds + longest_seconds)
    async with session_for_load() as session, asyncio.TaskGroup() as group:
        start = time.perf_counter()
        sender = group.create_task(_send_at(group, session, load, recorder, start, moments))
        await asyncio.sleep(max(0.0, start + warmup_seconds - time.perf_counter()))
        windows = await measured(session)
        for task in (sender, *recorder.tasks):
            task.cancel()
    return [measure(recorder.traces, window) for window in windows]


def session_for_load() -> aiohttp.ClientSession:
    """Any number of connections, and answers of any length."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_read=120),
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=READ_BUFFER_BYTES,
    )


async def watch(seconds: float) -> Window:
    """A window that opens now."""
    begin, cpu = time.perf_counter(), time.process_time()
    lag_ms = await _watch_lag(seconds)
    end, cpu = time.perf_counter(), time.process_time() - cpu
    return Window(begin, end, True, cpu / (end - begin), lag_ms)


async def _send_at(
    group: asyncio.TaskGroup,
    session: aiohttp.ClientSession,
    load: Load,
    recorder: _Recorder,
    start: float,
    moments: list[float],
) -> None:
    bodies = request_bodies(load, 0)
    for moment in moments:
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        stream = stream_answer(session, load.url, next(bodies), recorder.new_trace(), lambda: None)
        task = group.create_task(stream)
        recorder.tasks.add(task)
        task.add_done_callback(recorder.tasks.discard)


async def _run(load: Load, warmup_seconds: float, measured: Measured) -> list[Result]:
    recorder = _Recorder(load.concurrency)
    async with session_for_load() as session, asyncio.TaskGroup() as group:
        senders = [
            group.create_task(_send(session, load, recorder, sender))
            for sender in range(load.concurrency)
        ]
        all_decoding = await recorder.all_started(load.first_tokens_limit_seconds)
        await asyncio.sleep(warmup_seconds)
        windows = await measured(session)
        for sender in senders:
            sender.cancel()
    return [
        measure(recorder.traces, dataclasses.replace(window, all_decoding=all_decoding))
        for window in windows
    ]


async def _watch_lag(seconds: float) -> tuple[float, ...]:
    """Sleep in short steps; how late each of them ended, in milliseconds."""
    lag_ms = []
    deadline = time.perf_counter() + seconds
    while (now := time.perf_counter()) < deadline:
        due = min(now + LAG_STEP_SECONDS, deadline)
        await asyncio.sleep(due - now)
        lag_ms.append(max(0.0, (time.perf_counter() - due) * 1e3))
    return tuple(lag_ms)


class _Recorder:
    """The traces, and which senders have had a token."""

    def __init__(self, senders: int) -> None:
        self.traces: list[Trace] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._waiting = set(range(senders))
        self._all_started = asyncio.Event()

    def new_trace(self) -> Trace:
        trace = Trace(sent=time.perf_counter())
        self.traces.append(trace)
        return trace

    def started(self, sender: int) -> None:
        self._waiting.discard(sender)
        if not self._waiting:
            self._all_started.set()

    async def all_started(self, limit_seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._all_started.wait(), limit_seconds)
        except TimeoutError:
            return False
        return True


async def _send(
    session: aiohttp.ClientSession,
    load: Load,
    recorder: _Recorder,
    sender: int,
) -> None:
    for body in request_bodies(load, sender):
        trace = recorder.new_trace()
        await stream_answer(session, load.url, body, trace, lambda: recorder.started(sender))


async def stream_answer(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    trace: Trace,
    on_first_token: Callable[[], None],
) -> None:
    """Send a request, and note in the trace when each of its tokens arrives.

    Raises:
        LoadError: if the server refuses it, or ends it without a token.
    """
    seen = 0
    headers = {"Content-Type": "application/json"}
    async with session.post(f"{url}/v1/completions", data=body, headers=headers) as answer:
        if answer.status != 200:
            text = (await answer.text())[:500]
            raise LoadError(f"the server answered {answer.status}: {text}")
        async for line in answer.content:
            now = time.perf_counter()
            total = tokens_so_far(line)
            if total is None or total <= seen:
                continue
            if not seen:
                on_first_token()
            trace.arrivals.append(now)
            trace.counts.append(total - seen)
            seen = total
    if not seen:
        raise LoadError("a stream ended without a token")
    trace.ended = time.perf_counter()


def tokens_so_far(line: bytes) -> int | None:
    """Completion tokens of the request up to this server-sent event; None for other lines.

    Raises:
        LoadError: for an event that reports an error.
    """
    if not line.startswith(b"data: {"):
        return None
    # Parsing every event in full would make this client the limit at thousands of tokens a second.
    found = _COMPLETION_TOKENS.search(line)
    if found is not None and b'"error"' not in line:
        return int(found[1])
    event = json.loads(line[6:])
    if "error" in event:
        raise LoadError(f"the server reported {event['error']}")
    usage = event.get("usage")
    if usage is None:
        raise LoadError(
            "an event without usage: the server does not support continuous_usage_stats"
        )
    return int(usage["completion_tokens"])
