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
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import aiohttp
import numpy as np
from numpy.typing import NDArray

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
READ_BUFFER_BYTES = 1 << 20
MIN_PROMPT_TOKENS = 2
LAG_STEP_SECONDS = 0.005


class LoadError(RuntimeError):
    """The load could not be sent as asked, so that its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, and for how long."""

    url: str
    model: str
    vocab_size: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    """Tokens of a request; the first request of each sender is shorter, at random."""
    seconds: float
    """Length of the measured window."""
    first_tokens_limit_seconds: float = 60.0
    """Longest wait until all senders have had a token; then the window opens regardless."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.output_tokens < 1 or self.seconds <= 0:
            raise ValueError("concurrency, output_tokens and seconds must be positive")
        if self.prompt_tokens < MIN_PROMPT_TOKENS or self.vocab_size < 3:
            raise ValueError(f"a prompt needs {MIN_PROMPT_TOKENS} tokens, a vocabulary 3")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An open loop: requests come by a Poisson process, however long the earlier ones take."""

    load: Load
    """What is sent; its concurrency does not count."""
    per_second: float
    period: float | None = None
    """The arrivals of so many seconds come again and again, so that stretches of this length can be
    compared without the chance in how many requests each has; None: no two are alike."""

    def moments(self, seconds: float) -> list[float]:
        """When requests come, in seconds from the start; alike for a like seed."""
        rng = np.random.default_rng([self.load.seed, 1])
        if self.period is not None:
            each = max(1, round(self.per_second * self.period))
            first = np.sort(rng.uniform(0.0, self.period, each))
            starts = np.arange(0.0, seconds, self.period)
            return [float(t) for t in np.add.outer(starts, first).ravel() if t < seconds]
        count = int(2 * self.per_second * seconds) + 50
        times = np.cumsum(rng.exponential(1.0 / self.per_second, count))
        return [float(t) for t in times if t < seconds]


@dataclass(slots=True)
class Trace:
    """One request, as the client saw it; times from time.perf_counter()."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    """Of each event that brought tokens."""
    counts: list[int] = field(default_factory=list)
    """Tokens in each of those events."""
    ended: float | None = None
    """When the last event came; None if the request was cut off at the end of the window."""


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time."""

    begin: float
    end: float
    all_decoding: bool = True
    """Whether every sender had a token before it opened."""
    client_cpu_share: float = 0.0
    """CPU time of this client over the window's length: near 1, the client is the limit."""

    client_lag_ms: tuple[float, ...] = ()
    """How late this client's event loop woke, sampled every few milliseconds: intervals shorter
    than this, or as long, tell of the client and not of the server."""

    def holds(self, moment: float) -> bool:
        """Whether the moment lies in the window."""
        return self.begin <= moment <= self.end


@dataclass(frozen=True, slots=True)
class Result:
    """What arrived within the measured window."""

    window: Window
    tokens: int
    merged_events: int
    """Events with more than one token; their interval counts once."""
    requests_ended: int
    itl_us: NDArray[np.uint32]
    """Microseconds between two successive events of one request, both inside the window."""
    ttft_seconds: tuple[float, ...]
    """Time to the first token, of requests sent inside the window."""

    def summary(self) -> dict[str, float | int | bool | None]:
        """Rates and percentiles; times in milliseconds, None where nothing was seen."""
        seconds = self.window.end - self.window.begin
        itl_ms = self.itl_us / 1e3
        ttft_ms = np.array(self.ttft_seconds) * 1e3
        return {
            "seconds": seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / seconds,
            "requests_ended": self.requests_ended,
            "intervals": len(self.itl_us),
            "merged_events": self.merged_events,
            "itl_mean_ms": float(itl_ms.mean()) if len(itl_ms) else None,
            "itl_p50_ms": _percentile(itl_ms, 50),
            "itl_p90_ms": _percentile(itl_ms, 90),
            "itl_p99_ms": _percentile(itl_ms, 99),
            "itl_p999_ms": _percentile(itl_ms, 99.9),
            "ttft_count": len(self.ttft_seconds),
            "ttft_p50_ms": _percentile(ttft_ms, 50),
            "all_decoding": self.window.all_decoding,
            "client_cpu_share": self.window.client_cpu_share,
            "client_lag_p99_ms": _percentile(np.array(self.window.client_lag_ms), 99),
            "client_lag_max_ms": max(self.window.client_lag_ms, default=None),
        }


