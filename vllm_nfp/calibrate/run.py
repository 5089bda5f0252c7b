"""Runs the plans of a calibration: engines start side by side, then measure one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import KernelSamples, read_samples

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that could not be timed to the end."""

    label: str
    log: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a calibration brought."""

    samples: tuple[KernelSamples, ...]
    failures: tuple[Failure, ...]


def run_plans(
    plans: Sequence[ModelPlan],
    folder: Path,
    report: Report,
    before_measuring: Callable[[], None] = lambda: None,
) -> Outcome:
    """Time every plan's model, each in a process of its own.

    Args:
        folder: takes a file of samples and, of a model that failed, the log.
        report: told of the progress, a line at a time.
        before_measuring: called once all engines are up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = [_Worker(plan, folder) for plan in plans]
    try:
        ready = [worker for worker in workers if worker.wait_for("ready") is not None]
        report(f"{len(ready)} of {len(workers)} engines are up")
        before_measuring()
        for worker in ready:
            said = worker.measure()
            report(f"{worker.plan.label}: {said or 'failed'}")
        failures = [w.failure for w in workers if w.failure is not None]
        found = [read_samples(w.out) for w in workers if w.out.exists()]
        return Outcome(tuple(found), tuple(failures))
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One engine in a process of its own."""

    def __init__(self, plan: ModelPlan, folder: Path) -> None:
        self.plan = plan
        self.out = folder / f"{plan.label}.jsonl"
        self.out.unlink(missing_ok=True)
        self._log = folder / f"{plan.label}.log"
        self._plan_file = folder / f"{plan.label}.plan.json"
        self._plan_file.write_text(plan.to_json(), encoding="utf-8")
        self._complete = False
        command = [sys.executable, "-m", "vllm_nfp.calibrate.worker"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(self._plan_file), str(self.out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Standard output is for the words that this process waits for.
                env={**os.environ, "VLLM_LOGGING_STREAM": "ext://sys.stderr"},
            )

    def wait_for(self, word: str) -> str | None:
        """The line that begins with the word; None if the process ends before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.strip()
        return None

    def measure(self) -> str | None:
        """Let it measure, and end it; what it says of it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            said = self.wait_for("done")
        except BrokenPipeError:
            said = None
        self._complete = said is not None
        self.end()
        return said

    @property
    def failure(self) -> Failure | None:
        """Set if the model was not timed to the end."""
        return None if self._complete else Failure(self.plan.label, self._log)

    def end(self) -> None:
        """Stop the process; the log of a complete run is not kept."""
        self._process.kill()
        self._process.wait()
        self._plan_file.unlink(missing_ok=True)
        if self._complete:
            self._log.unlink(missing_ok=True)
