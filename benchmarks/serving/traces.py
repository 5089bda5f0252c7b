"""Recorded drafts of a real model: confidence and acceptance at each position of its answers.

A ``.npz`` file without pickled objects. An answer is greedy, so that it is the same whatever is
drafted. Row i of an answer is what the head drafts once i + 1 of the answer's tokens are there: the
log odds of each drafted token, as vLLM's acceptance estimator reads them, and how many of them are
accepted if all are verified. If fewer are verified, that many at most are accepted, and the next
draft is the row of the place that was reached. So one trace serves every draft length.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS_OF_LOG_ODDS = 8.0
"""Log odds are stored in eighths, in one byte: up to 15.9, which is a probability of 1 - 1e-7."""
MOST_STORED = 127


class TraceError(ValueError):
    """A file that holds no traces."""


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """The drafts at each position of an answer."""

    task: str
    log_odds: NDArray[np.float32]
    """Of the probability that the head gave each drafted token; [positions, drafted tokens]."""
    accepted: NDArray[np.int64]
    """Of these tokens, from the first on; [positions]."""


def write_traces(path: Path, traces: Sequence[AnswerTrace], environment: Mapping[str, Any]) -> None:
    """Write the file."""
    rounded = np.concatenate([t.log_odds for t in traces]) * STEPS_OF_LOG_ODDS
    np.savez_compressed(
        path,
        log_odds=np.clip(np.rint(rounded), -MOST_STORED, MOST_STORED).astype(np.int8),
        accepted=np.concatenate([t.accepted for t in traces]).astype(np.uint8),
        ends=np.cumsum([len(t.accepted) for t in traces]).astype(np.int32),
        tasks=np.array([t.task for t in traces]),
        environment=np.array(json.dumps(dict(environment))),
    )


def read_traces(path: Path) -> tuple[list[AnswerTrace], dict[str, Any]]:
    """The traces, and the environment in which they were recorded.

    Raises:
        TraceError: for a file that holds none, or where more tokens are accepted than drafted.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            log_odds = held["log_odds"].astype(np.float32) / STEPS_OF_LOG_ODDS
            accepted = held["accepted"].astype(np.int64)
            ends, tasks = held["ends"].tolist(), held["tasks"].tolist()
            environment = json.loads(str(held["environment"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TraceError(f"{path} holds no traces: {error}") from None
    if log_odds.ndim != 2 or not len(log_odds) or len(ends) != len(tasks):
        raise TraceError(f"{path} holds no traces: its arrays do not fit together")
    if len(log_odds) != len(accepted) or ends[-1] != len(accepted):
        raise TraceError(f"{path} holds no traces: its arrays do not fit together")
    if accepted.max() > log_odds.shape[1]:
        raise TraceError(f"{path}: more tokens are accepted than drafted")
    parts = zip(tasks, np.split(log_odds, ends[:-1]), np.split(accepted, ends[:-1]), strict=True)
    return [AnswerTrace(*part) for part in parts], environment


def visited(trace: AnswerTrace, length: int) -> list[int]:
    """The rows at which a server that verifies this many tokens drafts, one after the other."""
    found, place = [], 0
    while place < len(trace.accepted):
        found.append(place)
        place += 1 + min(length, int(trace.accepted[place]))
    return found


def acceptance_by_position(traces: Sequence[AnswerTrace]) -> list[float]:
    """Fraction of the drafts whose first, second, ... token was accepted, as vLLM counts it."""
    longest = traces[0].log_odds.shape[1]
    met = np.concatenate([t.accepted[visited(t, longest)] for t in traces])
    return [float((met >= k).mean()) for k in range(1, longest + 1)]


def tokens_per_step(traces: Sequence[AnswerTrace], length: int) -> float:
    """Tokens that a step makes for a sequence if so many are drafted and verified."""
    rows = [trace.accepted[visited(trace, length)] for trace in traces]
    return 1.0 + float(np.minimum(np.concatenate(rows), length).mean())


def by_confidence(
    traces: Sequence[AnswerTrace], edges: Sequence[float]
) -> list[tuple[float, int, float]]:
    """(lower edge, drafted tokens, fraction accepted) of tokens that were verified as far as them.

    A token counts if all before it were accepted. Every position of an answer counts.
    """
    log_odds = np.concatenate([t.log_odds for t in traces])
    accepted = np.concatenate([t.accepted for t in traces])[:, None]
    places = np.arange(log_odds.shape[1])[None]
    seen = places <= accepted
    confidence = (1.0 / (1.0 + np.exp(-log_odds)))[seen]
    right = (places < accepted)[seen]
    bins = np.searchsorted(edges, confidence, side="right") - 1
    return [
        (edge, int((bins == i).sum()), float(right[bins == i].mean()))
        for i, edge in enumerate(edges)
        if (bins == i).any()
    ]
