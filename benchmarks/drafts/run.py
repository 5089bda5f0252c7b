"""The order of the draft length benchmark: which policy is measured when, by which engine."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.drafts.cost import METHODS, draft_cost
from benchmarks.drafts.plan import (
    ACCEPTANCES,
    DOCUMENTED,
    FIXED,
    LEVEL_SECONDS,
    LEVELS,
    MAIN_ACCEPTANCE,
    ROUND,
    Command,
    Settings,
    agree,
    step_times,
    up_and_down,
)
from benchmarks.drafts.rates import recommended
from benchmarks.serving import shapes
from vllm_nfp.start.process import Child

TINY_LEVEL_SECONDS = 0.05
ROUNDS_OF_LENGTHS = 2
MORE_ROUNDS = 4
"""Further rounds where the first two disagree: the host was slow in one of them."""
SETTLING_STEPS = 300
TINY_SETTLING_STEPS = 10


class Worker:
    """An engine's process, from outside; use it in a ``with`` statement, which ends it."""

    def __init__(self, settings: Settings, out: Path, environ: Mapping[str, str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "engine.log"
        asked = json.dumps(dataclasses.asdict(settings))
        command = [sys.executable, "-m", "benchmarks.drafts.engine", asked, str(out)]
        environment = {
            **os.environ,
            **environ,
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
            "VLLM_CACHE_ROOT": str(out / "cache"),
        }
        self._child = Child(command, self.log, environment, talks=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def ready(self) -> bool:
        """Wait until it serves; false if it has ended."""
        return self._child.wait_for("ready") is not None

    def ask(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Have an order carried out; its rows.

        Raises:
            RuntimeError: if the engine failed.
        """
        rows: list[dict[str, Any]] = []

        def take(line: str) -> None:
            if line.startswith("{"):
                rows.append(json.loads(line))

        self._child.say(json.dumps(order))
        done = self._child.wait_for("done", take)
        failures = [row["error"] for row in rows if "error" in row]
        if failures or done is None:
            raise RuntimeError(failures[0] if failures else f"the engine ended; see {self.log}")
        return rows

    def measure(self, command: Command) -> list[dict[str, Any]]:
        """One measurement."""
        return self.ask({"order": "measure", "command": dataclasses.asdict(command)})


@dataclass(slots=True)
class Run:
    """The whole benchmark: what is measured, in what order, until when."""

    plain: Worker
    spec: Worker
    out: Path
    ends: float
    tiny: bool
    seconds: float
    method: str = METHODS[0]
    _told: list[dict[str, Any]] = field(default_factory=list)
    """What the controllers have reported of a drafted token's cost."""
    _rounds: list[dict[str, Any]] = field(default_factory=list)

    def warm_up(self, context: int, sizes: Sequence[int]) -> None:
        """Compile what is compiled at first use, outside of every measurement."""
        for batch_size in sizes:
            for policy in ("none", *FIXED):
                worker = self.plain if policy == "none" else self.spec
                worker.measure(Command(batch_size, context, policy, 0.7, 0.0, 4))

    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def points(self, contexts: Mapping[int, Sequence[int]], rounds: int) -> None:
        """Every policy at every batch size and context, interleaved.

        The time of a step of K drafts does not depend on how many are accepted. So the round of the
        fixed lengths is at one acceptance, and the live controllers at their own.
        """
        rng = random.Random(3)
        for context, sizes in contexts.items():
            for batch_size in sizes:
                if self.left() >= 5.0:
                    self._point(batch_size, context, rounds, rng)
            for row in self.spec.ask({"order": "trials"}):
                self._write("trials.jsonl", row)
            self._ask_cost(context)

    def _point(self, batch_size: int, context: int, rounds: int, rng: random.Random) -> None:
        settling = SETTLING_STEPS if batch_size <= 32 else SETTLING_STEPS // 2
        if self.tiny:
            settling = TINY_SETTLING_STEPS
        base = Command(batch_size, context, "live", MAIN_ACCEPTANCE, 0.0, settling)
        for acceptance in ACCEPTANCES:  # the controllers settle
            self.spec.measure(dataclasses.replace(base, acceptance=acceptance))
        known = [("none", MAIN_ACCEPTANCE), (ROUND, MAIN_ACCEPTANCE)]
        everything = [*known, *(("live", acceptance) for acceptance in ACCEPTANCES)]
        taken: list[dict[str, Any]] = []
        for number in range(rounds + MORE_ROUNDS):
            if number >= rounds and (agree(taken) or self.left() < 5.0):
                return
            cases = everything if number < rounds else known
            for policy, acceptance in rng.sample(cases, len(cases)):
                taken += self._one(dataclasses.replace(
                    base, policy=policy, acceptance=acceptance, warm_steps=6,
                    seconds=ROUNDS_OF_LENGTHS if policy == ROUND else self.seconds,
                ), number)  # fmt: skip

    def _ask_cost(self, context: int) -> None:
        """Note what the controllers have learned of drafts at this context."""
        if self.method not in shapes.DRAFT_HEADS:
            return
        for row in self.spec.ask({"order": "draft_seconds"}):
            self._told.append({**row, "context": context})
            self._write("draft_costs.jsonl", self._told[-1])

    def _one(self, command: Command, number: int) -> list[dict[str, Any]]:
        """Measure and write; the rows of a round of the lengths, none of another policy."""
        worker = self.plain if command.policy == "none" else self.spec
        rows = worker.measure(command)
        for row in rows:
            self._write("points.jsonl", {**row, "round": number})
        found = rows if command.policy == ROUND else []
        self._rounds += found
        return found

    def ramps(self, acceptance: float, context: int, rounds: int) -> None:
        """A load that grows from one sequence to the most and shrinks again."""
        levels = up_and_down(LEVELS if not self.tiny else LEVELS[:3])
        seconds = TINY_LEVEL_SECONDS if self.tiny else LEVEL_SECONDS
        source = step_times(self.spec.log.parent)
        cost = draft_cost(self.method, self._told, self._rounds, source)
        ours = recommended(source, acceptance, context, max(levels), cost)
        self._write("tables.jsonl", {
            "acceptance": acceptance, "recommended": ours,
            "draft_token_seconds": cost.seconds_per_token,
        })  # fmt: skip
        tables = [f"table:{json.dumps(table)}" for table in (DOCUMENTED, ours)]
        everything = ["none", *FIXED[1:], *tables, "live"]
        rng = random.Random(5)
        for number in range(rounds + 2):
            # At last the controller twice more: the first time it began knowing nothing.
            policies = rng.sample(everything, len(everything)) if number < rounds else ["live"]
            for policy in policies:
                need = 1.3 * seconds * len(levels)
                if self.left() < need:
                    return
                fresh = policy == "live" and number == 0
                command = Command(1, context, policy, acceptance, seconds, 0, fresh)
                worker = self.plain if policy == "none" else self.spec
                order = {
                    "order": "ramp", "command": dataclasses.asdict(command),
                    "levels": list(levels),
                }  # fmt: skip
                for row in worker.ask(order):
                    self._write("ramps.jsonl", {**row, "round": number})

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.out / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"method": self.method, **row}) + "\n")
