"""Runs the plans of a calibration: engines start side by side, then measure one at a time."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import KernelSamples, SampleError, read_samples
from vllm_nfp.start.process import Child

Report = Callable[[str], None]
WORKER = (sys.executable, "-m", "vllm_nfp.calibrate.worker")
"""Takes the plan's file and the file to write."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that could not be timed to the end; what was timed before is kept."""

    label: str
    log: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a calibration."""

    samples: tuple[KernelSamples, ...]
    failures: tuple[Failure, ...]


class Stage(StrEnum):
    """Where a model's process is."""

    STARTING = "starting"
    READY = "ready"
    MEASURING = "measuring"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one model is; series are counted while it measures."""

    label: str
    stage: Stage
    done: int = 0
    total: int = 0


def run_plans(
    plans: Sequence[ModelPlan],
    folder: Path,
    report: Report,
    before_measuring: Callable[[], None] = lambda: None,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    command: Sequence[str] = WORKER,
) -> Outcome:
    """Time every plan's model, each in a process of its own.

    Args:
        folder: for files of samples and the log of each model that failed.
        report: receives the progress, a line at a time.
        before_measuring: called once all engines are up.
        on_progress: receives each model's stage.
        command: of the process, see :data:`WORKER`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers: list[_Worker] = []
    try:
        for plan in plans:
            on_progress(Progress(plan.label, Stage.STARTING))
            workers.append(_Worker(plan, folder, command))
        ready = [worker for worker in workers if worker.start(on_progress)]
        report(f"{len(ready)} of {len(workers)} engines are up")
        before_measuring()
        for worker in ready:
            said = worker.measure(on_progress)
            report(f"{worker.plan.label}: {said or 'failed'}")
        found = [samples for worker in workers if (samples := worker.samples()) is not None]
        failures = [w.failure for w in workers if w.failure is not None]
        return Outcome(tuple(found), tuple(failures))
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One engine in a process of its own."""

    def __init__(self, plan: ModelPlan, folder: Path, command: Sequence[str]) -> None:
        self.plan = plan
        self.out = folder / f"{plan.label}.jsonl"
        self.out.unlink(missing_ok=True)
        self._log = folder / f"{plan.label}.log"
        self._plan_file = folder / f"{plan.label}.plan.json"
        self._plan_file.write_text(plan.to_json(), encoding="utf-8")
        self._complete = False
        self._child = Child(
            [*command, str(self._plan_file), str(self.out)],
            self._log,
            # Standard output is for the words that this process waits for.
            {**os.environ, "VLLM_LOGGING_STREAM": "ext://sys.stderr"},
            talks=True,
        )

    def start(self, on_progress: Callable[[Progress], None]) -> bool:
        """Wait until its engine is up; False if it ends before."""
        up = self._child.wait_for("ready") is not None
        on_progress(Progress(self.plan.label, Stage.READY if up else Stage.FAILED))
        return up

    def measure(self, on_progress: Callable[[Progress], None]) -> str | None:
        """Let it measure, and end it; the line that it ends with, None if it failed."""
        label = self.plan.label
        on_progress(Progress(label, Stage.MEASURING))

        def follow(line: str) -> None:
            if match := re.fullmatch(r"series (\d{1,9}) of (\d{1,9})", line):
                on_progress(Progress(label, Stage.MEASURING, int(match[1]), int(match[2])))

        self._child.say("go")
        said = self._child.wait_for("done", follow)
        self._complete = said is not None
        on_progress(Progress(label, Stage.DONE if said else Stage.FAILED))
        self.end()
        return said

    def samples(self) -> KernelSamples | None:
        """The samples that it wrote; a file that cannot be read makes it a failure."""
        if not self.out.exists():
            self._complete = False
            return None
        try:
            return read_samples(self.out)
        except SampleError as error:
            self._complete = False
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{error}\n")
            return None

    @property
    def failure(self) -> Failure | None:
        """Set if the model was not timed to the end."""
        return None if self._complete else Failure(self.plan.label, self._log)

    def end(self) -> None:
        """Stop the process and what it has started; the log of a complete run is not kept."""
        self._child.kill()
        self._plan_file.unlink(missing_ok=True)
        if self._complete:
            self._log.unlink(missing_ok=True)
