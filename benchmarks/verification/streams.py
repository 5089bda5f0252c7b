"""Streams of drafts for :mod:`benchmarks.verification.replay`, cut from recorded traces.

A stream is what one request meets: at each of its answer's places the confidences of the drafts,
how many of them are accepted, and the token that is there. It changes its task every 32 places, so
that a few hundred tokens hold all tasks. Answers are cut for that, so that near a cut the drafts of
one answer are followed by those of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.traces import AnswerTrace

CHUNK = 32
FIRST_TOKEN = 2
"""Below are the special ones of :mod:`benchmarks.serving.shapes`; a prompt's first token names its
stream."""


@dataclass(frozen=True, slots=True)
class Streams:
    """For each stream and place, both from 0 on; places beyond the last begin anew."""

    log_odds: NDArray[np.float32]
    """[streams, places, drafts]"""
    accepted: NDArray[np.int64]
    """[streams, places]"""
    tokens: NDArray[np.int64]
    """[streams, places]"""

    def cut(self, drafts: int) -> Streams:
        """The same, if no more tokens than these are drafted."""
        return Streams(self.log_odds[:, :, :drafts], np.minimum(self.accepted, drafts), self.tokens)


def make_streams(
    traces: Sequence[AnswerTrace], streams: int, places: int, vocabulary: int
) -> Streams:
    """The same traces and sizes give the same streams.

    Raises:
        ValueError: if a task's answers are all shorter than a chunk.
    """
    log_odds = np.concatenate([trace.log_odds for trace in traces])
    accepted = np.concatenate([trace.accepted for trace in traces])
    chunks = _chunks(traces)
    rows = np.array([
        list(itertools.islice(_rows(chunks, np.random.default_rng(number)), places))
        for number in range(streams)
    ])  # fmt: skip
    tokens = np.random.default_rng(streams).integers(FIRST_TOKEN, vocabulary, rows.shape)
    return Streams(log_odds[rows], accepted[rows], tokens)


def _chunks(traces: Sequence[AnswerTrace]) -> dict[str, list[range]]:
    """Rows of all traces after one another, cut, by task."""
    found: dict[str, list[range]] = {trace.task: [] for trace in traces}
    begin = 0
    for trace in traces:
        starts = range(begin, begin + len(trace.accepted) - CHUNK + 1, CHUNK)
        found[trace.task] += [range(start, start + CHUNK) for start in starts]
        begin += len(trace.accepted)
    for task, chunks in found.items():
        if not chunks:
            raise ValueError(f"no recorded answer of {task} has {CHUNK} positions: record more")
    return found


def _rows(chunks: dict[str, list[range]], rng: np.random.Generator) -> Iterator[int]:
    orders = {task: itertools.cycle(rng.permutation(len(of))) for task, of in chunks.items()}
    first = int(rng.integers(len(chunks)))
    tasks = [*chunks][first:] + [*chunks][:first]
    for task in itertools.cycle(tasks):
        yield from chunks[task][next(orders[task])]


def prompt_of(stream: int, tokens: int, vocabulary: int) -> list[int]:
    """Token ids of a request that meets this stream; a shorter prompt begins a longer one."""
    ids = np.random.default_rng([stream, 1]).integers(FIRST_TOKEN, vocabulary, tokens - 1)
    return [FIRST_TOKEN + stream, *ids.tolist()]
