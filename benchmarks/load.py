"""A streaming load of fixed concurrency, with the arrival time of every token.

Requests carry token ids, so that the server needs no tokenizer, and each sender starts its next
request when the last one ends. One process and one event loop: the load runs on cores of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import aiohttp
import numpy as np


@dataclass(frozen=True)
class Load:
    """What is sent, and for how long."""

    url: str
    model: str
    vocab_size: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    seed: int = 0


@dataclass
class Result:
    """Tokens that arrived within the measured window."""

    seconds: float
    tokens: int = 0
    requests: int = 0
    gaps_seconds: list[float] = field(default_factory=list)
    """Time between two successive tokens of one request, both inside the window."""

    def summary(self) -> dict[str, float]:
        """Rates and percentiles; times in milliseconds."""
        gaps = np.array(self.gaps_seconds) * 1e3
        p50, p90, p99, p999 = np.percentile(gaps, [50, 90, 99, 99.9])
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "requests": self.requests,
            "gaps": len(gaps),
            "itl_mean_ms": float(gaps.mean()),
            "itl_p50_ms": float(p50),
            "itl_p90_ms": float(p90),
            "itl_p99_ms": float(p99),
            "itl_p999_ms": float(p999),
        }


def run(load: Load, warmup_seconds: float = 2.0) -> Result:
    """Send the load; the first ``warmup_seconds`` are not measured."""
    return asyncio.run(_run(load, warmup_seconds))


async def _run(load: Load, warmup_seconds: float) -> Result:
    start = time.perf_counter() + warmup_seconds
    window = (start, start + load.seconds)
    result = Result(load.seconds)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        senders = [_send(session, load, i, window, result) for i in range(load.concurrency)]
        await asyncio.gather(*senders)
    return result


async def _send(
    session: aiohttp.ClientSession,
    load: Load,
    index: int,
    window: tuple[float, float],
    result: Result,
) -> None:
    rng = random.Random(load.seed * 10_007 + index)
    # Staggered lengths: senders must not all ask for a prefill in the same step.
    first = rng.randint(1, load.output_tokens)
    while time.perf_counter() < window[1]:
        prompt = [rng.randrange(2, load.vocab_size) for _ in range(load.prompt_tokens)]
        body = {
            "model": load.model,
            "prompt": prompt,
            "max_tokens": first or load.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        first = 0
        await _stream(session, load.url, body, window, result)


async def _stream(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, object],
    window: tuple[float, float],
    result: Result,
) -> None:
    last: float | None = None
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            now = time.perf_counter()
            count = _tokens_in(line)
            if not count:
                continue
            inside = window[0] <= now <= window[1]
            if inside:
                result.tokens += count
                if last is not None and last >= window[0]:
                    result.gaps_seconds.append(now - last)
            last = now
            if now > window[1]:
                return  # leaving closes the stream, and vLLM aborts the request
    result.requests += 1


def _tokens_in(line: bytes) -> int:
    """Token ids in one server-sent event; 0 for anything else."""
    if not line.startswith(b"data: {"):
        return 0
    choices = json.loads(line[6:]).get("choices") or [{}]
    return len(choices[0].get("token_ids") or ())
