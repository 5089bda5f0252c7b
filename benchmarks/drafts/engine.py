"""An engine that is stepped by hand, in a process of its own, for the draft length benchmark.

``python -m benchmarks.drafts.engine SETTINGS OUT``, with settings as JSON, prints ``ready`` when
the engine is up. It then reads an order from each line of standard input, and prints its rows and
``done``. :class:`benchmarks.drafts.run.Worker` is the other end.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drafts.models import drafter, start
from benchmarks.drafts.plan import LENGTHS, LONGEST, ROUND, Command, Settings
from benchmarks.serving import shapes, talk
from benchmarks.serving.stepped_engine import Count, SteppedEngine

STEPS_OF_ROUND, SKIPPED_OF_ROUND = 16, 6
"""Steps of each length at a time, and how many of them are not timed: they were in flight,
verified the drafts of the length before, or were launched by a host that had run ahead."""


class Engine:
    """A vLLM engine in this process whose draft lengths are set from outside."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.control: Any = None
        self._controls: dict[float, Any] = {}
        self._config = _probe_config(out)
        if settings.speculates:
            self._hook()
        from vllm_nfp.adapter.graph_place import CaptureWatch

        with CaptureWatch() as captures:
            self.engine = SteppedEngine(start(settings, out))
        self._place = captures.place
        self.scheduler = self.engine.scheduler
        self.runner = self.engine.runner
        talk.teach(self.runner.get_model())
        if settings.method in shapes.DRAFT_HEADS and settings.speculates:
            talk.teach_head(drafter(self.runner).model)
        self.static = list(getattr(self.scheduler, "dynamic_sd_lookup", None) or ())
        self.random = random.Random(7)

    def _hook(self) -> None:
        from vllm_nfp.adapter import draft_lengths, length_graphs
        from vllm_nfp.adapter.patch import PatchSet

        draft_lengths.install_sizes(PatchSet(), self._config)
        draft_lengths.install_graphs(PatchSet(), self._config)
        length_graphs.put_in_place(PatchSet())

    def scan(self) -> None:
        """Let the probe scan as at a start, and write what it found where the controller looks.

        It never probes again: what it costs is measured elsewhere, and what it learns from traffic
        by benchmarks.drafts.servers.
        """
        from vllm_nfp.session import open_session

        engine = self.engine.llm.llm_engine.vllm_config
        session = open_session(self._config, engine, time.monotonic())
        session.after_warm_up(self.runner, self._place)
        session.disable("the scan has ended", expected=True)

    def draft_seconds(self) -> list[dict[str, Any]]:
        """What the controller of each acceptance has learned of a drafted token's cost."""
        return [
            {"acceptance": acceptance, "draft_seconds": control.controller.draft_seconds}
            for acceptance, control in self._controls.items()
            if control.controller is not None
        ]

    def trials(self) -> list[dict[str, Any]]:
        """The trials of the controller of each acceptance since this was asked last."""
        found = []
        for acceptance, control in self._controls.items():
            results = [] if control.controller is None else control.controller.results
            found += [{"acceptance": acceptance, **dataclasses.asdict(one)} for one in results]
            results.clear()
        return found

    def measure(self, command: Command) -> dict[str, Any]:
        """Hold the batch, set the policy, warm up, then step for a while."""
        self._set_acceptance(command.acceptance)
        self.engine.hold(command.batch_size, command.context)
        self._set_policy(command)
        for _ in range(command.warm_steps):
            self.engine.step()
        count = Count()
        if command.policy == ROUND:
            self._go_round(count, command)
        else:
            self._go_on(count, command, 8, command.batch_size)
        return {**dataclasses.asdict(command), **count.row()}

    def _go_on(self, count: Count, command: Command, least: int, batch_size: int) -> None:
        """Step for the command's time, and for so many steps at least."""
        while count.elapsed < command.seconds or count.steps < least:
            made = self.engine.step()
            if made is not None:
                count.add(made, self._live_length(command, batch_size))

    def _go_round(self, count: Count, command: Command) -> None:
        """Every length several times, each time from the same contexts on.

        A round makes some 500 tokens for each sequence. Were they kept, a step at 128 sequences
        would read a tenth more at its end than at its beginning.
        """
        for _ in range(round(command.seconds)):
            for length in self.random.sample(LENGTHS, len(LENGTHS)):
                self.scheduler.dynamic_sd_lookup = [length] * len(self.static)
                self.engine.hold(command.batch_size, command.context)
                for number in range(STEPS_OF_ROUND):
                    made = self.engine.step()
                    if made is None or number < SKIPPED_OF_ROUND:
                        count.skip()
                    else:
                        count.add(made, length)

    def ramp(self, command: Command, levels: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The levels one after the other, with arrivals and departures in between, timed too."""
        self._set_acceptance(command.acceptance)
        self.engine.hold(levels[0], command.context)
        self._set_policy(command)
        for place, level in enumerate(levels):
            self.engine.resize(level, command.context)
            count = Count()
            self._go_on(count, command, 4, level)
            yield {
                "policy": command.policy,
                "acceptance": command.acceptance,
                "context": command.context,
                "place": place,
                "level": level,
                **count.row(),
            }

    def _live_length(self, command: Command, batch_size: int) -> int:
        if self.control is not None:
            return int(self.control.last_length or 0)
        kind, _, rest = command.policy.partition(":")
        if kind == "fixed":
            return int(rest)
        if kind == "none":
            return 0
        return int(self.scheduler.dynamic_sd_lookup[batch_size])

    def _set_acceptance(self, acceptance: float) -> None:
        sampler = getattr(self.runner, "rejection_sampler", None)
        rates = getattr(sampler, "synthetic_conditional_rates", None)
        if rates is not None:
            rates.fill_(acceptance)

    def _set_policy(self, command: Command) -> None:
        kind, _, rest = command.policy.partition(":")
        if self.control is not None:
            self.control.pause()
            self.control = None
        if kind == "live":
            self.control = self._controller(command.acceptance, command.fresh)
        elif kind == "fixed":
            self.scheduler.dynamic_sd_lookup = [int(rest)] * len(self.static)
        elif kind == "table":
            self.scheduler.dynamic_sd_lookup = _dense(json.loads(rest), len(self.static))

    def _controller(self, acceptance: float, fresh: bool) -> Any:
        """One controller for each acceptance, which keeps what it has learned between its turns."""
        from vllm_nfp.adapter.draft_control import DraftControl
        from vllm_nfp.adapter.patch import PatchSet

        control = self._controls.get(acceptance)
        if control is not None and not fresh:
            control.resume()
            return control
        self.scheduler.dynamic_sd_lookup = list(self.static)
        control = DraftControl(self.scheduler, self._config, PatchSet())
        self._controls[acceptance] = control
        control.begin()
        return control


def _dense(table: Sequence[Sequence[int]], size: int) -> list[int]:
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    found: list[int] = build_dynamic_sd_schedule_lookup(table, size - 1, LONGEST)
    return found


def _probe_config(out: Path) -> Any:
    """The probe's defaults, but for the lengths that are compared and where its results go."""
    from vllm_nfp.config import config_from_mapping

    (out / "run").mkdir(parents=True, exist_ok=True)
    return config_from_mapping(
        {
            "draft_control": True,
            "draft_lengths": list(LENGTHS),
            "run_dir": str(out / "run"),
            "output_dir": str(out / "probe"),
        }
    )


def work(settings: Settings, out: Path) -> None:
    """An engine's process: a command for each line on standard input, an answer for each."""
    engine = Engine(settings, out)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["order"] == "scan":
                engine.scan()
            else:
                for row in answers(engine, order):
                    print(json.dumps(row), flush=True)
        except Exception as error:
            print(json.dumps({"error": repr(error)}), flush=True)
            raise
        print("done", flush=True)


def answers(engine: Engine, order: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of an order that has some, as they come."""
    if order["order"] == "draft_seconds":
        return engine.draft_seconds()
    if order["order"] == "trials":
        return engine.trials()
    command = Command(**order["command"])
    if order["order"] == "measure":
        return [engine.measure(command)]
    return engine.ramp(command, order["levels"])


if __name__ == "__main__":
    work(Settings(**json.loads(sys.argv[1])), Path(sys.argv[2]))