def _percentile(values: NDArray[np.float64], share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


Measured = Callable[[aiohttp.ClientSession], Awaitable[list[Window]]]
"""What is done while the load runs; the windows to tell of."""


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
        measured: runs after the warm-up, beside the load, and may change the server meanwhile.
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
    async with _session() as session, asyncio.TaskGroup() as group:
        start = time.perf_counter()
        sender = group.create_task(_send_at(group, session, load, recorder, start, moments))
        await asyncio.sleep(max(0.0, start + warmup_seconds - time.perf_counter()))
        windows = await measured(session)
        for task in (sender, *recorder.tasks):
            task.cancel()
    return [measure(recorder.traces, window) for window in windows]


def _session() -> aiohttp.ClientSession:
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
        stream = _stream(session, load.url, next(bodies), recorder.new_trace(), lambda: None)
        task = group.create_task(stream)
        recorder.tasks.add(task)
        task.add_done_callback(recorder.tasks.discard)


def measure(traces: list[Trace], window: Window) -> Result:
    """What the traces hold inside the window."""
    tokens, merged, ended = 0, 0, 0
    gaps: list[float] = []
    ttfts: list[float] = []
    for trace in traces:
        inside = [window.holds(moment) for moment in trace.arrivals]
        counts = [count for count, kept in zip(trace.counts, inside, strict=True) if kept]
        tokens += sum(counts)
        merged += sum(count > 1 for count in counts)
        ended += trace.ended is not None and window.holds(trace.ended)
        moments = itertools.compress(trace.arrivals, inside)
        gaps += [later - earlier for earlier, later in itertools.pairwise(moments)]
        if trace.arrivals and window.holds(trace.sent):
            ttfts.append(trace.arrivals[0] - trace.sent)
    itl_us = np.rint(np.array(gaps, dtype=np.float64) * 1e6).astype(np.uint32)
    return Result(window, tokens, merged, ended, itl_us, tuple(ttfts))


async def _run(load: Load, warmup_seconds: float, measured: Measured) -> list[Result]:
    recorder = _Recorder(load.concurrency)
    async with _session() as session, asyncio.TaskGroup() as group:
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


def request_bodies(load: Load, sender: int) -> Iterator[bytes]:
    """Bodies of a sender's successive requests, without end.

    Two ids at the head are unlike in all requests of a sender, so that no prompt is in the prefix
    cache. The rest is encoded once: encoding 16k ids for each request would hold up the event loop
    for longer than a decode step takes.
    """
    rng = np.random.default_rng([load.seed, sender])
    ids = load.vocab_size - 2
    tail = "".join(f",{i}" for i in 2 + rng.integers(ids, size=load.prompt_tokens - 2))
    start = int(rng.integers(ids * ids))
    # Senders must not all ask for a prefill in the same step: the first request is cut short.
    max_tokens = int(rng.integers(1, load.output_tokens + 1))
    for number in itertools.count(start):
        second, first = divmod(number % (ids * ids), ids)
        parameters = {
            "model": load.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        prompt = f"[{2 + first},{2 + second}{tail}]"
        yield f'{{"prompt":{prompt},{json.dumps(parameters)[1:]}'.encode()
        max_tokens = load.output_tokens


async def _send(
    session: aiohttp.ClientSession,
    load: Load,
    recorder: _Recorder,
    sender: int,
) -> None:
    for body in request_bodies(load, sender):
        trace = recorder.new_trace()
        await _stream(session, load.url, body, trace, lambda: recorder.started(sender))


async def _stream(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    trace: Trace,
    on_first_token: Callable[[], None],
) -> None:
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
        raise LoadError("an event without usage: the server knows no continuous_usage_stats")
    return int(usage["completion_tokens"])
