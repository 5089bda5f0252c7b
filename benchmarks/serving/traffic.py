"""What a load sends: bodies of requests, by fixed concurrency or at random moments."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.serving import talk

MIN_PROMPT_TOKENS = 2


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
    talks: bool = False
    """Prompts follow the cycle of :mod:`benchmarks.serving.talk`, after the two ids that differ."""

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
    """The arrivals repeat after so many seconds, so that stretches of this length have the same
    requests; None: they do not repeat."""

    def moments(self, seconds: float) -> list[float]:
        """When requests arrive, in seconds from the start; the same for the same seed."""
        rng = np.random.default_rng([self.load.seed, 1])
        if self.period is not None:
            each = max(1, round(self.per_second * self.period))
            first = np.sort(rng.uniform(0.0, self.period, each))
            starts = np.arange(0.0, seconds, self.period)
            return [float(t) for t in np.add.outer(starts, first).ravel() if t < seconds]
        count = int(2 * self.per_second * seconds) + 50
        times = np.cumsum(rng.exponential(1.0 / self.per_second, count))
        return [float(t) for t in times if t < seconds]


def request_bodies(load: Load, sender: int) -> Iterator[bytes]:
    """Bodies of a sender's successive requests, without end.

    The first two ids differ between all requests of a sender, so that no prompt is in the prefix
    cache. The rest is encoded once: encoding 16k ids for each request would hold up the event loop
    for longer than a decode step takes.
    """
    rng = np.random.default_rng([load.seed, sender])
    ids = load.vocab_size - 2
    rest = (2 + rng.integers(ids, size=load.prompt_tokens - 2)).tolist()
    if load.talks:
        rest = talk.prompt(sender, load.prompt_tokens - 2)
    tail = "".join(f",{i}" for i in rest)
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
