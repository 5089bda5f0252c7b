"""What a load has seen: traces of requests, and what they hold inside a measured window."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Trace:
    """One request, as the client saw it; times from time.perf_counter()."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    """When each event with tokens arrived."""
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
    than this, or as long, measure the client and not the server."""

    def holds(self, moment: float) -> bool:
        """Whether the moment is in the window."""
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
    silent_seconds: float
    """The longest time within the window in which no request had a token."""

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
            "silent_seconds": self.silent_seconds,
            "all_decoding": self.window.all_decoding,
            "client_cpu_share": self.window.client_cpu_share,
            "client_lag_p99_ms": _percentile(np.array(self.window.client_lag_ms), 99),
            "client_lag_max_ms": max(self.window.client_lag_ms, default=None),
        }


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
    return Result(window, tokens, merged, ended, itl_us, tuple(ttfts), _silence(traces, window))


def _silence(traces: list[Trace], window: Window) -> float:
    """The longest time in the window without a token of any request, its ends included."""
    inside = (moment for trace in traces for moment in trace.arrivals if window.holds(moment))
    moments = [window.begin, *sorted(inside), window.end]
    return max(later - earlier for earlier, later in itertools.pairwise(moments))


def _percentile(values: NDArray[np.float64], share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None
