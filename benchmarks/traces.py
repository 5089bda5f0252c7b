"""Recorded drafts of a real model: confidence and acceptance by request, step and position.

A gzip file of JSON lines. The first line is the environment in which the drafts were recorded. Each
other line is a request: its task, and for each step the confidences of its drafted tokens in
hundredths and the number of them that were accepted.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class TraceError(ValueError):
    """A file that holds no traces; names the line."""


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step's drafts for one sequence."""

    confidences: tuple[float, ...]
    """Probability that the drafter gave each of its tokens."""
    accepted: int
    """Of these tokens, from the first on."""


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The steps of a request."""

    task: str
    steps: tuple[StepTrace, ...]


def write_traces(
    path: Path, traces: Iterable[RequestTrace], environment: Mapping[str, Any]
) -> None:
    """Write the file; the same traces give the same bytes."""
    lines = [json.dumps(dict(environment))]
    for one in traces:
        steps = [[[round(100 * c) for c in s.confidences], s.accepted] for s in one.steps]
        lines.append(json.dumps({"task": one.task, "steps": steps}, separators=(",", ":")))
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def read_traces(path: Path) -> tuple[list[RequestTrace], dict[str, Any]]:
    """The traces, and the environment in which they were recorded.

    Raises:
        TraceError: for a line that is none, or more tokens accepted than drafted.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        first, *rest = file.read().splitlines()
    found = []
    for number, line in enumerate(rest, start=2):
        try:
            row = json.loads(line)
            steps = tuple(StepTrace(tuple(c / 100 for c in cs), a) for cs, a in row["steps"])
            found.append(RequestTrace(row["task"], steps))
        except (ValueError, TypeError, KeyError) as error:
            raise TraceError(f"{path}, line {number}: no trace of a request: {error}") from None
        if any(not 0 <= step.accepted <= len(step.confidences) for step in steps):
            raise TraceError(f"{path}, line {number}: more tokens are accepted than drafted")
    return found, json.loads(first)


def acceptance_by_position(steps: Sequence[StepTrace]) -> list[float]:
    """Fraction of the drafts whose first, second, ... token was accepted, as vLLM counts it."""
    longest = max((len(step.confidences) for step in steps), default=0)
    return [sum(s.accepted >= k for s in steps) / len(steps) for k in range(1, longest + 1)]


def by_confidence(
    steps: Sequence[StepTrace], edges: Sequence[float]
) -> list[tuple[float, int, float]]:
    """(lower edge, drafted tokens, fraction accepted) of tokens that were verified as far as them.

    A token counts if all before it were accepted.
    """
    found: dict[float, list[bool]] = {edge: [] for edge in edges}
    for step in steps:
        for place, confidence in enumerate(step.confidences[: step.accepted + 1]):
            edge = max(e for e in edges if e <= confidence)
            found[edge].append(place < step.accepted)
    return [(edge, len(of), sum(of) / len(of)) for edge, of in found.items() if of]
